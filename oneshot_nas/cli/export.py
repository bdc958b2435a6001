"""``oneshot-nas export``: a trained network as files that other programs load, each read back and compared."""

from __future__ import annotations

from typing import Annotated

import typer

FORMATS = ("symbol", "onnx")
PLACES = ("inside", "outside")


def command(
    out: Annotated[str, typer.Option(help="folder for the files", metavar="DIR")],
    run: Annotated[str | None, typer.Option(help="run folder of a trained fixed network", metavar="RUN")] = None,
    supernet: Annotated[str | None, typer.Option(help="run folder of a supernet, with --arch", metavar="RUN")] = None,
    arch: Annotated[str | None, typer.Option(help="architecture to take from the supernet", metavar="FILE")] = None,
    format_: Annotated[str, typer.Option("--format", help="comma list of symbol, onnx")] = "symbol,onnx",
    resize: Annotated[str, typer.Option(
        help="inside: the network resizes its images to its resolution itself; outside: it takes images of that resolution",
        metavar="inside|outside")] = "inside",
    name: Annotated[str, typer.Option(help="name of the files")] = "network",
    json_: Annotated[bool, typer.Option("--json", help="one JSON line on standard output")] = False,
) -> None:
    """Export a fixed network, or an architecture with a supernet's weights after recalibration.

    Every file is read back and its output compared with the network's before success is said.

    Example:  oneshot-nas export --run runs/retrain --format symbol,onnx --out runs/retrain/export
    """
    import json

    from oneshot_nas.errors import UserError
    from oneshot_nas.later import check_later

    formats = [word.strip() for word in format_.split(",")]
    for word in formats:
        check_later(word, f"formats are {', '.join(FORMATS)}")
        if word not in FORMATS:
            raise UserError(f"unknown format '{word}'; use {', '.join(FORMATS)}")
    if resize not in PLACES:
        raise UserError(f"--resize {resize} is none of {', '.join(PLACES)}")
    if (run is None) == (supernet is None) or (supernet is not None) != (arch is not None):
        raise UserError("give either --run RUN of a fixed network, or --supernet RUN with --arch FILE")

    from oneshot_nas.export.deliver import deliver, from_run, from_supernet, resize_outside

    network = from_run(run) if run is not None else from_supernet(str(supernet), str(arch))
    if resize == "outside":
        network = resize_outside(network)
    results = deliver(network, out, formats, name)
    if json_:
        print(json.dumps(results))
        return
    for result in results:
        files = ", ".join(result["files"])
        print(f"{result['format']:7} {files}  max abs diff {result['max_abs_diff']:.2e}, outputs' std {result['std']:.3g}")
