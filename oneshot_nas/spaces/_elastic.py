"""What the elastic MobileNet spaces share: stage tables, one value per stage and choice, and the plan that follows.

A space built here has the choices resolution x1, width x(stages + 2), depth, kernel and expand x stages. The first blocks of
a stage run, the last ones are left out; widths, kernels and expansions are those of a whole stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from oneshot_nas.arch import Choice, Option, Unit
from oneshot_nas.ops import Chain, MBConv, Op
from oneshot_nas.plan import Plan, chain_layers
from oneshot_nas.primitives import Activation, BatchNorm, Conv, Primitive, Resize


@dataclass(frozen=True)
class Stage:
    """Allowed values of one stage, its first block's stride, and whether its blocks have squeeze-and-excite."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    stride: int
    se: bool = False


@dataclass(frozen=True)
class Table:
    """A whole elastic space: resolutions, stem, stages and the widths of the last 1x1 convolution."""

    resolutions: tuple[int, ...]
    stem: tuple[int, ...]
    stem_stride: int
    stages: tuple[Stage, ...]
    last: tuple[int, ...]
    drop_connect: float = 0.2  # of the deepest block; shallower ones less, in proportion
    drop_stages: int = 2  # the last stages that use it
    activation: str = "swish"

    def resolved(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """The resolutions to choose from: those of the option, or the table's own."""
        return tuple(options["resolutions"]) or self.resolutions


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


def elastic_plan(table: Table, options: Mapping[str, Any], choices: Mapping[str, tuple],
                 head: Mapping[str, tuple[Primitive, ...]]) -> Plan:
    """Resize, stem, the blocks of every stage, then the layers of `head` (name -> primitives)."""
    source, size = int(options["input_size"]), choices["resolution"][0]
    return chain_layers((3, source, source), _entries(table, source, size, choices, head))


def _entries(table: Table, source: int, size: int, choices: Mapping[str, tuple],
             head: Mapping[str, tuple[Primitive, ...]]) -> Iterator[tuple[str, Op, str, str]]:
    yield "resize", Chain(3, (Resize(source, size),)), "", "resize"
    channels = choices["width"][0]
    yield "stem", Chain(3, (Conv("conv", 3, channels, 3, table.stem_stride, init="uniform_in"), BatchNorm("bn", channels),
                            Activation(table.activation))), "", "stem"
    size = -(-size // table.stem_stride)
    first = 0  # number of the stage's first block among the blocks of the largest network
    count = sum(stage.depths[-1] for stage in table.stages)
    for place, stage in enumerate(table.stages):
        width, expand = choices["width"][place + 1], choices["expand"][place]
        for block in range(choices["depth"][place]):
            stride = stage.stride if block == 0 else 1
            drops = place >= len(table.stages) - table.drop_stages and stride == 1 and channels == width
            middle = round8(channels * expand)
            yield f"{stage_name(place)}.block{block + 1}", MBConv(
                in_channels=channels, out_channels=width, mid_channels=middle, kernel=choices["kernel"][place], stride=stride,
                activation=table.activation, expand=expand > 1, hidden=round8(middle // 4) if stage.se else 0,
                shortcut="always", project=channels != width, pool_pad=size % 2 if stride == 2 else 0,
                drop_connect=table.drop_connect * (first + block) / count if drops else 0.0, last_gamma=0.0, init="uniform_in",
            ), "", stage_name(place)
            channels, size = width, -(-size // stride)
        first += stage.depths[-1]
    for name, primitives in head.items():
        yield name, Chain(channels, primitives), "", "head"
        channels = primitives[0].out_channels if isinstance(primitives[0], Conv) else channels
