"""`oneshot-nas convert`: weights of official PyTorch releases as Gluon parameters, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from oneshot_nas.arch import read_arch_file
from oneshot_nas.errors import UserError
from oneshot_nas.export import convert


def command(
    weights: Annotated[Path, typer.Argument(
        metavar="IN", help=".npz, .safetensors or .pth of the state dict; with --to a .params file.")],
    out: Annotated[Path, typer.Option(help="File to write: .params, with --to .npz or .safetensors.")],
    source: Annotated[str | None, typer.Option("--from", metavar="FORMAT", help="Format of IN: megvii-spos.")] = None,
    target: Annotated[str | None, typer.Option("--to", metavar="FORMAT", help="The other way: format of OUT.")] = None,
    arch: Annotated[Path | None, typer.Option(help="arch.json of the network.")] = None,
    space: Annotated[str | None, typer.Option(help="Search space, for formats of a whole supernet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert official PyTorch weights to a file for net.load_parameters, or with --to back.

    Example:  oneshot-nas arch oneshot > arch.json; oneshot-nas convert --from megvii-spos weights.npz --arch arch.json --out
    oneshot.params
    """
    if (source is None) == (target is None):
        raise UserError("give either --from FORMAT (official weights to .params) or --to FORMAT (the other way)")
    name = convert.check_format(source or target or "")
    if arch is None or space is not None:
        raise UserError(f"{name} holds one fixed network; give its architecture with --arch FILE and no --space")
    chosen = read_arch_file(str(arch))
    if source is not None:
        if out.suffix != ".params":
            raise UserError(f"--out {out} must end in .params")
        arrays = convert.from_megvii(convert.read_state(weights), chosen)
        convert.write_network(out, arrays, chosen, name)
        note = "the network expects BGR images with values 0 to 255, not normalised (recorded beside the file)"
    else:
        arrays = convert.to_megvii(convert.read_network(weights), chosen)
        convert.write_state(out, arrays)
        note = "num_batches_tracked is 0 everywhere"
    if as_json:
        typer.echo(json.dumps({"out": str(out), "arrays": len(arrays), "note": note}))
    else:
        typer.echo(f"wrote {out}: {len(arrays)} arrays; {note}")
