"""Channel importance: a supernet's hidden channels sorted, so that smaller expansions keep the ones that matter.

Source: Cai et al., "Once-for-All", ICLR 2020, section 3.3 (elastic width).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.errors import UserError
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.ops import MBConv
from oneshot_nas.spaces._elastic import round8


def sort_channels(supernet: Supernet, trained: Sequence[int] = ()) -> Supernet:
    """Sort the hidden channels of every inverted residual by importance, largest first; returns the supernet.

    A hidden channel's importance is the L1 norm of its column in the last 1x1; a squeezed channel's that of its column in the
    gate's second 1x1. Architectures of the largest expansion compute what they did. `trained` names smaller expansions that
    were trained too: channels are sorted only inside the segments between their widths, so they compute what they did as well.

    Sort before a trainer is made: momentum is not sorted. Raises: UserError when the space has no such blocks.
    """
    supernet.flush()
    blocks = [block for block in supernet._store.owners.values() if isinstance(block.op, MBConv) and block.op.expand]
    if not blocks:
        raise UserError(f"space '{supernet.space.name}' has no inverted residuals, so there are no hidden channels to sort")
    for block in blocks:
        _sort(block, trained)
    return supernet


def _sort(block: OpBlock, trained: Sequence[int]) -> None:
    op = block.op
    assert isinstance(op, MBConv)
    widths = [round8(op.in_channels * expand) for expand in trained]
    order = _order(_column_norms(block, "project.weight"), widths)
    for name in ("expand.weight", "dw.weight", *(f"{norm}.{what}" for norm in ("bn1", "bn2")
                                                 for what in ("gamma", "beta", "running_mean", "running_var"))):
        _permute(block, name, 0, order)
    _permute(block, "project.weight", 1, order)
    if op.hidden:
        _permute(block, "se.reduce.weight", 1, order)
        for what in ("weight", "bias"):
            _permute(block, f"se.expand.{what}", 0, order)
        squeezed = _order(_column_norms(block, "se.expand.weight"), [round8(width // 4) for width in widths])
        for what in ("weight", "bias"):
            _permute(block, f"se.reduce.{what}", 0, squeezed)
        _permute(block, "se.expand.weight", 1, squeezed)


def _column_norms(block: OpBlock, name: str) -> np.ndarray:
    """L1 norm of every input column of a 1x1 convolution, float64."""
    return np.abs(block.parameter(name).list_data()[0].asnumpy().astype(np.float64)).sum(axis=(0, 2, 3))


def _order(importance: np.ndarray, boundaries: Sequence[int]) -> np.ndarray:
    """Positions by falling importance inside each segment between `boundaries`; equal ones keep their order."""
    edges = sorted({0, len(importance), *(edge for edge in boundaries if edge < len(importance))})
    parts = (start + np.argsort(-importance[start:end], kind="stable") for start, end in pairwise(edges))
    return np.concatenate(list(parts))


def _permute(block: OpBlock, name: str, axis: int, order: np.ndarray) -> None:
    for array in block.parameter(name).list_data():  # every device has running statistics of its own
        array[:] = np.take(array.asnumpy(), order, axis=axis)
