"""What the elastic MobileNet spaces share: stage tables, one value per stage and choice, and the plan that follows.

`elastic_choices`, `elastic_units` and `elastic_plan` make a space with the choices resolution x1, width x(stages + 2), depth,
kernel and expand x stages; `plan_of` makes the plan of one that decides in its own way. The first blocks of a stage run, the
last ones are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from oneshot_nas.arch import Choice, Option, Unit
from oneshot_nas.ops import Chain, MBConv, Op
from oneshot_nas.plan import Plan, chain_layers
from oneshot_nas.primitives import Activation, BatchNorm, Conv, Primitive, Resize


@dataclass(frozen=True)
class Stage:
    """Allowed values of one stage, its first block's stride, whether its blocks have squeeze-and-excite, and their activation."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    stride: int
    se: bool = False
    activation: str = "swish"


@dataclass(frozen=True)
class Table:
    """A whole elastic space: resolutions, stem, stages and the widths of the last 1x1 convolution; what its blocks share.

    `shortcut`, `last_gamma`, `init` and `transform` are those of `MBConv`. `gate_of` says of which width the squeezed one of a
    gate is a quarter: 'middle', the expanded one (MobileNetV3), or 'input', the block's (EfficientNet).
    """

    resolutions: tuple[int, ...]
    stem: tuple[int, ...]
    stem_stride: int
    stages: tuple[Stage, ...]
    last: tuple[int, ...]
    drop_connect: float = 0.2  # of the deepest block; shallower ones less, in proportion
    drop_stages: int = 2  # the last stages that use it
    activation: str = "swish"
    shortcut: str = "always"  # or 'identity': where stride and width allow it
    last_gamma: float = 0.0
    init: str = "uniform_in"
    transform: bool = False
    gate_of: str = "middle"

    def resolved(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """The resolutions to choose from: those of the option, or the table's own."""
        return tuple(options["resolutions"]) or self.resolutions


@dataclass(frozen=True)
class Decided:
    """The decisions of one architecture: resolution, width of the stem and of every stage, (kernel, expansion) of every block."""

    resolution: int
    widths: tuple[int, ...]
    blocks: tuple[tuple[tuple[int, int], ...], ...]


RESOLUTIONS = Option((), low=8, high=1024, many=True)


def round8(value: float) -> int:
    """`value` rounded to a multiple of 8, at least 8, never below nine tenths of it (the rule of MobileNet's authors)."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def elastic_choices(table: Table, options: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Resolution, widths (stem, stages, last), and depth, kernel, expansion of every stage."""
    stages = table.stages
    return (
        Choice("resolution", (table.resolved(options),), ordered=True),
        Choice("width", (table.stem, *(stage.widths for stage in stages), table.last), ordered=True),
        Choice("depth", tuple(stage.depths for stage in stages), ordered=True),
        Choice("kernel", tuple(stage.kernels for stage in stages), ordered=True),
        Choice("expand", tuple(stage.expands for stage in stages), ordered=True),
    )


def elastic_units(table: Table) -> tuple[Unit, ...]:
    """The resize, the stem, every stage and the head, each with the decisions that its cost depends on."""
    resolution, last = ("resolution", 0), len(table.stages) + 1
    stages = (Unit(stage_name(s), (resolution, ("width", s), ("width", s + 1), ("depth", s), ("kernel", s), ("expand", s)))
              for s in range(len(table.stages)))
    return (Unit("resize", (resolution,)), Unit("stem", (resolution, ("width", 0))), *stages,
            Unit("head", (resolution, ("width", last - 1), ("width", last))))


def stage_name(stage: int) -> str:
    """Name of a stage, counted from 0, in layers and units."""
    return f"stage{stage + 1}"


def block_name(stage: int, block: int) -> str:
    """Name of a block, both counted from 0, in layers and units."""
    return f"{stage_name(stage)}.block{block + 1}"


def elastic_plan(table: Table, options: Mapping[str, Any], choices: Mapping[str, tuple],
                 head: Mapping[str, tuple[Primitive, ...]]) -> Plan:
    """The plan of choices with one kernel and expansion a stage; see `plan_of`."""
    stages = zip(choices["depth"], choices["kernel"], choices["expand"], strict=True)
    blocks = tuple(((kernel, expand),) * depth for depth, kernel, expand in stages)
    return plan_of(table, options, Decided(choices["resolution"][0], choices["width"][:-1], blocks), head)


def plan_of(table: Table, options: Mapping[str, Any], decided: Decided, head: Mapping[str, tuple[Primitive, ...]],
            unit: Callable[[int, int], str] = lambda stage, block: stage_name(stage)) -> Plan:
    """Resize, stem, the blocks of every stage, then the layers of `head` (name -> primitives).

    `unit` names the cost unit of a block, by default its stage.
    """
    source = int(options["input_size"])
    return chain_layers((3, source, source), _entries(table, source, decided, head, unit))


def _entries(table: Table, source: int, decided: Decided, head: Mapping[str, tuple[Primitive, ...]],
             unit: Callable[[int, int], str]) -> Iterator[tuple[str, Op, str, str]]:
    size, channels = decided.resolution, decided.widths[0]
    yield "resize", Chain(3, (Resize(source, size),)), "", "resize"
    yield "stem", Chain(3, (Conv("conv", 3, channels, 3, table.stem_stride, init=table.init), BatchNorm("bn", channels),
                            Activation(table.activation))), "", "stem"
    size = -(-size // table.stem_stride)
    first = 0  # number of the stage's first block among the blocks of the largest network
    count = sum(stage.depths[-1] for stage in table.stages)
    for place, (stage, width, blocks) in enumerate(zip(table.stages, decided.widths[1:], decided.blocks, strict=True)):
        for block, (kernel, expand) in enumerate(blocks):
            stride = stage.stride if block == 0 else 1
            same = stride == 1 and channels == width
            drops = place >= len(table.stages) - table.drop_stages and same
            always = table.shortcut == "always"
            middle = round8(channels * expand)
            squeezed = round8((middle if table.gate_of == "middle" else channels) // 4)
            yield block_name(place, block), MBConv(
                in_channels=channels, out_channels=width, mid_channels=middle, kernel=kernel, stride=stride,
                activation=stage.activation, expand=expand > 1, hidden=squeezed if stage.se else 0,
                shortcut=table.shortcut if always or same else "none", project=always and channels != width,
                pool_pad=size % 2 if always and stride == 2 else 0,
                drop_connect=table.drop_connect * (first + block) / count if drops else 0.0, last_gamma=table.last_gamma,
                init=table.init, transform=table.transform,
            ), "", unit(place, block)
            channels, size = width, -(-size // stride)
        first += stage.depths[-1]
    for name, primitives in head.items():
        yield name, Chain(channels, primitives), "", "head"
        channels = primitives[0].out_channels if isinstance(primitives[0], Conv) else channels
