"""The only description of a network: layers of concrete numbers, from which costs, blocks, names and pictures follow.

A `Layer` holds an `Op`. An op is a frozen dataclass of numbers that lists its branches; a branch is a chain of primitives
(`Conv`, `BatchNorm`, `Activation` ...) with a name each. Costs know primitives only; `oneshot_nas.blocks` runs the chains
and adds what joins the branches (split, concat, shuffle, sum).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

Shape = tuple[int, int, int]  # channels, height, width of one image


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Primitive:
    """One operator with at most one set of weights, named inside its layer."""

    def out_shape(self, shape: Shape) -> Shape:
        """Output shape (channels, height, width) for an input of `shape`."""
        return shape

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every trainable array."""
        return {}


@dataclass(frozen=True)
class Conv(Primitive):
    """Square convolution, padded by ``kernel // 2``; weight (out, in / groups, kernel, kernel).

    `std` is the standard deviation of its initial weights; None means 1 / (input channels per group), the rule of the
    SPOS reference for all convolutions but the first and those of squeeze-and-excite.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False
    std: float | None = None

    def out_shape(self, shape: Shape) -> Shape:
        return (self.out_channels, -(-shape[1] // self.stride), -(-shape[2] // self.stride))

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight array."""
        return (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {f"{self.name}.weight": self.weight_shape}
        if self.bias:
            shapes[f"{self.name}.bias"] = (self.out_channels,)
        return shapes


@dataclass(frozen=True)
class BatchNorm(Primitive):
    """Batch normalisation with gamma and beta; `beta` is the initial beta, `momentum` the share of the old statistics kept."""

    name: str
    channels: int
    beta: float = 0.0
    gamma: float = 1.0
    eps: float = 1e-5
    momentum: float = 0.9

    def parameters(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}.gamma": (self.channels,), f"{self.name}.beta": (self.channels,)}

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the running statistics, which are not trainable."""
        return {f"{self.name}.running_mean": (self.channels,), f"{self.name}.running_var": (self.channels,)}


ACTIVATIONS = ("relu", "relu6", "swish", "hswish", "hsigmoid")


@dataclass(frozen=True)
class Activation(Primitive):
    """Element-wise non-linearity, one of `ACTIVATIONS`."""

    kind: str


@dataclass(frozen=True)
class GlobalPool(Primitive):
    """Mean over height and width, which become 1."""

    def out_shape(self, shape: Shape) -> Shape:
        return (shape[0], 1, 1)


@dataclass(frozen=True)
class Dropout(Primitive):
    """Dropout with probability `rate`, in training only."""

    rate: float


@dataclass(frozen=True)
class Shuffle(Primitive):
    """Channel shuffle with two groups."""

    channels: int


@dataclass(frozen=True)
class Dense(Primitive):
    """Fully connected layer on flattened input; weight (out, in)."""

    name: str
    in_features: int
    out_features: int
    bias: bool = True
    std: float = 0.01

    def out_shape(self, shape: Shape) -> Shape:
        return (self.out_features, 1, 1)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {f"{self.name}.weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes[f"{self.name}.bias"] = (self.out_features,)
        return shapes


@dataclass(frozen=True)
class SqueezeExcite(Primitive):
    """Channel gate: pool, 1x1 to `hidden`, ReLU, 1x1 back, hard sigmoid, multiply (both convolutions with bias)."""

    name: str
    channels: int
    hidden: int

    def inner(self) -> tuple[Primitive, ...]:
        """The chain that computes the gate; the final multiplication is not in it."""
        return (
            GlobalPool(),
            Conv(f"{self.name}.reduce", self.channels, self.hidden, bias=True, std=0.01),
            Activation("relu"),
            Conv(f"{self.name}.expand", self.hidden, self.channels, bias=True, std=0.01),
            Activation("hsigmoid"),
        )

    def parameters(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for primitive in self.inner() for name, shape in primitive.parameters().items()}


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
class Layer:
    """One layer of a plan: its name, op and shapes.

    `candidate` is the operator's name where the search chooses among several with weights of their own; `unit` is the
    cost unit it belongs to ('' for the part that no choice changes).
    """

    name: str
    op: Op
    in_shape: Shape
    out_shape: Shape
    candidate: str = ""
    unit: str = ""

    @property
    def weights(self) -> str:
        """Name of its set of weights in a supernet."""
        return f"{self.name}.{self.candidate}" if self.candidate else self.name


@dataclass(frozen=True)
class Plan:
    """The layers of one network, first to last, for one input image of `input_shape`."""

    input_shape: Shape
    layers: tuple[Layer, ...]


def chain_layers(input_shape: Shape, entries: Iterable[tuple[str, Op, str, str]]) -> Plan:
    """Return the plan of a chain of (name, op, candidate, unit); shapes follow from the input shape."""
    layers = []
    shape = input_shape
    for name, op, candidate, unit in entries:
        out = op.out_shape(shape)
        layers.append(Layer(name, op, shape, out, candidate, unit))
        shape = out
    return Plan(input_shape, tuple(layers))


def largest(first: Any, second: Any) -> Any:
    """The field-wise maximum of two ops of the same kind, whose weights contain those of both.

    Raises: ValueError when something other than a number differs, so no common weights exist.
    """
    if first == second:
        return first
    if type(first) is type(second):
        if is_dataclass(first):
            return replace(first, **{f.name: largest(getattr(first, f.name), getattr(second, f.name)) for f in fields(first)})  # type: ignore[type-var]
        if isinstance(first, tuple) and len(first) == len(second):
            return tuple(map(largest, first, second))
        if isinstance(first, int) and not isinstance(first, bool):
            return max(first, second)
    raise ValueError(f"{first!r} and {second!r} share no weights")
