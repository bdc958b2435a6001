"""AttentiveNAS' space: MobileNetV3-style blocks with elastic resolution, width, depth, kernel and expansion.

Source: Wang et al., "AttentiveNAS: Improving Neural Architecture Search via Attentive Sampling", CVPR 2021, table 6. One
width, kernel and expansion per stage; every block has a shortcut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oneshot_nas.arch import Choice, Option, Unit
from oneshot_nas.plan import Plan
from oneshot_nas.primitives import Activation, BatchNorm, Conv, Dense, Dropout, GlobalPool
from oneshot_nas.spaces._elastic import RESOLUTIONS, Stage, Table, elastic_choices, elastic_plan, elastic_units

LAST_EXPAND = 6  # the 1x1 before the pool has six times the width of the last stage

LAYOUTS = {
    "attentive": Table((192, 224, 256, 288), (16, 24), 2, (
        Stage((16, 24), (1, 2), (3, 5), (1,), 1),
        Stage((24, 32), (3, 4, 5), (3, 5), (4, 5, 6), 2),
        Stage((32, 40), (3, 4, 5, 6), (3, 5), (4, 5, 6), 2, se=True),
        Stage((64, 72), (3, 4, 5, 6), (3, 5), (4, 5, 6), 2),
        Stage((112, 120, 128), (3, 4, 5, 6, 7, 8), (3, 5), (4, 5, 6), 1, se=True),
        Stage((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (3, 5), (6,), 2, se=True),
        Stage((216, 224), (1, 2), (3, 5), (6,), 1, se=True),
    ), (1792, 1984)),
    "small": Table((24, 28, 32), (8, 16), 1, (  # nets of 2 to 15 M multiply-adds at 32x32
        Stage((8, 16), (1,), (3, 5), (1,), 1),
        Stage((16, 24), (1, 2), (3, 5), (2, 3), 2),
        Stage((24, 32), (1, 2), (3, 5), (2, 3), 2, se=True),
        Stage((32, 40), (1, 2), (3, 5), (2, 3, 4), 1),
        Stage((40, 48), (1, 2), (3, 5), (2, 3, 4), 1, se=True),
        Stage((64, 72, 80), (1, 2, 3), (3, 5), (3, 4), 2, se=True),
        Stage((80, 96), (1,), (3, 5), (3,), 1, se=True),
    ), (192, 256)),
}

OPTIONS = {
    "layout": Option("attentive", tuple(LAYOUTS)),
    "resolutions": RESOLUTIONS,
    "input_size": Option(224, low=8, high=1024),
    "classes": Option(1000, low=2, high=100_000),
}


def choices(options: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Resolution x1, width x9, depth x7, kernel x7, expand x7."""
    return elastic_choices(LAYOUTS[str(options["layout"])], options)


def units(options: Mapping[str, Any]) -> tuple[Unit, ...]:
    """Every stage depends on the resolution and on its own and the previous width."""
    return elastic_units(LAYOUTS[str(options["layout"])])


def plan(options: Mapping[str, Any], choices: Mapping[str, tuple]) -> Plan:
    """Resize, stem, the chosen blocks, the last 1x1, and the head."""
    width, last = choices["width"][-2:]
    wide = LAST_EXPAND * width
    head = {
        "last": (Conv("conv", width, wide, init="uniform_in"), BatchNorm("bn", wide), Activation("swish")),
        "head": (GlobalPool(), Conv("mix", wide, last, init="uniform_in"), Activation("swish"), Dropout(0.2),
                 Dense("classifier", last, int(options["classes"]), init="uniform_in")),
    }
    return elastic_plan(LAYOUTS[str(options["layout"])], options, choices, head)
