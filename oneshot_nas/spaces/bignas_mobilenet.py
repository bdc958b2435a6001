"""BigNAS' space: MobileNet blocks, all with squeeze-and-excite, elastic resolution, width, depth and kernel.

Source: Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models", ECCV 2020, as its public
re-implementation xfey/pytorch-BigNAS lists it. One width and kernel per stage; every block has a shortcut. Gates squeeze to a
quarter of the block's input, as in EfficientNet: with a quarter of the expanded width the smallest network would have 5.6 M
parameters, more than the published BigNASModel-S (4.5 M) and M (5.5 M).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oneshot_nas.arch import Choice, Option, Unit
from oneshot_nas.plan import Plan
from oneshot_nas.primitives import Activation, BatchNorm, Conv, Dense, Dropout, GlobalPool
from oneshot_nas.spaces._elastic import RESOLUTIONS, Stage, Table, elastic_choices, elastic_plan, elastic_units

TABLE = Table((192, 224, 288, 320), (32, 40), 2, (
    Stage((16, 24), (1, 2), (3,), (1,), 1, se=True),
    Stage((24, 32), (2, 3), (3,), (6,), 2, se=True),
    Stage((40, 48), (2, 3), (3, 5), (6,), 2, se=True),
    Stage((80, 88), (2, 3, 4), (3, 5), (6,), 2, se=True),
    Stage((112, 120, 128), (2, 3, 4, 5, 6), (3, 5), (6,), 1, se=True),
    Stage((192, 200, 208, 216), (2, 3, 4, 5, 6), (3, 5), (6,), 2, se=True),
    Stage((320, 352), (1, 2), (3, 5), (6,), 1, se=True),
), (1280, 1408), drop_stages=7, gate_of="input")

OPTIONS = {
    "resolutions": RESOLUTIONS,
    "input_size": Option(224, low=8, high=1024),
    "classes": Option(1000, low=2, high=100_000),
}


def choices(options: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Resolution x1, width x9, depth x7, kernel x7, expand x7 (one value each)."""
    return elastic_choices(TABLE, options)


def units(options: Mapping[str, Any]) -> tuple[Unit, ...]:
    """Every stage depends on the resolution and on its own and the previous width."""
    return elastic_units(TABLE)


def plan(options: Mapping[str, Any], choices: Mapping[str, tuple]) -> Plan:
    """Resize, stem, the chosen blocks, the last 1x1 with BatchNorm, and the head."""
    width, last = choices["width"][-2:]
    head = {
        "last": (Conv("conv", width, last, init="uniform_in"), BatchNorm("bn", last), Activation("swish")),
        "head": (GlobalPool(), Dropout(0.2), Dense("classifier", last, int(options["classes"]), init="uniform_in")),
    }
    return elastic_plan(TABLE, options, choices, head)
