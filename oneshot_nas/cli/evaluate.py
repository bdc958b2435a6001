"""``oneshot-nas evaluate``: scores of architectures with a supernet's weights, or accuracy of a trained fixed network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

SPLITS = ("held-out", "val")


def command(
    supernet: Annotated[str | None, typer.Option(help="run folder of a trained supernet", metavar="RUN")] = None,
    arch: Annotated[str | None, typer.Option(help="arch.json, JSON lines, or - for standard input", metavar="FILE|-")] = None,
    run: Annotated[str | None, typer.Option(help="run folder of a trained fixed network", metavar="RUN")] = None,
    indicator: Annotated[str, typer.Option(help="what scores: accuracy; bn-gamma or angle, which need no images")] = "accuracy",
    base_weights: Annotated[str | None, typer.Option(
        help="weights that angle measures from (default: the supernet's first ones)", metavar="FILE.params")] = None,
    calib_images: Annotated[int | None, typer.Option(help="held-out images that set BatchNorm statistics (default: all)")] = None,
    val_images: Annotated[int | None, typer.Option(help="held-out images that are classified (default: all)")] = None,
    split: Annotated[str, typer.Option(
        help="what a supernet's accuracy is measured on: held-out training images, or, for a final figure, the validation set",
        metavar="held-out|val")] = SPLITS[0],
    method: Annotated[str, typer.Option(help="BatchNorm recalibration: population or cumulative")] = "population",
    json_: Annotated[bool, typer.Option("--json", help="one JSON line per architecture on standard output")] = False,
) -> None:
    """Print top-1 and top-5 accuracy, after exact BatchNorm recalibration for a supernet; or another indicator's score.

    A supernet is judged on images held out of its training set, or with --split val on the validation set, as a fixed network
    is.

    Example:  oneshot-nas evaluate --supernet runs/supernet --arch runs/search/arch.json --json

    Example:  oneshot-nas evaluate --supernet runs/bnnas --arch archs.jsonl --indicator bn-gamma --json
    """
    import json
    import sys
    from pathlib import Path

    from oneshot_nas.cli._supernet import tell_unfinished, tell_useless
    from oneshot_nas.cli.search import INDICATORS
    from oneshot_nas.errors import UserError
    from oneshot_nas.later import check_later
    from oneshot_nas.values import show

    known = [name for name, each in INDICATORS.items() if not each.screened]
    if (supernet is None) == (run is None) or (supernet is not None) != (arch is not None):
        raise UserError("give either --supernet RUN with --arch FILE, or --run RUN of a trained fixed network")
    check_later(indicator, f"there are {show(known)}")
    if indicator not in known:
        raise UserError(f"unknown indicator '{indicator}'; there are {show(known)}")
    if run is not None and indicator != "accuracy":
        raise UserError(f"indicator '{indicator}' scores architectures of a supernet; give --supernet RUN with --arch FILE")
    if base_weights is not None and indicator != "angle":
        raise UserError(f"--base-weights goes with --indicator angle, got --indicator {indicator}")
    if split not in SPLITS:
        raise UserError(f"--split {split} is none of {', '.join(SPLITS)}")
    if split == "val" and (val_images is not None or indicator != "accuracy"):
        raise UserError("--split val measures accuracy on all validation images; leave out --val-images and other indicators")
    if calib_images is not None or val_images is not None or method != "population":
        options = "leave out --calib-images, --val-images and --method"
        if run is not None:
            raise UserError(f"a trained network keeps its BatchNorm statistics and is judged on all validation images: {options}")
        if not INDICATORS[indicator].images:
            raise UserError(f"indicator '{indicator}' looks at no images: {options}")
    tell_unfinished(str(run or supernet))
    archs = []
    if supernet is not None:
        from oneshot_nas.arch import read_archs
        from oneshot_nas.progress import track

        archs = list(read_archs(str(arch)))
        evaluator, images = _load(supernet, indicator, base_weights, calib_images, val_images, method, split)
        for found in archs:
            evaluator.space.check(found)
        shown = archs if sys.stdout.isatty() else track(archs, "evaluating", unit="architecture")  # the lines are progress there
        results: Iterator[dict[str, Any]] = ({"arch": found.to_json(), **evaluator(found), **images} for found in shown)
    else:
        from oneshot_nas.indicators.accuracy import evaluate_fixed

        results = iter([evaluate_fixed(str(run))])
    for scores in results:
        if json_:
            print(json.dumps(scores), flush=True)
        elif "top1" in scores:
            print(f"top1 {scores['top1']:.4f}  top5 {scores['top5']:.4f}  on {scores['images']} images", flush=True)
        else:
            print("  ".join(f"{name} {value:.6f}" for name, value in scores.items() if name != "arch"), flush=True)
        tell_useless(scores, str(supernet or run))
    if len(archs) == 1 and Path(str(arch)).is_file():  # not standard input, nor a pipe
        from oneshot_nas.cli._found import images_words, network_command, run_name

        words = str(supernet), str(arch), run_name(str(arch)), images_words(calib_images)
        print(f"next: {network_command(*words)}", file=sys.stderr)


def _load(supernet: str, indicator: str, base_weights: str | None, calib_images: int | None, val_images: int | None,
          method: str, split: str) -> tuple[Any, dict[str, Any]]:
    """(evaluator, what it looks at: {"images": classified, "calibration": images, "augment", "method"} or {}).

    Raises: UserError.
    """
    from oneshot_nas.cli.search import INDICATORS

    chosen = INDICATORS[indicator]
    if chosen.images:
        evaluator = chosen.load()(supernet, calib_images, val_images, method=method, split=split)
        about = {name: evaluator.about[name] for name in ("calibration", "augment", "method")}
        return evaluator, {"images": evaluator.images, **about}
    return chosen.load()(supernet, **({"base_weights": base_weights} if base_weights else {})), {}
