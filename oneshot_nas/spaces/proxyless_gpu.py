"""The MobileNet space of ProxylessNAS (GPU): 21 layers, each an inverted residual (kernel 3, 5, 7; expansion 3, 6) or a skip.

Source: Cai et al., "ProxylessNAS", ICLR 2019, as BN-NAS (Chen et al., ICCV 2021) and ABS (Hu et al., ECCV 2020) use it.
Variants: 'full' allows a skip where a layer keeps its shape; 'bnnas' skips layers 1, 5, 6 and 9 (counted from 0) always and no
others; 'mmrazor' allows it everywhere, as a 1x1 convolution with BatchNorm where the shape changes, and has no dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oneshot_nas.arch import Choice, Option, Unit, Value
from oneshot_nas.ops import Chain, MBConv, Op, Skip
from oneshot_nas.plan import Plan, chain_layers
from oneshot_nas.primitives import Activation, BatchNorm, Conv, Dense, Dropout, GlobalPool
from oneshot_nas.values import FrozenDict

SKIP = "skip"
OPERATORS = {"k3e3": (3, 3), "k3e6": (3, 6), "k5e3": (5, 3), "k5e6": (5, 6), "k7e3": (7, 3), "k7e6": (7, 6)}  # kernel, expansion
ORDERS = FrozenDict({
    "bnnas": FrozenDict({**dict(enumerate(OPERATORS)), -1: SKIP}),  # BN-NAS and AngleNAS
    "mmrazor": FrozenDict(enumerate(("k3e3", "k5e3", "k7e3", "k3e6", "k5e6", "k7e6", SKIP))),
})
REPEATS = (4, 4, 4, 4, 4, 1)
SKIPPED = (1, 5, 6, 9)  # layers that BN-NAS leaves out, in training and in search


@dataclass(frozen=True)
class Layout:
    """Widths and strides of the stem, the fixed first block, the six stages and the last 1x1 convolution."""

    stem: int
    stem_stride: int
    first: int
    channels: tuple[int, int, int, int, int, int]
    strides: tuple[int, int, int, int, int, int]
    last: int
    dropout: float

    def layers(self) -> Iterator[tuple[str, int, int, int]]:
        """Name, input channels, output channels and stride of each searched layer, first to last."""
        inputs = self.first
        for stage, (repeats, outputs, stride) in enumerate(zip(REPEATS, self.channels, self.strides, strict=True), 1):
            for block in range(1, repeats + 1):
                yield f"stage{stage}.block{block}", inputs, outputs, stride if block == 1 else 1
                inputs = outputs


LAYOUTS = {
    "gpu": Layout(40, 2, 24, (32, 56, 112, 128, 256, 432), (2, 2, 2, 1, 2, 1), 1728, 0.2),
    "small": Layout(16, 1, 8, (16, 24, 40, 48, 64, 96), (2, 2, 2, 1, 1, 1), 384, 0.0),  # 9 to 15 M multiply-adds at 32x32
}

OPTIONS = {
    "variant": Option("full", ("full", "bnnas", "mmrazor")),
    "layout": Option("gpu", tuple(LAYOUTS)),
    "input_size": Option(224, low=8, high=1024),
    "classes": Option(1000, low=2, high=100_000),
}


def choices(options: Mapping[str, Value]) -> tuple[Choice, ...]:
    """The operator of each of the 21 layers; skip stands first, because it costs least."""
    variant, values = options["variant"], []
    for place, (_, inputs, outputs, stride) in enumerate(LAYOUTS[str(options["layout"])].layers()):
        if variant == "bnnas":
            values.append((SKIP,) if place in SKIPPED else tuple(OPERATORS))
        else:
            legal = variant == "mmrazor" or (inputs == outputs and stride == 1)
            values.append((*((SKIP,) if legal else ()), *OPERATORS))
    return (Choice("op", tuple(values), orders=ORDERS),)


def units(options: Mapping[str, Value]) -> tuple[Unit, ...]:
    """Each layer's cost depends on its own operator only."""
    layers = LAYOUTS[str(options["layout"])].layers()
    return tuple(Unit(name, (("op", place),)) for place, (name, *_) in enumerate(layers))


def plan(options: Mapping[str, Value], choices: Mapping[str, tuple]) -> Plan:
    """The 25 layers of one architecture: stem, fixed first block, 21 searched layers, last 1x1, head."""
    size = int(options["input_size"])
    return chain_layers((3, size, size), _entries(options, choices["op"]))


def _entries(options: Mapping[str, Value], operators: tuple[str, ...]) -> Iterator[tuple[str, Op, str, str]]:
    layout, mmrazor = LAYOUTS[str(options["layout"])], options["variant"] == "mmrazor"
    yield "stem", _conv_norm(3, layout.stem, 3, layout.stem_stride, Activation("relu6")), "", ""
    yield "first", MBConv(layout.stem, layout.first, layout.stem, kernel=3, expand=False), "", ""
    for operator, (name, inputs, outputs, stride) in zip(operators, layout.layers(), strict=True):
        same = inputs == outputs and stride == 1
        op: Op
        if operator == SKIP:
            op = Skip(inputs) if same else _conv_norm(inputs, outputs, 1, stride)
        else:
            kernel, expansion = OPERATORS[operator]
            op = MBConv(inputs, outputs, inputs * expansion, kernel, stride, shortcut="identity" if same else "none")
        yield name, op, operator, name
    yield "last", _conv_norm(layout.channels[-1], layout.last, 1, 1, Activation("relu6")), "", ""
    dropout = () if mmrazor or not layout.dropout else (Dropout(layout.dropout),)
    classifier = Dense("classifier", layout.last, int(options["classes"]), init=0.01 if mmrazor else "uniform_in")
    yield "head", Chain(layout.last, (GlobalPool(), *dropout, classifier)), "", ""


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int, *activation: Activation) -> Chain:
    """Convolution and BatchNorm, initialised as all of this space: normal, std sqrt(2 / (kernel^2 outputs))."""
    return Chain(inputs, (Conv("conv", inputs, outputs, kernel, stride, init="he_out"), BatchNorm("bn", outputs), *activation))
