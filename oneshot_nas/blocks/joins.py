"""How each op joins its branches: one function an op, ``(tracer, op, x) -> output``. An operator is added here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oneshot_nas.blocks.tracer import Tensor, Tracer
from oneshot_nas.ops import Chain, MBConv, Op, ShuffleUnit, ShuffleXception, Skip


def chain(tracer: Tracer, op: Chain, x: Tensor) -> Tensor:
    """A straight chain."""
    return tracer.run("main", x)


def shuffle_unit(tracer: Tracer, op: ShuffleUnit, x: Tensor) -> Tensor:
    """Identity or projection first, main branch second; channels are mixed before (even_odd) or after (contiguous)."""
    F = tracer.F
    if op.stride == 2:
        first, second = tracer.run("projection", x), x
    elif op.split == "even_odd":
        first, second = F.oneshot_nas_halves(x) if tracer.fast else _even_odd(F, x, op.in_channels)
    else:
        half = op.in_channels // 2
        first, second = F.slice_axis(x, axis=1, begin=0, end=half), F.slice_axis(x, axis=1, begin=half, end=None)
    out = F.concat(first, tracer.run("main", second), dim=1)
    if op.split == "contiguous":
        out = tracer.run("join", out)
    return _plain(F, out) if op.split == "contiguous" or op.by_pass % 16 else out


def mbconv(tracer: Tracer, op: MBConv, x: Tensor) -> Tensor:
    """Main branch plus shortcut."""
    out = tracer.run("main", x)
    if op.shortcut == "none":
        return out
    return tracer.drop(out, op.drop_connect, axes=(1, 2, 3)) + tracer.run("shortcut", x)


def skip(tracer: Tracer, op: Skip, x: Tensor) -> Tensor:
    """The input itself; as a copy, because a graph's output must not be its input."""
    return tracer.F.identity(x)


def _plain(F: Any, x: Tensor) -> Tensor:
    """The same values; in the backward pass the gradient arrives in MXNet's own memory order.

    Without it oneDNN hands a gradient in blocks of 16 channels to the backward pass of concat and reshape, which fail where
    the halves are no multiple of 16 ("could not construct a sub-memory", MXNet 1.9.1). The backward pass of a slice knows no
    blocks and works out of place.
    """
    return F.slice_axis(x, axis=1, begin=0, end=None)


def _even_odd(F: Any, x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The even-numbered and the odd-numbered channels of x (N, C, H, W), as two arrays (N, C/2, H, W)."""
    pairs = F.reshape(x, (0, channels // 2, 2, -1))
    template = F.slice_axis(x, axis=1, begin=0, end=channels // 2)
    even, odd = (F.reshape_like(F.slice_axis(pairs, axis=2, begin=g, end=g + 1), template) for g in (0, 1))
    return even, odd


JOINS: dict[type[Op], Callable[..., Tensor]] = {
    Chain: chain, ShuffleUnit: shuffle_unit, ShuffleXception: shuffle_unit, MBConv: mbconv, Skip: skip,
}
