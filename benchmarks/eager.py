"""The baseline of the elastic benchmarks: the supernet in plain MXNet calls, run eagerly, by slices or by full-width masks.

'slices' cuts every weight to the candidate's size before each call; 'masks' computes every layer at its largest width and kernel
and multiplies by 0/1 masks, as supernets are usually written. Nothing in the package uses it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mxnet import autograd, nd

from oneshot_nas.arch import Arch, Space
from oneshot_nas.blocks.resize import resize
from oneshot_nas.indicators.accuracy import Evaluator
from oneshot_nas.ops import Chain, MBConv, largest
from oneshot_nas.primitives import Activation, AveragePool, BatchNorm, Conv, Dense, GlobalPool, Resize, SqueezeExcite


class EagerSupernet:
    """The supernet of an elastic space with random weights; ``net(x, arch)`` gives logits, training mode follows autograd."""

    def __init__(self, space: Space, way: str) -> None:
        self.space, self.way = space, way
        self.arrays: dict[str, nd.NDArray] = {}
        self.full = {layer.name: layer.op for layer in space.plan(space.largest()).layers}

    def __call__(self, x: nd.NDArray, arch: Arch) -> nd.NDArray:
        for layer in self.space.plan(arch).layers:
            op, full = layer.op, self._full(layer.name, layer.op)
            chains = {branch.name: (branch.chain, other.chain)
                      for branch, other in zip(op.branches(), full.branches(), strict=True)}
            out = self._chain(layer.name, x, *chains["main"])
            x = out + _fit(self._chain(layer.name, x, *chains["shortcut"]), out) if "shortcut" in chains else out
        return x

    def _full(self, name: str, op: Any) -> Any:
        """The largest op of that place, with this one's structure."""
        full = self.full[name]
        if isinstance(op, MBConv):
            widths = {key: getattr(full, key) for key in ("in_channels", "out_channels", "mid_channels", "hidden", "kernel")}
            return replace(op, **widths)
        if isinstance(op, Chain) and isinstance(op.primitives[0], Resize):
            return op
        return largest(full, op)

    def _chain(self, layer: str, x: nd.NDArray, chain: tuple, full: tuple) -> nd.NDArray:
        for primitive, wide in zip(chain, full, strict=True):
            x = self._apply(layer, x, primitive, wide)
        return x

    def _apply(self, layer: str, x: nd.NDArray, p: Any, wide: Any) -> nd.NDArray:
        if isinstance(p, Conv):
            return self._conv(layer, x, p, wide)
        if isinstance(p, BatchNorm):
            arrays = [self._array(f"{layer}.{p.name}.{part}", (wide.channels,)) for part in ("gamma", "beta", "mean", "var")]
            if self.way == "slices":
                arrays = [array[: p.channels] for array in arrays]
            out = nd.BatchNorm(x, *arrays, eps=p.eps, momentum=p.momentum, fix_gamma=False)
            return out if self.way == "slices" else out * self._mask(wide.channels, p.channels, 4)
        if isinstance(p, Activation):
            gates = {"swish": nd.sigmoid, "hsigmoid": lambda v: nd.hard_sigmoid(v, alpha=1 / 6, beta=0.5)}
            return nd.relu(x) if p.kind == "relu" else gates[p.kind](x) * (x if p.kind == "swish" else 1)
        if isinstance(p, SqueezeExcite):
            return x * self._chain(layer, x, p.inner(), wide.inner())
        if isinstance(p, AveragePool):
            return nd.Pooling(x, kernel=(2, 2), stride=(2, 2), pad=(p.pad,) * 2, pool_type="avg")
        if isinstance(p, GlobalPool):
            return nd.Pooling(x, kernel=(1, 1), pool_type="avg", global_pool=True)
        if isinstance(p, Dense):
            used = wide if self.way == "masks" else p
            weight = self._array(f"{layer}.{p.name}.weight", (wide.out_features, wide.in_features))
            if self.way == "slices":
                weight = weight[:, : p.in_features]
            bias = self._array(f"{layer}.{p.name}.bias", (wide.out_features,))
            return nd.FullyConnected(x, weight, bias, num_hidden=used.out_features)
        return resize(nd, x, p.source, p.size) if isinstance(p, Resize) else x

    def _conv(self, layer: str, x: nd.NDArray, p: Conv, wide: Conv) -> nd.NDArray:
        weight = self._array(f"{layer}.{p.name}.weight", wide.weight_shape)
        bias = [self._array(f"{layer}.{p.name}.bias", (wide.out_channels,))] if p.bias else []
        rim, used = (wide.kernel - p.kernel) // 2, wide
        if self.way == "slices":
            out, inputs, kernel, _ = p.weight_shape
            weight = weight[:out, :inputs, rim : rim + kernel, rim : rim + kernel].copy()
            bias, used = [array[:out] for array in bias], p
        elif rim:
            weight = weight * self._ring(wide.kernel, rim)
        pad = used.kernel // 2
        out = nd.Convolution(x, weight, *bias, kernel=(used.kernel,) * 2, stride=(used.stride,) * 2, pad=(pad, pad),
                             num_filter=used.out_channels, num_group=used.groups, no_bias=not bias)
        return out * self._mask(wide.out_channels, p.out_channels, 4) if bias and self.way == "masks" else out

    def _array(self, name: str, shape: tuple[int, ...]) -> nd.NDArray:
        if name not in self.arrays:
            ones = name.endswith(("gamma", "var"))
            zeros = name.endswith(("beta", "mean", "bias"))
            made = nd.ones(shape) if ones else nd.zeros(shape) if zeros else nd.random.normal(0, 0.05, shape)
            self.arrays[name] = made
        assert self.arrays[name].shape == shape, (name, shape, self.arrays[name].shape)
        return self.arrays[name]

    def _mask(self, width: int, used: int, axes: int) -> nd.NDArray:
        """Ones for the channels in use, zeros for the rest; kept between calls."""
        key = f"mask {width} {used}"
        if key not in self.arrays:
            self.arrays[key] = (nd.arange(width) < used).reshape((1, -1, *(1,) * (axes - 2)))
        return self.arrays[key]

    def _ring(self, kernel: int, rim: int) -> nd.NDArray:
        """Ones in the centre of a kernel, zeros on its rim."""
        key = f"ring {kernel} {rim}"
        if key not in self.arrays:
            inside = nd.logical_and(nd.arange(kernel) >= rim, nd.arange(kernel) < kernel - rim)
            self.arrays[key] = (inside.reshape((-1, 1)) * inside.reshape((1, -1))).reshape((1, 1, kernel, kernel))
        return self.arrays[key]

    def evaluate(self, evaluator: Evaluator, arch: Arch) -> None:
        """Recalibrate by running statistics, then classify: on the evaluator's batches."""
        for batch in evaluator.calibration:
            with autograd.train_mode():
                self(batch, arch).wait_to_read()
        for batch in evaluator.validation:
            self(batch, arch).asnumpy()


def _fit(x: nd.NDArray, like: nd.NDArray) -> nd.NDArray:
    """`x` with as many channels as `like`: an identity between two equally masked maps of different full widths."""
    have, want = x.shape[1], like.shape[1]
    if have >= want:
        return x if have == want else x[:, :want]
    return nd.concat(x, nd.zeros((x.shape[0], want - have, *x.shape[2:])), dim=1)
