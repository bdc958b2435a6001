"""Ops: what one layer computes, as frozen dataclasses of numbers that list their branches of primitives.

`oneshot_nas.blocks` runs the chains and adds what joins the branches (split, concat, shuffle, sum).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

from oneshot_nas.primitives import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dropout,
    Primitive,
    Shape,
    Shuffle,
    SqueezeExcite,
    round_up,
)


@dataclass(frozen=True)
class Branch:
    """A chain of primitives that starts from `channels` of the layer's input, or of its joined output if `after_join`."""

    name: str
    channels: int
    chain: tuple[Primitive, ...]
    after_join: bool = False


@dataclass(frozen=True)
class Op:
    """The numbers of one layer; `branches` lists what it computes."""

    label: ClassVar[str] = "op"

    def branches(self) -> tuple[Branch, ...]:
        """The branches of the layer, in the order in which their outputs are joined."""
        raise NotImplementedError

    @property
    def scoring(self) -> str | None:
        """Name of the BatchNorm whose gamma scores this op as a candidate (BN-NAS): the last one, None without any."""
        norms = [p.name for branch in self.branches() if branch.name == "main" for p in branch.chain if isinstance(p, BatchNorm)]
        return norms[-1] if norms else None

    def calm(self) -> Op:
        """The same op without dropout and drop connect."""
        return self

    def padded(self, multiple: int) -> Op:
        """The same op with its inner widths rounded up to a multiple (a physical width; see docs/architecture.md)."""
        return self

    def trace(self, shape: Shape) -> Iterator[tuple[Primitive, Shape, Shape]]:
        """Yield (primitive, input shape, output shape) of all branches for a layer input of `shape`."""
        for branch in self.branches():
            start = self.out_shape(shape) if branch.after_join else shape
            current = (branch.channels, start[1], start[2])
            for primitive in branch.chain:
                out = primitive.out_shape(current)
                yield primitive, current, out
                current = out

    def out_shape(self, shape: Shape) -> Shape:
        """Output shape of the layer for an input of `shape`."""
        raise NotImplementedError

    def chain(self) -> Iterator[Primitive]:
        """Every primitive, with those inside squeeze-and-excite."""
        for branch in self.branches():
            for primitive in branch.chain:
                yield primitive
                if isinstance(primitive, SqueezeExcite):
                    yield from primitive.inner()

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every trainable array of the layer."""
        return {name: shape for branch in self.branches() for p in branch.chain for name, shape in p.parameters().items()}

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the arrays that only a supernet has; see `Conv.matrices`. Costs count fixed networks."""
        return {n: s for branch in self.branches() for p in branch.chain if isinstance(p, Conv) for n, s in p.matrices().items()}

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every running statistic of the layer."""
        return {n: s for b in self.branches() for p in b.chain if isinstance(p, BatchNorm) for n, s in p.statistics().items()}


@dataclass(frozen=True)
class Chain(Op):
    """A straight chain of primitives: stem, head."""

    label: ClassVar[str] = "chain"
    in_channels: int
    primitives: tuple[Primitive, ...]

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("main", self.in_channels, self.primitives),)

    def calm(self) -> Chain:
        return replace(self, primitives=tuple(replace(p, rate=0.0) if isinstance(p, Dropout) else p for p in self.primitives))

    def out_shape(self, shape: Shape) -> Shape:
        for primitive in self.primitives:
            shape = primitive.out_shape(shape)
        return shape


@dataclass(frozen=True)
class ShuffleUnit(Op):
    """ShuffleNetV2-style unit: 1x1, depthwise `kernel`, 1x1 on one branch (Single Path One-Shot, section 3.2).

    With stride 1 half of the channels pass by; with stride 2 a projection branch carries all of them. ``split`` says how:
    'even_odd' (official release: shuffle first, even channels pass by; the projection keeps its input width) or 'contiguous'
    (mmrazor: first half passes by; the projection gives C/2; shuffle after the concat).
    """

    label: ClassVar[str] = "shuffle"
    in_channels: int
    out_channels: int
    mid_channels: int
    kernel: int
    stride: int
    activation: str = "relu"
    se: bool = False
    split: str = "even_odd"

    @property
    def branch_in(self) -> int:
        """Channels that enter the main branch."""
        return self.in_channels if self.stride == 2 else self.in_channels // 2

    @property
    def by_pass(self) -> int:
        """Output channels of the identity or projection branch."""
        return self.out_channels // 2 if self.stride == 2 and self.split == "contiguous" else self.branch_in

    def main(self) -> tuple[Primitive, ...]:
        """The main branch up to its last activation."""
        mid = self.mid_channels
        return (
            Conv("pw1", self.branch_in, mid),
            BatchNorm("bn1", mid, beta=1e-4),
            Activation(self.activation),
            Conv("dw", mid, mid, self.kernel, self.stride, groups=mid),
            BatchNorm("bn2", mid, beta=1e-4),
            *self._last("pw2", "bn3", mid),
        )

    def _last(self, conv: str, norm: str, mid: int) -> tuple[Primitive, ...]:
        width = self.out_channels - self.by_pass
        return (Conv(conv, mid, width), BatchNorm(norm, width, beta=1e-4), Activation(self.activation))

    def branches(self) -> tuple[Branch, ...]:
        main = self.main()
        if self.se:
            width = self.out_channels - self.by_pass
            main = (*main, SqueezeExcite("se", width, round_up(width // 4, 8)))
        if self.stride == 2:
            inp = self.in_channels
            first = Branch("projection", inp, (
                Conv("proj_dw", inp, inp, self.kernel, 2, groups=inp),
                BatchNorm("proj_bn1", inp, beta=1e-4),
                Conv("proj_pw", inp, self.by_pass),
                BatchNorm("proj_bn2", self.by_pass, beta=1e-4),
                Activation(self.activation),
            ))
            parts = [first, Branch("main", inp, main)]
        else:
            parts = [Branch("main", self.branch_in, main)]
        if self.split == "contiguous":
            return (*parts, Branch("join", self.out_channels, (Shuffle(self.out_channels),), after_join=True))
        return tuple(parts) if self.stride == 2 else (Branch("split", self.in_channels, (Shuffle(self.in_channels),)), *parts)

    def out_shape(self, shape: Shape) -> Shape:
        return (self.out_channels, -(-shape[1] // self.stride), -(-shape[2] // self.stride))

    def padded(self, multiple: int) -> ShuffleUnit:
        return replace(self, mid_channels=round_up(self.mid_channels, multiple))


@dataclass(frozen=True)
class ShuffleXception(ShuffleUnit):
    """The xception operator (`kernel` is always 3): three depthwise 3x3 and 1x1 pairs, the stride in the first only."""

    label: ClassVar[str] = "xception"

    def main(self) -> tuple[Primitive, ...]:
        inp, mid = self.branch_in, self.mid_channels
        return (
            Conv("dw1", inp, inp, self.kernel, self.stride, groups=inp),
            BatchNorm("bn1", inp, beta=1e-4),
            Conv("pw1", inp, mid),
            BatchNorm("bn2", mid, beta=1e-4),
            Activation(self.activation),
            Conv("dw2", mid, mid, self.kernel, groups=mid),
            BatchNorm("bn3", mid, beta=1e-4),
            Conv("pw2", mid, mid),
            BatchNorm("bn4", mid, beta=1e-4),
            Activation(self.activation),
            Conv("dw3", mid, mid, self.kernel, groups=mid),
            BatchNorm("bn5", mid, beta=1e-4),
            *self._last("pw3", "bn6", mid),
        )


@dataclass(frozen=True)
class MBConv(Op):
    """Inverted residual: 1x1 to `mid_channels`, depthwise `kernel`, 1x1 to `out_channels` (MobileNetV2, table 1).

    `expand` False leaves the first 1x1 out (`mid_channels` is `in_channels` then). `hidden` > 0 puts a squeeze-and-excite of
    that inner width behind the depthwise activation. `shortcut` says what is added to the output:

    * 'none': nothing,
    * 'identity': the input; the caller sees to stride 1 and equal widths,
    * 'always': the input, average-pooled with stride 2 (`pool_pad` 1 for odd maps), and through a 1x1 without BatchNorm where
      the widths differ (AttentiveNAS); `project` says that such a 1x1 belongs to the layer.

    `drop_connect` is the probability that training drops the main branch of an image. `last_gamma` is where the gamma of the
    last BatchNorm starts. `transform` gives the depthwise convolution of a supernet transformation matrices.
    """

    label: ClassVar[str] = "mbconv"
    in_channels: int
    out_channels: int
    mid_channels: int
    kernel: int
    stride: int = 1
    activation: str = "relu6"
    expand: bool = True
    hidden: int = 0
    shortcut: str = "none"
    project: bool = False
    pool_pad: int = 0
    drop_connect: float = 0.0
    last_gamma: float = 1.0
    init: str = "he_out"
    transform: bool = False

    def branches(self) -> tuple[Branch, ...]:
        mid = self.mid_channels
        first = (Conv("expand", self.in_channels, mid, init=self.init), BatchNorm("bn1", mid), Activation(self.activation))
        gate = (SqueezeExcite("se", mid, self.hidden, init=self.init),)
        main = Branch("main", self.in_channels, (
            *(first if self.expand else ()),
            Conv("dw", mid, mid, self.kernel, self.stride, groups=mid, init=self.init, transform=self.transform),
            BatchNorm("bn2", mid), Activation(self.activation),
            *(gate if self.hidden else ()),
            Conv("project", mid, self.out_channels, init=self.init), BatchNorm("bn3", self.out_channels, gamma=self.last_gamma),
        ))
        if self.shortcut == "none":
            return (main,)
        pool = (AveragePool(self.pool_pad),) if self.stride == 2 else ()
        one = (Conv("shortcut", self.in_channels, self.out_channels, init=self.init),) if self.project else ()
        return (main, Branch("shortcut", self.in_channels, (*pool, *one)))

    def out_shape(self, shape: Shape) -> Shape:
        return (self.out_channels, -(-shape[1] // self.stride), -(-shape[2] // self.stride))

    def calm(self) -> MBConv:
        return replace(self, drop_connect=0.0)

    def padded(self, multiple: int) -> MBConv:
        return replace(self, mid_channels=round_up(self.mid_channels, multiple)) if self.expand else self


@dataclass(frozen=True)
class Skip(Op):
    """The identity: no weights, no cost."""

    label: ClassVar[str] = "skip"
    channels: int

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("main", self.channels, ()),)

    def out_shape(self, shape: Shape) -> Shape:
        return shape


def largest(first: Any, second: Any) -> Any:
    """The field-wise maximum of two ops of the same kind, whose weights contain those of both ("either" for yes and no).

    Raises: ValueError when something other than a number differs, so no common weights exist.
    """
    if first == second:
        return first
    if type(first) is type(second):
        if is_dataclass(first):
            return replace(first, **{f.name: largest(getattr(first, f.name), getattr(second, f.name)) for f in fields(first)})  # type: ignore[type-var]
        if isinstance(first, tuple) and len(first) == len(second):
            return tuple(map(largest, first, second))
        if isinstance(first, int | float):
            return max(first, second)
    raise ValueError(f"{first!r} and {second!r} share no weights")
