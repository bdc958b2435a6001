"""``oneshot-nas evaluate``: accuracy of architectures with a supernet's weights, or of a trained fixed network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer


def command(
    supernet: Annotated[str | None, typer.Option(help="run folder of a trained supernet", metavar="RUN")] = None,
    arch: Annotated[str | None, typer.Option(help="arch.json, JSON lines, or - for standard input", metavar="FILE|-")] = None,
    run: Annotated[str | None, typer.Option(help="run folder of a trained fixed network", metavar="RUN")] = None,
    calib_images: Annotated[int | None, typer.Option(help="held-out images that set BatchNorm statistics (default: all)")] = None,
    val_images: Annotated[int | None, typer.Option(help="held-out images that are classified (default: all)")] = None,
    method: Annotated[str, typer.Option(help="BatchNorm recalibration: population or cumulative")] = "population",
    json_: Annotated[bool, typer.Option("--json", help="one JSON line per architecture on standard output")] = False,
) -> None:
    """Print top-1 and top-5 accuracy, after exact BatchNorm recalibration for a supernet.

    A supernet is judged on images held out of its training set; a fixed network on the validation set.

    Example:  oneshot-nas evaluate --supernet runs/supernet --arch runs/search/arch.json --json
    """
    import json
    import sys

    from oneshot_nas.errors import UserError

    if (supernet is None) == (run is None) or (supernet is not None) != (arch is not None):
        raise UserError("give either --supernet RUN with --arch FILE, or --run RUN of a trained fixed network")
    if supernet is not None:
        from oneshot_nas.arch import read_archs
        from oneshot_nas.indicators.accuracy import load_evaluator

        archs = list(read_archs(str(arch)))
        evaluator = load_evaluator(supernet, calib_images, val_images, method=method)
        for found in archs:
            evaluator.space.check(found)
        results: Iterator[dict[str, Any]] = ({**evaluator(found), "images": evaluator.images} for found in archs)
    else:
        from oneshot_nas.indicators.accuracy import evaluate_fixed

        results = iter([evaluate_fixed(str(run))])
    for scores in results:
        if json_:
            print(json.dumps(scores), flush=True)
        else:
            print(f"top1 {scores['top1']:.4f}  top5 {scores['top5']:.4f}  on {scores['images']} images", flush=True)
    if supernet is not None:
        print(f"next: oneshot-nas train --recipe RETRAIN.yaml --arch {arch} --out {supernet}-retrain", file=sys.stderr)
