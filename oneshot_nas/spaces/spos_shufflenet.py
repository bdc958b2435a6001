"""Single Path One-Shot's ShuffleNet space: 20 blocks, four operators, ten middle widths.

Source: Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020, tables 1 and 8;
the SE and tail variants follow the MXNet predecessor and ShuffleNetV2+.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oneshot_nas.arch import Choice, Option, Unit, Value
from oneshot_nas.ops import Chain, Op, ShuffleUnit, ShuffleXception
from oneshot_nas.plan import Plan, chain_layers
from oneshot_nas.primitives import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    GlobalPool,
    Primitive,
    SqueezeExcite,
    round_up,
)

OPERATORS = ("shuffle3", "shuffle5", "shuffle7", "xception")
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
REPEATS = (4, 4, 8, 4)
STEM = 16


@dataclass(frozen=True)
class Layout:
    """Output channels and first-block strides of the four stages."""

    channels: tuple[int, int, int, int]
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    split: str = "even_odd"


LAYOUTS = {
    "oneshot": Layout((64, 160, 320, 640)),
    "shufflenetv2+": Layout((48, 128, 256, 512)),
    "mmrazor": Layout((64, 160, 320, 640), split="contiguous"),
    "small": Layout((32, 64, 128, 256), strides=(2, 2, 1, 2)),
}

OPTIONS = {
    "se": Option(False, (False, True)),
    "tail": Option("conv", ("conv", "pooled")),
    "layout": Option("oneshot", tuple(LAYOUTS)),
    "stem_stride": Option(2, (2, 1)),
    "last_channels": Option(1024, low=1, high=8192),
    "classifier_bias": Option(True, (True, False)),
    "input_size": Option(224, low=8, high=1024),
    "classes": Option(1000, low=2, high=100_000),
}


def choices(options: Mapping[str, Value]) -> tuple[Choice, ...]:
    """Operator and middle-width scale of each of the 20 blocks; published block-only lists mean scale 1.0."""
    blocks = sum(REPEATS)
    return (
        Choice("block", (OPERATORS,) * blocks),
        Choice("scale", (SCALES,) * blocks, ordered=True, default=1.0),
    )


def units(options: Mapping[str, Value]) -> tuple[Unit, ...]:
    """Each block's cost depends on its own operator and scale only."""
    return tuple(Unit(name, (("block", index), ("scale", index))) for index, name in enumerate(block_names()))


def block_names() -> list[str]:
    """Layer names of the 20 blocks, first to last."""
    return [f"stage{stage}.block{block}" for stage, count in enumerate(REPEATS, 1) for block in range(1, count + 1)]


def middle_width(out_channels: int, scale: float) -> int:
    """Width inside a block: half of `out_channels` times `scale`, truncated (the official rule, in whole tenths)."""
    return out_channels // 2 * round(scale * 10) // 10


def plan(options: Mapping[str, Value], choices: Mapping[str, tuple]) -> Plan:
    """The 22 layers of one architecture: stem, 20 blocks, head."""
    size = int(options["input_size"])
    return chain_layers((3, size, size), _entries(options, choices))


def _entries(options: Mapping[str, Value], choices: Mapping[str, tuple]) -> Iterator[tuple[str, Op, str, str]]:
    layout = LAYOUTS[str(options["layout"])]
    se = bool(options["se"])
    yield "stem", Chain(3, (
        Conv("conv", 3, STEM, 3, int(options["stem_stride"]), init=0.01), BatchNorm("bn", STEM, beta=1e-4),
        Activation("hswish" if se else "relu"))), "", ""
    names = iter(block_names())
    decided = zip(choices["block"], choices["scale"], strict=True)
    channels = STEM
    for stage, repeats in enumerate(REPEATS):
        for block in range(repeats):
            name, (operator, scale) = next(names), next(decided)
            xception = operator == "xception"
            op = (ShuffleXception if xception else ShuffleUnit)(
                in_channels=channels,
                out_channels=layout.channels[stage],
                mid_channels=middle_width(layout.channels[stage], scale),
                kernel=3 if xception else int(operator[-1]),
                stride=layout.strides[stage] if block == 0 else 1,
                activation="hswish" if se and stage > 0 else "relu",
                se=se and stage > 1,
                split=layout.split,
            )
            yield name, op, operator, name
            channels = op.out_channels
    yield "head", Chain(channels, _head(options, channels)), "", ""


def _head(options: Mapping[str, Value], channels: int) -> tuple[Primitive, ...]:
    """Last convolution, pooling and classifier of the chosen tail."""
    se, last = bool(options["se"]), int(options["last_channels"])
    activation = Activation("hswish" if se else "relu")
    tail: tuple[Primitive, ...]
    if options["tail"] == "pooled":  # MobileNetV3 style: pool first, then 1x1 with bias and without BatchNorm
        tail = (GlobalPool(), Conv("conv", channels, last, bias=True, init=0.01), activation)
    elif se:  # ShuffleNetV2+ style: three quarters of the width before pooling, a gate, the rest after it
        narrow = max(8, round_up(last * 3 // 4, 8))
        tail = (
            Conv("conv", channels, narrow), BatchNorm("bn", narrow, beta=1e-4), activation, GlobalPool(),
            SqueezeExcite("se", narrow, round_up(narrow // 4, 8)), Conv("mix", narrow, last, bias=True, init=0.01), activation,
        )
    else:
        tail = (Conv("conv", channels, last), BatchNorm("bn", last, beta=1e-4), activation, GlobalPool())
    dropout = 0.0 if options["layout"] == "mmrazor" else 0.2 if se else 0.1
    classifier = Dense("classifier", last, int(options["classes"]), bias=bool(options["classifier_bias"]))
    return (*tail, *((Dropout(dropout),) if dropout else ()), classifier)
