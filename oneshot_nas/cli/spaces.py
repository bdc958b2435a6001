"""`oneshot-nas spaces`: name, size, choices and options of every search space."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from oneshot_nas.arch import Choice, Option, get_space, list_spaces, option_table


def command(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per space.")] = False) -> None:
    """List every search space: its number of architectures, its choices and its options.

    Example:  oneshot-nas spaces --json
    """
    for name in list_spaces():
        if as_json:
            typer.echo(json.dumps(describe(name)))
        else:
            typer.echo(report(name))


def describe(name: str) -> dict[str, Any]:
    """Everything about a space as plain data; `values` lists what each position of a choice allows."""
    space, table = get_space(name), option_table(name)
    return {
        "name": name,
        "space": name,
        "size": space.size,
        "choices": {choice.name: {"positions": len(choice.values), "values": choice.values} for choice in space.choices},
        "options": {key: {"default": option.default, **_allowed(option)} for key, option in table.items()},
    }


def _allowed(option: Option) -> dict[str, Any]:
    if option.allowed:
        return {"allowed": option.allowed}
    return {"low": option.low, "high": option.high, **({"many": True} if option.many else {})}


def report(name: str) -> str:
    """The readable description of a space."""
    space = get_space(name)
    lines = [f"{name}: {space.size:.3g} architectures"]
    lines += [f"  choice {choice.name:<10} {_values(choice)}" for choice in space.choices]
    for key, option in option_table(name).items():
        allowed = ", ".join(map(str, option.allowed)) if option.allowed else f"{option.low} to {option.high}"
        if option.many:
            allowed = f"list of growing numbers with commas, each {allowed}"
        default = "the space's own" if option.default == () else option.default
        lines.append(f"  option {key:<16} {allowed} (default {default})")
    return "\n".join(lines)


def _values(choice: Choice) -> str:
    """The values of a choice, position by position where they differ."""
    groups: dict[tuple, list[int]] = {}
    for position, allowed in enumerate(choice.values):
        groups.setdefault(allowed, []).append(position)
    if len(groups) == 1:
        return f"x{len(choice.values)}: {', '.join(map(str, choice.values[0]))}"
    return "; ".join(f"[{','.join(map(str, positions))}]: {', '.join(map(str, allowed))}"
                     for allowed, positions in groups.items())
