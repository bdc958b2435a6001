"""How each op joins its branches: one function an op, ``(tracer, op, x) -> output``. An operator is added here."""

from __future__ import annotations

from collections.abc import Callable

from oneshot_nas.blocks.tracer import Tensor, Tracer
from oneshot_nas.plan import Chain, Op, ShuffleUnit, ShuffleXception


def chain(tracer: Tracer, op: Chain, x: Tensor) -> Tensor:
    """A straight chain."""
    return tracer.run("main", x)


def shuffle_unit(tracer: Tracer, op: ShuffleUnit, x: Tensor) -> Tensor:
    """Identity or projection first, main branch second; channels are mixed before (even_odd) or after (contiguous)."""
    F = tracer.F
    if op.stride == 2:
        first, second = tracer.run("projection", x), x
    elif op.split == "even_odd":
        first, second = _even_odd(F, x, op.in_channels)
    else:
        half = op.in_channels // 2
        first, second = F.slice_axis(x, axis=1, begin=0, end=half), F.slice_axis(x, axis=1, begin=half, end=None)
    out = F.concat(first, tracer.run("main", second), dim=1)
    return tracer.run("join", out) if op.split == "contiguous" else out


def _even_odd(F, x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The even-numbered and the odd-numbered channels of x (N, C, H, W), as two arrays (N, C/2, H, W)."""
    pairs = F.reshape(x, (0, channels // 2, 2, -1))
    template = F.slice_axis(x, axis=1, begin=0, end=channels // 2)
    even, odd = (F.reshape_like(F.slice_axis(pairs, axis=2, begin=g, end=g + 1), template) for g in (0, 1))
    return even, odd


JOINS: dict[type[Op], Callable[..., Tensor]] = {Chain: chain, ShuffleUnit: shuffle_unit, ShuffleXception: shuffle_unit}
