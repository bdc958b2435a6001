"""`oneshot-nas sample`: random architectures within limits, one JSON object per line."""

from __future__ import annotations

import json
from typing import Annotated

import numpy as np
import typer

from oneshot_nas.arch import get_space, parse_options
from oneshot_nas.costs.limits import parse_limits, sample_within

PORTION = 1000  # architectures drawn and printed at a time


def command(
    space: Annotated[str, typer.Argument(help="The search space.", metavar="SPACE")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of architectures.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same architectures.")] = 0,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A space option; may be repeated.")] = None,
    flops: Annotated[str | None, typer.Option(help="FLOPs limits as LO:HI, such as 290M:330M.")] = None,
    params: Annotated[str | None, typer.Option(help="Parameter limits as LO:HI, such as :4M.")] = None,
    rule: Annotated[str, typer.Option(help="How FLOPs are counted; see cost --help.")] = "macs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, as it does anyhow.")] = False,
) -> None:
    """Print random architectures, uniform among those inside the limits, one JSON object per line.

    Example:  oneshot-nas sample spos_shufflenet -n 10 --seed 0 --flops 290M:330M --params :4M
    """
    chosen = get_space(space, **parse_options(space, option or []))
    limits = parse_limits(flops, params, rule)
    rng = np.random.default_rng(seed)
    for start in range(0, count, PORTION):
        for arch in sample_within(chosen, limits, rng, min(PORTION, count - start)):
            typer.echo(json.dumps(arch.to_json()))
