"""BatchNorm statistics from a list of images: BatchNorm updates its running statistics at inference, exactly.

Each BatchNorm normalises with the statistics of the batch, as in training, and reports them; after the last image they
are combined and written. The result is a function of the images and their batching alone: not of the momentum, of the
statistics before, or of what was evaluated earlier. Layers above the first see inputs normalised per batch, so the batch
size is part of the definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mxnet import autograd, nd
from mxnet.gluon import HybridBlock
from mxnet.ndarray import NDArray

from oneshot_nas.arch import show, space_of
from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.blocks.tracer import Tensor
from oneshot_nas.errors import UserError
from oneshot_nas.nets.fixed import Network
from oneshot_nas.primitives import BatchNorm

METHODS = ("population", "cumulative")


class _Traced(HybridBlock):
    """The blocks of a network in another mode of BatchNorm, on the same parameters."""

    def __init__(self, net: Network) -> None:
        super().__init__(prefix="")
        for name, block in net.blocks():
            self.register_child(block, name)
        self.hybridize(static_alloc=True)


class Observer(_Traced):
    """Returns (logits, batch means, inverse batch deviations), the last two over all BatchNorm channels in `order`."""

    def __init__(self, net: Network) -> None:
        super().__init__(net)
        self.order: list[tuple[OpBlock, str]] = []

    def hybrid_forward(self, F: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, deviations, order = [], [], []
        for block in self._children.values():
            collected: list[tuple[str, Tensor, Tensor]] = []
            x = block.trace(F, x, mode="observe", collected=collected)
            for name, mean, deviation in collected:
                means.append(mean)
                deviations.append(deviation)
                order.append((block, name))
        self.order = order
        return x, F.concat(*means, dim=0), F.concat(*deviations, dim=0)


class Folded(_Traced):
    """Logits at inference with every BatchNorm multiplied into the convolution before it."""

    def hybrid_forward(self, F: Any, x: Tensor) -> Tensor:
        for block in self._children.values():
            x = block.trace(F, x, mode="folded")
        return x


@dataclass
class _Sums:
    """Running sums in float64 over the images seen, for all channels."""

    images: int = 0
    first: Any = 0.0
    second: Any = 0.0
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0))


def recalibrate(net: Network, batches: Iterable[NDArray], method: str = "population") -> Network:
    """Set every running mean and variance of `net` from `batches` of images (N, 3, H, W); returns `net`.

    'population': mean and variance over all images, variance between batches included (E[x^2] - E[x]^2, pooled).
    'cumulative': image-weighted mean of the batch means and of the unbiased batch variances, as the PyTorch references do.

    Raises: UserError for an unknown method or no images.
    """
    if method not in METHODS:
        raise UserError(f"unknown recalibration method '{method}'; the methods are {show(METHODS)}")
    observer = Observer(net)
    sums = _Sums()
    for batch in batches:
        with autograd.train_mode():
            _, means, deviations = observer(batch)
        _add(sums, observer, net, batch.shape[0], means, deviations, method)
    if not sums.images:
        raise UserError("recalibration needs at least one batch of images")
    mean = sums.first / sums.images
    variance = sums.second / sums.images - (mean**2 if method == "population" else 0.0)
    offset = 0
    for block, name in observer.order:
        width = block.parameter(f"{name}.running_mean").shape[0]
        part = slice(offset, offset + width)
        block.parameter(f"{name}.running_mean").set_data(nd.array(mean[part]))
        block.parameter(f"{name}.running_var").set_data(nd.array(np.maximum(variance[part], 0.0)))
        offset += width
    return net


def _add(sums: _Sums, observer: Observer, net: Network, images: int, means: NDArray, deviations: NDArray, method: str) -> None:
    if not len(sums.sizes):
        sums.sizes = _channel_constants(observer, net)
    mean = means.asnumpy().astype(np.float64)
    variance = deviations.asnumpy().astype(np.float64) ** -2 - sums.sizes[0]
    if method == "population":
        second = variance + mean**2
    else:
        count = images * sums.sizes[1]
        second = variance * count / np.maximum(count - 1, 1)
    sums.first = sums.first + images * mean
    sums.second = sums.second + images * second
    sums.images += images


def _channel_constants(observer: Observer, net: Network) -> np.ndarray:
    """Array (2, channels): epsilon and number of pixels of every BatchNorm channel, in the observer's order."""
    shapes: dict[tuple[str, str], tuple[float, int]] = {}
    layers = {layer.name: layer for layer in space_of(net.arch).plan(net.arch).layers}
    names = {id(block): name for name, block in net.blocks()}
    for name, layer in layers.items():
        for primitive, given, _ in layer.op.trace(layer.in_shape):
            if isinstance(primitive, BatchNorm):
                shapes[name, primitive.name] = (primitive.eps, given[1] * given[2])
    columns: list[Sequence[float]] = []
    for block, norm in observer.order:
        columns += [shapes[names[id(block)], norm]] * block.parameter(f"{norm}.running_mean").shape[0]
    return np.array(columns, dtype=np.float64).T
