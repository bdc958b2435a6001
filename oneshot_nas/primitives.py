"""The operators that layers are made of: frozen dataclasses of numbers that know their weights and their output shape.

Costs count primitives and nothing else; `oneshot_nas.blocks.tracer` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass

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


# normal_in: normal, std 1 / (inputs per group), as in SPOS. he_out: normal, std sqrt(2 / (kernel^2 outputs)).
# uniform_in: uniform in +-1 / sqrt(fan in), PyTorch's default.
INITS = ("normal_in", "he_out", "uniform_in")


@dataclass(frozen=True)
class Conv(Primitive):
    """Square convolution, padded by ``kernel // 2``; weight (out, in / groups, kernel, kernel).

    `init` says how weights start: one of `INITS`, or the standard deviation of a normal distribution. With `transform` a
    supernet has `matrices`, and a smaller kernel is the centre times a matrix; otherwise it is the centre itself.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False
    init: str | float = "normal_in"
    transform: bool = False

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> shape of what turns this kernel into smaller ones, step by step: '7to5' (25, 25), '5to3' (9, 9).

        Shared by all channels. Only a supernet has them (Once-for-All, section 3.3).
        """
        sizes = range(self.kernel, 3, -2) if self.transform else ()
        return {f"{self.name}.{size}to{size - 2}": ((size - 2) ** 2, (size - 2) ** 2) for size in sizes}

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
class AveragePool(Primitive):
    """Mean of 2x2 windows, stride 2; `pad` zeros on every side count in the mean (1 for odd maps, so they round up)."""

    pad: int = 0

    def out_shape(self, shape: Shape) -> Shape:
        return (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))


@dataclass(frozen=True)
class Resize(Primitive):
    """Bicubic resize from `source` to `size` pixels a side: half-pixel centres, a = -0.75, borders repeated, no antialias."""

    source: int
    size: int

    def out_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.size, self.size)


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
    init: str | float = 0.01

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
    init: str | float = 0.01

    def inner(self) -> tuple[Primitive, ...]:
        """The chain that computes the gate; the final multiplication is not in it."""
        return (
            GlobalPool(),
            Conv(f"{self.name}.reduce", self.channels, self.hidden, bias=True, init=self.init),
            Activation("relu"),
            Conv(f"{self.name}.expand", self.hidden, self.channels, bias=True, init=self.init),
            Activation("hsigmoid"),
        )

    def parameters(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for primitive in self.inner() for name, shape in primitive.parameters().items()}
