"""`oneshot-nas shrink`: drops the operators whose weights turned least in training, until a small space is left (ABS)."""

from __future__ import annotations

from typing import Annotated

import typer

# what --set says for the shrunk space's supernet too
ABOUT_DATA = ("data", "records", "options", "device", "contexts", "holdout", "mean", "std", "channels", "crop_ratio")


def command(
    recipe: Annotated[str, typer.Option(help="YAML recipe of a supernet; its epochs set the schedule.", metavar="FILE.yaml")],
    out: Annotated[str, typer.Option(help="Run folder; the same command again resumes in it.", metavar="RUN")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a value of the recipe.", metavar="KEY=VALUE")] = None,
    drop: Annotated[int, typer.Option(help="Operators that every step drops.")] = 7,
    until: Annotated[float, typer.Option(help="Stop when so many combinations of operators, or fewer, are left.")] = 1e6,
    flops: Annotated[str | None, typer.Option(help="FLOPs limits of the sampled architectures.", metavar="LO:HI")] = None,
    params: Annotated[str | None, typer.Option(help="Their parameter limits, such as :6M.", metavar="LO:HI")] = None,
    rule: Annotated[str, typer.Option(help="How FLOPs are counted; see cost --help.")] = "macs",
    over: Annotated[str | None, typer.Option(help="Choices whose values are dropped (default: the operators).")] = None,
    first_epochs: Annotated[int, typer.Option(help="Epochs of training before the first step.")] = 100,
    step_epochs: Annotated[int, typer.Option(help="Epochs of training before every other step.")] = 5,
    samples: Annotated[int, typer.Option(help="Architectures whose mean angle scores an operator.")] = 1000,
    refresh: Annotated[int, typer.Option(help="Measure from new base weights once more operators than this are gone.")] = 50,
    json_: Annotated[bool, typer.Option("--json", help="Print the shrunk space as one JSON line.")] = False,
) -> None:
    """Shrink the space of a supernet step by step: train, score every operator by the angle of its weights, drop the worst.

    The space that is left is RUN/space.json, which `train --set allowed=FILE` and `search --space FILE` accept. The defaults
    are those of ABS on the MobileNet space, where the limit is --flops :600M --rule abs-lut.

    Example:  oneshot-nas shrink --recipe recipes/cifar10_proxyless_supernet.yaml --set data=DATA --out runs/shrink --flops :12M
    --first-epochs 8 --step-epochs 1
    """
    import json
    import sys
    from pathlib import Path

    from oneshot_nas.config import read_recipe
    from oneshot_nas.costs.analytic import check_rule
    from oneshot_nas.costs.limits import ANY, Limits, parse_range
    from oneshot_nas.shell import command
    from oneshot_nas.spacefile import space_json

    parsed = read_recipe(recipe, set_ or ())
    limits = Limits(parse_range(flops, "FLOPs") if flops is not None else ANY,
                    parse_range(params, "params") if params is not None else ANY, check_rule(rule))

    from oneshot_nas.train.shrink import Shrinking, shrink

    names = tuple(name.strip() for name in over.split(",")) if over else ()
    plan = Shrinking(names, limits, drop, until, first_epochs, step_epochs, samples, refresh)
    space = shrink(parsed, out, plan)
    if json_:
        print(json.dumps(space_json(space)))
    else:
        print("\n".join(f"{choice.name}[{position}]  {' '.join(map(str, values))}"
                        for choice in space.choices for position, values in enumerate(choice.values)))
    kept = [each for each in set_ or () if each.partition("=")[0].partition(".")[0] in ABOUT_DATA]
    again = ["train", "--recipe", recipe, *(word for each in kept for word in ("--set", each)),
             "--set", f"allowed={Path(out) / 'space.json'}", "--out", f"{Path(out)}-supernet"]
    print(f"next: {command(*again)}", file=sys.stderr)
