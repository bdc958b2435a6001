"""`Network`: a chain of layers as one HybridBlock: a fixed network, or the whole-net view of a candidate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mxnet.gluon import HybridBlock

from oneshot_nas.arch import Arch, space_of
from oneshot_nas.blocks import depthwise
from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.blocks.tracer import Tensor


class Network(HybridBlock):
    """Layers in sequence, input (N, 3, H, W), output logits (N, classes); hybridizable and exportable.

    Parameter names are the plan's: ``stage1.block2.pw1.weight``. Build one with `fixed_network`, or get the view of a
    candidate from ``Supernet.view``.
    """

    def __init__(self, arch: Arch, blocks: Iterable[tuple[str, OpBlock]]) -> None:
        super().__init__(prefix="")
        self.arch = arch
        for name, block in blocks:
            self.register_child(block, name)

    def blocks(self) -> list[tuple[str, OpBlock]]:
        """(layer name, block) in order."""
        return list(self._children.items())

    def train_fast(self) -> None:
        """Use the compiled depthwise backward where it is installed; call before hybridizing, and not for export."""
        for block in self._children.values():
            block.fast = depthwise.available()

    def hybrid_forward(self, F: Any, x: Tensor) -> Tensor:
        for block in self._children.values():
            x = block(x)
        return x


def fixed_network(arch: Arch) -> Network:
    """The stand-alone network of an architecture, not initialised: exactly the parameters it needs."""
    plan = space_of(arch).plan(arch)
    return Network(arch, ((layer.name, OpBlock(layer.op, layer.name)) for layer in plan.layers))
