"""Once-for-All's MobileNetV3 space: a kernel and an expansion for every block, a depth for every stage, fixed widths.

Source: Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020. Smaller kernels are
the centre of the larger one times a matrix that the supernet trains; a fixed network has the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from oneshot_nas.arch import Choice, Option, Unit
from oneshot_nas.plan import Plan
from oneshot_nas.primitives import Activation, BatchNorm, Conv, Dense, Dropout, GlobalPool
from oneshot_nas.spaces._elastic import RESOLUTIONS, Decided, Stage, Table, block_name, plan_of, round8

DEPTHS, KERNELS, EXPANDS = (2, 3, 4), (3, 5, 7), (3, 4, 6)
STEM, LAST, MIX = 16, 960, 1280  # widths at width_mult 1: first convolution and block, 1x1 before and after the pool
# Width, stride of the first block, squeeze-and-excite and activation of the five stages
STAGES = (
    (24, 2, False, "relu"), (40, 2, True, "relu"), (80, 2, False, "hswish"), (112, 1, True, "hswish"), (160, 2, True, "hswish"),
)
MOST = DEPTHS[-1]

OPTIONS = {
    "width_mult": Option(1.0, (1.0, 1.2)),
    "resolutions": RESOLUTIONS,
    "input_size": Option(224, low=8, high=1024),
    "classes": Option(1000, low=2, high=100_000),
}


@lru_cache(maxsize=2)
def table(width_mult: float) -> Table:
    """The stages at a width multiplier; the first stage is the one block that is not searched."""
    stem = round8(STEM * width_mult)
    stages = (Stage((round8(width * width_mult),), DEPTHS, KERNELS, EXPANDS, stride, se, activation)
              for width, stride, se, activation in STAGES)
    return Table((128, 160, 192, 224), (stem,), 2, (Stage((stem,), (1,), (3,), (1,), 1, activation="relu"), *stages),
                 (round8(MIX * width_mult),), drop_connect=0.0, activation="hswish", shortcut="identity", last_gamma=1.0,
                 init="he_out", transform=True)


def choices(options: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Resolution x1, depth x5, kernel x20, expand x20; kernels and expansions go stage by stage, four blocks each."""
    blocks = len(STAGES) * MOST
    return (
        Choice("resolution", (table(float(options["width_mult"])).resolved(options),), ordered=True),
        Choice("depth", (DEPTHS,) * len(STAGES), ordered=True),
        Choice("kernel", (KERNELS,) * blocks, ordered=True),
        Choice("expand", (EXPANDS,) * blocks, ordered=True),
    )


def units(options: Mapping[str, Any]) -> tuple[Unit, ...]:
    """A block depends on the resolution, its stage's depth, and its own kernel and expansion."""
    resolution = ("resolution", 0)
    blocks = (Unit(block_name(stage + 1, block), (resolution, ("depth", stage), ("kernel", place), ("expand", place)))
              for stage, block, place in _places())
    return (*(Unit(name, (resolution,)) for name in ("resize", "stem", block_name(0, 0), "head")), *blocks)


def plan(options: Mapping[str, Any], choices: Mapping[str, tuple]) -> Plan:
    """Resize, stem, the first block, the chosen blocks, and the head."""
    width_mult = float(options["width_mult"])
    found = table(width_mult)
    blocks = tuple(tuple((choices["kernel"][MOST * stage + block], choices["expand"][MOST * stage + block])
                         for block in range(depth)) for stage, depth in enumerate(choices["depth"]))
    widths = (*found.stem, *(stage.widths[0] for stage in found.stages))
    width, last, mix = widths[-1], round8(LAST * width_mult), found.last[0]
    head = {
        "last": (Conv("conv", width, last, init="he_out"), BatchNorm("bn", last), Activation("hswish")),
        "head": (GlobalPool(), Conv("mix", last, mix, init="he_out"), Activation("hswish"), Dropout(0.1),
                 Dense("classifier", mix, int(options["classes"]), init="uniform_in")),
    }
    return plan_of(found, options, Decided(choices["resolution"][0], widths, (((3, 1),), *blocks)), head, block_name)


def canonical(options: Mapping[str, Any], choices: Mapping[str, tuple]) -> Mapping[str, tuple]:
    """Kernel and expansion of the blocks that are left out become the smallest."""
    runs = [block < choices["depth"][stage] for stage, block, _ in _places()]
    reset = {name: tuple(value if run else values[0] for value, run in zip(choices[name], runs, strict=True))
             for name, values in (("kernel", KERNELS), ("expand", EXPANDS))}
    return {**choices, **reset}


def _places() -> Iterator[tuple[int, int, int]]:
    """(searched stage from 0, block from 0, position in the choices) of every block."""
    return ((stage, block, MOST * stage + block) for stage in range(len(STAGES)) for block in range(MOST))
