"""`oneshot-nas convert`: weights of official PyTorch releases as Gluon parameters, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from oneshot_nas import shell
from oneshot_nas.arch import get_space, parse_options, read_arch_file
from oneshot_nas.config import read_recipe
from oneshot_nas.errors import UserError
from oneshot_nas.export import convert
from oneshot_nas.export.state import read_state, write_state


def command(
    weights: Annotated[Path, typer.Argument(
        metavar="IN", help=".npz, .safetensors or .pth of the state dict; with --to a .params file.")],
    out: Annotated[Path, typer.Option(help="File to write: .params, with --to .npz or .safetensors.")],
    source: Annotated[str | None, typer.Option(
        "--from", metavar="FORMAT", help="Format of IN: megvii-spos (a network), attentivenas (a supernet).")] = None,
    target: Annotated[str | None, typer.Option("--to", metavar="FORMAT", help="The other way: format of OUT.")] = None,
    arch: Annotated[Path | None, typer.Option(help="arch.json of the network; of a supernet, the subnet to take out.")] = None,
    space: Annotated[str | None, typer.Option(help="Search space, for formats of a whole supernet.")] = None,
    option: Annotated[list[str] | None, typer.Option(
        metavar="KEY=VALUE", help="An option of that space, such as classes=10; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert official PyTorch weights to a file for net.load_parameters, or with --to back.

    Example:  oneshot-nas arch oneshot > arch.json; oneshot-nas convert --from megvii-spos weights.npz --arch arch.json --out
    oneshot.params

    A supernet:  oneshot-nas convert --from attentivenas attentive_nas.pth.tar --space attentive_mobilenet --out supernet.params
    """
    if (source is None) == (target is None):
        raise UserError("give either --from FORMAT (official weights to .params) or --to FORMAT (the other way)")
    name = convert.check_format(source or target or "")
    if option and space is None:
        raise UserError("--option belongs to --space; an architecture has its options in its file")
    whole = get_space(space, **parse_options(space, option or [])) if space is not None else None
    chosen = read_arch_file(str(arch)) if arch is not None else None
    convert.check_target(name, whole, chosen)
    if source is not None:
        if out.suffix != ".params":
            raise UserError(f"--out {out} must end in .params")
        arrays = convert.from_official(name, read_state(weights), whole, chosen)
        owner = chosen or whole
        assert owner is not None
        convert.write_network(out, arrays, owner, name)
        note = convert.FORMATS[name].note
    else:
        arrays = convert.to_official(name, convert.read_network(weights), whole, chosen)
        write_state(out, arrays)
        note = convert.FORMATS[name].made_up
    if as_json:
        typer.echo(json.dumps({"out": str(out), "arrays": len(arrays), "note": note}))
    else:
        typer.echo(f"wrote {out}: {len(arrays)} arrays; {note}")
        if source is not None and (chosen is None or not convert.FORMATS[name].supernet):
            typer.echo(f"next: {_as_a_run(name, out, arch, option or [])}  # validates them, makes a run to search or to export")


def _as_a_run(name: str, weights: Path, arch: Path | None, options: list[str]) -> str:
    """The command that makes a run folder of converted weights: training with all its epochs done."""
    recipe = shell.recipe(convert.FORMATS[name].recipe)
    settings = ["data=DATA", *(f"options.{text}" for text in options), f"start.weights={weights}",
                f"start.epoch={read_recipe(recipe, ['data=DATA']).epochs}"]
    words = ["--recipe", recipe, *(["--arch", str(arch)] if arch else []), *(w for text in settings for w in ("--set", text))]
    return shell.command("train", *words, "--out", weights.with_suffix(""))
