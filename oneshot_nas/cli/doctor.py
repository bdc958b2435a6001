"""`oneshot-nas doctor`: versions, threads, machine, and what will not work here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print the report as one line of JSON.")] = False) -> None:
    """Report versions, threads and machine, and what will not work here with its remedy; exit code 1 when training cannot work.

    Example:  oneshot-nas doctor
    """
    import json

    from oneshot_nas.doctor import examine

    report = examine()
    typer.echo(json.dumps(report) if as_json else "\n".join(lines(report)))
    raise typer.Exit(0 if report["works"] else 1)


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the report as lines for people."""
    machine, mxnet = report["machine"], report["mxnet"]
    yield f"Machine: {machine['platform']}"
    yield f"  {machine['cores']} usable cores, {machine['memory_gib']} GiB memory, {machine['disk_free_gib']} GiB disk free here"
    yield "Versions"
    yield from (f"  {name:<24}{version or '-'}" for name, version in report["versions"].items())
    yield "Threads"
    for name, thread in report["threads"].items():
        yield f"  {name:<28}" + (f"{thread['value']} (set by {thread['set_by']})" if thread["value"] else "not set")
    if not mxnet["error"]:
        yield f"MXNet: {mxnet['gpus']} GPUs; built with {', '.join(mxnet['features'])}"
    yield "What will not work here"
    for problem in sorted(report["problems"], key=lambda problem: not problem["fatal"]):
        yield f"  {'!' if problem['fatal'] else '-'} {problem['what']}: {problem['why']}"
        yield f"      -> {problem['remedy']}"
    yield "Training works here." if report["works"] else "Training cannot work here: mend the lines marked '!' first."
