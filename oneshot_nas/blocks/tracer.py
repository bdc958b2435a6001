"""Runs the primitives of an op as MXNet operators, at the numbers of a view and on slices of larger weights.

A `Tracer` lives for one trace of one layer. `mode` says what BatchNorm does:

* 'normal': MXNet's operator (batch statistics in training, running statistics at inference),
* 'observe': batch statistics always; every BatchNorm's batch mean and variance are collected,
* 'folded': running statistics multiplied into the convolution before it, so that no BatchNorm is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from oneshot_nas.blocks import compiled
from oneshot_nas.blocks.resize import resize
from oneshot_nas.ops import Branch, Op
from oneshot_nas.primitives import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    GlobalPool,
    Primitive,
    Resize,
    Shuffle,
    SqueezeExcite,
)

Tensor = Any  # NDArray or Symbol


class Tracer:
    """One trace of one layer.

    `nominal` is the op whose function is computed, `physical` the op at whose (padded) widths it is computed, `params`
    name -> full weights of shapes `stored`. Padding is exact: gamma and beta of padded channels are zero. `fast` trades
    operators for those of `oneshot_nas.blocks.compiled`, which cannot be exported.
    `momentum` replaces that of every BatchNorm: the share of the running statistics that a training step keeps. Of `frozen`
    weights the compiled operator computes no gradient; MXNet's own know by themselves. `dtype` is that of the images.

    `shared` says that other views slice these weights too. MXNet's convolution reorders the weight it is given in place at
    inference, and slicing a reordered depthwise weight kills the process (SIGFPE), so it is given a copy then.
    """

    def __init__(self, F: Any, nominal: Op, physical: Op, stored: dict[str, tuple[int, ...]], params: dict[str, Tensor],
                 mode: str = "normal", collected: list | None = None, shared: bool = False, fast: bool = False,
                 momentum: float | None = None, frozen: Collection[str] = (), dtype: str = "float32") -> None:
        self.F = F
        self.nominal = {branch.name: branch for branch in nominal.branches()}
        self.physical = {branch.name: branch for branch in physical.branches()}
        self.stored = stored
        self.params = params
        self.mode = mode
        self.collected = collected
        self.shared = shared
        self.fast = fast
        self.trains = fast and mode == "normal"  # operators that gain in the backward pass only
        self.compiled_norms = compiled_norms(physical) if self.trains else frozenset()
        self.flag: Tensor = None  # see `_training_flag`
        self.momentum = momentum
        self.frozen = frozen
        self.dtype = dtype

    def run(self, branch: str, x: Tensor) -> Tensor:
        """Apply the chain of that branch."""
        nominal: Branch = self.nominal[branch]
        chain = list(zip(nominal.chain, self.physical[branch].chain, strict=True))
        place = 0
        while place < len(chain):
            primitive, actual = chain[place]
            norm, actual_norm = chain[place + 1] if place + 1 < len(chain) else (None, None)
            if self.mode == "folded" and isinstance(actual, Conv) and isinstance(norm, BatchNorm):
                assert isinstance(actual_norm, BatchNorm)
                x = self._folded(x, actual, norm, actual_norm)
                place += 2
                continue
            if isinstance(actual, BatchNorm) and actual.name in self.compiled_norms:
                assert isinstance(primitive, BatchNorm)
                kind = norm.kind if isinstance(norm, Activation) and norm.kind in compiled.FUSED else "none"
                x = self._norm(x, primitive, actual, kind)
                place += 1 if kind == "none" else 2
                continue
            x = _APPLY[type(primitive)](self, x, primitive, actual)
            place += 1
        return x

    def weight(self, name: str, shape: tuple[int, ...], kept: tuple[int, ...] | None = None) -> Tensor:
        """A stored weight at another shape: its leading corner `kept`, then zeros up to `shape`.

        A smaller kernel is the centre of the stored one, through the layer's transformation matrices where it has them.
        """
        stored, value = self.stored[name], self.params[name]
        if stored == shape and kept is None:
            return self.F.identity(value) if self.shared and len(shape) > 1 else value
        kept = kept or tuple(map(min, stored, shape))
        fewer = (*kept[:2], *stored[2:])
        if fewer != stored:
            value = self.F.slice(value, begin=(0,) * len(fewer), end=fewer)
        if kept != fewer:
            value = self._smaller(name.removesuffix(".weight"), value, fewer, kept[-1])
        for axis, (have, want) in enumerate(zip(kept, shape, strict=True)):
            if have < want:
                padding = self.F.zeros(shape=(*shape[:axis], want - have, *kept[axis + 1 :]))
                value = self.F.concat(value, padding, dim=axis)
        return value

    def _smaller(self, name: str, value: Tensor, shape: tuple[int, ...], kernel: int) -> Tensor:
        """A convolution's weight of `shape` at a smaller kernel, two pixels at a time where there is a matrix for it."""
        while shape[-1] > kernel:
            matrix = self.params.get(f"{name}.{shape[-1]}to{shape[-1] - 2}")
            size = kernel if matrix is None else shape[-1] - 2
            rim = (shape[-1] - size) // 2
            value = self.F.slice(value, begin=(0, 0, rim, rim), end=(*shape[:2], rim + size, rim + size))
            shape = (*shape[:2], size, size)
            if matrix is not None:
                flat = self.F.reshape(value, (-1, size * size))
                flat = self.F.FullyConnected(flat, matrix, num_hidden=size * size, no_bias=True, flatten=False)
                value = self.F.reshape(flat, shape)
        return value

    def conv(self, x: Tensor, primitive: Conv, actual: Conv, weight: Tensor = None, bias: Tensor = None) -> Tensor:
        """Convolution at the physical widths; `weight` and `bias` replace the stored ones when given."""
        if weight is None:
            weight = self.weight(f"{actual.name}.weight", actual.weight_shape)
            bias = self.weight(f"{actual.name}.bias", (actual.out_channels,)) if actual.bias else None
        if self.trains and compiled_depthwise(actual):
            frozen = int(f"{actual.name}.weight" in self.frozen)
            return self.F.oneshot_nas_depthwise(x, weight, kernel=actual.kernel, stride=actual.stride, frozen=frozen)
        pad = actual.kernel // 2
        arguments = [x, weight] if bias is None else [x, weight, bias]
        return self.F.Convolution(
            *arguments, kernel=(actual.kernel,) * 2, stride=(actual.stride,) * 2, pad=(pad, pad), num_filter=actual.out_channels,
            num_group=actual.groups, no_bias=bias is None)

    def _norm(self, x: Tensor, primitive: BatchNorm, actual: BatchNorm, kind: str) -> Tensor:
        """BatchNorm and the non-linearity `kind` by the compiled operator.

        MXNet moves running statistics in the backward pass, this operator in the forward pass. It is not told to add its
        gradients up (grad_req 'add'), so it is given copies of gamma and beta, whose gradients MXNet adds.
        """
        gamma, beta, *statistics = self._arrays(primitive, actual)
        if self.flag is None:
            self.flag = self._training_flag(actual, statistics)
        copies = self.F.identity(gamma), self.F.identity(beta)
        return self.F.oneshot_nas_norm(
            x, *copies, *statistics, self.flag, eps=primitive.eps, momentum=self._kept(primitive), kind=kind)[0]

    def _training_flag(self, actual: BatchNorm, statistics: list[Tensor]) -> Tensor:
        """What tells a loaded operator whether it trains, as MXNet does not: what MXNet's BatchNorm makes of 0 and 2e8.

        It is 1 in training and otherwise about 2e8, since running statistics are far from such numbers. At momentum 1 they stay
        as they are.
        """
        F, channels = self.F, actual.channels
        ones, zeros = F.ones(shape=(channels,)), F.zeros(shape=(channels,))
        pair = F.concat(F.zeros(shape=(1, channels, 1, 1)), F.full(shape=(1, channels, 1, 1), val=2e8), dim=0)
        pair = F.BatchNorm(pair, ones, zeros, *statistics, eps=actual.eps, momentum=1.0, fix_gamma=True)
        return F.BlockGrad(F.slice(pair, begin=(1, 0, 0, 0), end=(2, 1, 1, 1)))

    def _arrays(self, primitive: BatchNorm, actual: BatchNorm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gamma and beta of a BatchNorm, zero in the padding, and its running mean and variance."""
        name, narrower = primitive.name, primitive.channels < actual.channels
        kept = (primitive.channels,) if narrower else None
        gamma, beta = (self.weight(f"{name}.{each}", (actual.channels,), kept) for each in ("gamma", "beta"))
        return gamma, beta, self.params[f"{name}.running_mean"], self.params[f"{name}.running_var"]

    def _kept(self, primitive: BatchNorm) -> float:
        """The share of the running statistics that a training step keeps."""
        return primitive.momentum if self.momentum is None else self.momentum

    def drop(self, x: Tensor, rate: float, axes: tuple[int, ...]) -> Tensor:
        """Dropout in training, one decision for all of `axes`; calibration and inference leave `x` as it is."""
        return self.F.Dropout(x, p=rate, axes=axes) if rate and self.mode == "normal" else x

    def batch_norm(self, x: Tensor, primitive: BatchNorm, actual: BatchNorm) -> Tensor:
        """BatchNorm in the mode of this trace."""
        arrays, momentum = self._arrays(primitive, actual), self._kept(primitive)
        if self.mode != "observe":
            return self.F.BatchNorm(x, *arrays, eps=primitive.eps, momentum=momentum, fix_gamma=False)
        out, batch_mean, inverse_std = self.F.BatchNorm(
            x, *arrays, eps=primitive.eps, momentum=momentum, fix_gamma=False, output_mean_var=True)
        assert self.collected is not None
        self.collected.append((primitive.name, batch_mean, inverse_std))
        return out

    def _folded(self, x: Tensor, conv: Conv, norm: BatchNorm, actual: BatchNorm) -> Tensor:
        """Convolution and BatchNorm at inference as one convolution with bias."""
        F = self.F
        gamma, beta, mean, variance = self._arrays(norm, actual)
        scale = gamma * F.rsqrt(variance + norm.eps)
        bias = beta - mean * scale
        if conv.bias:
            bias = bias + self.weight(f"{conv.name}.bias", (conv.out_channels,)) * scale
        weight = F.broadcast_mul(self.weight(f"{conv.name}.weight", conv.weight_shape), F.reshape(scale, (-1, 1, 1, 1)))
        return self.conv(x, conv, conv, weight, bias)


def compiled_depthwise(part: Primitive) -> bool:
    """Whether the compiled depthwise convolution takes its place in training; its forward pass alone would gain nothing."""
    return (isinstance(part, Conv) and not part.bias and part.groups == part.out_channels
            and part.kernel in compiled.KERNELS)


def compiled_norms(op: Op) -> frozenset[str]:
    """Names of the BatchNorms of `op` (at physical widths) that training leaves to the compiled operator.

    Those are the ones of which oneDNN's are slow: where the input lies in MXNet's memory order anyway, behind a compiled
    depthwise convolution and in all of a chain whose non-linearity is compiled; and at multiples of 16 channels in a chain that
    24, 40, 56 ... channels enter: there oneDNN keeps 8 channels together at first and 16 later, and a gradient between takes
    15 times as long.
    """
    def lean(branch: Branch, norm: BatchNorm) -> bool:
        changing = branch.channels % 16 == 8 and norm.channels % 16 == 0
        return changing or any(isinstance(part, Activation) and part.kind in compiled.ACTIVATIONS for part in branch.chain)

    return frozenset(
        part.name for branch in op.branches() for before, part in zip((None, *branch.chain), branch.chain, strict=False)
        if isinstance(part, BatchNorm) and (lean(branch, part) or (before is not None and compiled_depthwise(before))))


def _conv(tracer: Tracer, x: Tensor, primitive: Conv, actual: Conv) -> Tensor:
    return tracer.conv(x, primitive, actual)


def _activation(tracer: Tracer, x: Tensor, primitive: Activation, actual: Activation) -> Tensor:
    if tracer.fast and primitive.kind in compiled.ACTIVATIONS:
        return tracer.F.oneshot_nas_activation(x, kind=primitive.kind)
    return activate(tracer.F, x, primitive.kind)


def activate(F: Any, x: Tensor, kind: str) -> Tensor:
    """The non-linearity `kind`, from operators that export to ONNX."""
    if kind == "relu":
        return F.Activation(x, act_type="relu")
    if kind == "relu6":
        return F.clip(x, 0, 6)
    gates = {"swish": lambda v: F.Activation(v, act_type="sigmoid"),  # oneDNN's; F.sigmoid takes two thirds longer
             "hswish": _hard_sigmoid(F), "hsigmoid": _hard_sigmoid(F)}
    gate = gates[kind](x)
    return gate if kind == "hsigmoid" else x * gate


def _hard_sigmoid(F: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def _dense(tracer: Tracer, x: Tensor, primitive: Dense, actual: Dense) -> Tensor:
    weight = tracer.weight(f"{actual.name}.weight", (actual.out_features, actual.in_features))
    arguments = [x, weight, *([tracer.weight(f"{actual.name}.bias", (actual.out_features,))] if actual.bias else [])]
    return tracer.F.FullyConnected(*arguments, num_hidden=actual.out_features, no_bias=not actual.bias)


def _pool(tracer: Tracer, x: Tensor, primitive: GlobalPool, actual: GlobalPool) -> Tensor:
    return tracer.F.Pooling(x, kernel=(1, 1), pool_type="avg", global_pool=True)


def _average_pool(tracer: Tracer, x: Tensor, primitive: AveragePool, actual: AveragePool) -> Tensor:
    return tracer.F.Pooling(x, kernel=(2, 2), stride=(2, 2), pad=(primitive.pad,) * 2, pool_type="avg", count_include_pad=True)


def _dropout(tracer: Tracer, x: Tensor, primitive: Dropout, actual: Dropout) -> Tensor:
    return tracer.drop(x, primitive.rate, axes=())


def _resize(tracer: Tracer, x: Tensor, primitive: Resize, actual: Resize) -> Tensor:
    return resize(tracer.F, x, primitive.source, primitive.size, tracer.dtype)


def _squeeze_excite(tracer: Tracer, x: Tensor, primitive: SqueezeExcite, actual: SqueezeExcite) -> Tensor:
    gate = x
    for inner, physical in zip(primitive.inner(), actual.inner(), strict=True):
        gate = _APPLY[type(inner)](tracer, gate, inner, physical)
    return tracer.F.oneshot_nas_scale(x, gate) if tracer.fast else tracer.F.broadcast_mul(x, gate)


def _shuffle(tracer: Tracer, x: Tensor, primitive: Shuffle, actual: Shuffle) -> Tensor:
    """Two groups, interleaved: output channel 2 i + g is input channel g C/2 + i (`reshape_like` because it exports)."""
    F = tracer.F
    groups = F.reshape(x, (0, 2, primitive.channels // 2, -1))
    return F.reshape_like(F.transpose(groups, axes=(0, 2, 1, 3)), x)


def _batch_norm(tracer: Tracer, x: Tensor, primitive: BatchNorm, actual: BatchNorm) -> Tensor:
    return tracer.batch_norm(x, primitive, actual)


_APPLY: dict[type[Primitive], Callable] = {
    Conv: _conv, BatchNorm: _batch_norm, Activation: _activation, GlobalPool: _pool, Dropout: _dropout, Dense: _dense,
    SqueezeExcite: _squeeze_excite, Shuffle: _shuffle, AveragePool: _average_pool, Resize: _resize,
}
