"""``oneshot-nas export``: a trained network as files that other programs load, each read back and compared."""

from __future__ import annotations

from typing import Annotated, Any

import typer

FORMATS = ("symbol", "onnx")
PLACES = ("inside", "outside")


def command(
    out: Annotated[str, typer.Option(help="folder for the files", metavar="DIR")],
    run: Annotated[str | None, typer.Option(help="run folder of a trained fixed network", metavar="RUN")] = None,
    supernet: Annotated[str | None, typer.Option(help="run folder of a supernet, with --arch", metavar="RUN")] = None,
    arch: Annotated[str | None, typer.Option(
        help="architecture to take from the supernet: arch.json, JSON lines (each exported as NAME-1, NAME-2 ...), or - for "
             "standard input", metavar="FILE|-")] = None,
    format_: Annotated[str, typer.Option("--format", help="comma list of symbol, onnx")] = "symbol,onnx",
    resize: Annotated[str, typer.Option(
        help="inside: the network resizes its images to its resolution itself; outside: it takes images of that resolution",
        metavar="inside|outside")] = "inside",
    name: Annotated[str, typer.Option(help="name of the files")] = "network",
    calib_images: Annotated[int | None, typer.Option(
        help="held-out images that set a subnet's BatchNorm statistics, as in search and evaluate (default: all)")] = None,
    method: Annotated[str, typer.Option(help="BatchNorm recalibration of a subnet: population or cumulative")] = "population",
    json_: Annotated[bool, typer.Option("--json", help="one JSON line on standard output")] = False,
) -> None:
    """Export a fixed network, or an architecture with a supernet's weights after recalibration.

    Every file is read back and its output compared with the network's before success is said.

    Example:  oneshot-nas export --run runs/retrain --format symbol,onnx --out runs/retrain/export

    Example:  oneshot-nas export --supernet runs/elastic --arch runs/family/family.jsonl --out runs/family/export
    """
    import json
    import sys
    from pathlib import Path

    from oneshot_nas.errors import UserError
    from oneshot_nas.later import check_later

    formats = [word.strip() for word in format_.split(",")]
    for word in formats:
        check_later(word, f"formats are {', '.join(FORMATS)}")
        if word not in FORMATS:
            raise UserError(f"unknown format '{word}'; use {', '.join(FORMATS)}")
    if not name or Path(name).name != name:
        raise UserError(f"--name '{name}' is no file name; --out gets NAME-symbol.json, NAME-0000.params and NAME.onnx")
    if resize not in PLACES:
        raise UserError(f"--resize {resize} is none of {', '.join(PLACES)}")
    if (run is None) == (supernet is None) or (supernet is not None) != (arch is not None):
        raise UserError("give either --run RUN of a fixed network, or --supernet RUN with --arch FILE")

    from oneshot_nas.arch import read_archs
    from oneshot_nas.cli._supernet import tell_unfinished
    from oneshot_nas.export.deliver import deliver, from_run, from_supernet, resize_outside
    from oneshot_nas.export.onnx import require
    from oneshot_nas.progress import track

    for module in ("onnx", "onnxruntime") if "onnx" in formats else ():
        require(module)
    if run is not None and (calib_images is not None or method != "population"):
        raise UserError("--calib-images and --method recalibrate a subnet of --supernet; a trained network keeps its statistics")
    tell_unfinished(str(run or supernet))
    archs = list(read_archs(str(arch))) if supernet is not None else []
    networks = [from_run(run)] if run is not None else from_supernet(str(supernet), archs, calib_images, method)
    if json_ or not sys.stdout.isatty():  # the lines are progress there
        networks = track(networks, "exporting", max(1, len(archs)), "network")
    everything = []
    for number, network in enumerate(networks, 1):
        shipped = resize_outside(network) if resize == "outside" else network
        results = deliver(shipped, out, formats, name if len(archs) < 2 else f"{name}-{number}")
        everything += results
        for result in () if json_ else results:
            print(_line(result), flush=True)
    if json_:
        print(json.dumps(everything))


def _line(result: dict[str, Any]) -> str:
    """One format's files and how far they are from the network."""
    random = result["randomised"]
    blown = f"; one unit in the last place of the images moves them by {result['unit']:.1e}" if "unit" in result else ""
    return (f"{result['format']:7} {', '.join(result['files'])}  max abs diff {result['max_abs_diff']:.1e} (outputs' std "
            f"{result['std']:.3g}{blown}); with random weights {random['max_abs_diff']:.1e} (std {random['std']:.3g})")
