"""`Network`: a chain of layers as one HybridBlock: a fixed network, or the whole-net view of a candidate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mxnet.gluon import HybridBlock
from mxnet.ndarray import NDArray

from oneshot_nas.arch import Arch, get_space, space_of
from oneshot_nas.blocks import compiled
from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.blocks.tracer import Tensor
from oneshot_nas.errors import UserError
from oneshot_nas.primitives import Resize


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
        resize = resize_of(block for _, block in self.blocks())
        self._source = resize.source if resize and resize.source != resize.size else None

    def blocks(self) -> list[tuple[str, OpBlock]]:
        """(layer name, block) in order."""
        return list(self._children.items())

    def training_view(self) -> Network:
        """The same network on the same weights, computed faster: padded widths and, on the CPU, the compiled depthwise.

        Its running statistics are its own where widths are padded; `settle` brings them home. Not for export.
        """
        fast = compiled.usable(self.collect_params().values())
        view = Network(self.arch, ((name, block.view(block.op)) for name, block in self.blocks()))
        for _, block in view.blocks():
            block.fast = fast
        return view

    def settle(self) -> None:
        """Copy the running statistics of a training view into the network it views."""
        for _, block in self.blocks():
            block.push_statistics()

    def refresh(self) -> None:
        """Copy the running statistics of the viewed network into a training view."""
        for _, block in self.blocks():
            block.pull_statistics()

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Logits of images (N, 3, H, W). Raises: UserError for a size that a network with a resize inside does not take."""
        if self._source is not None and isinstance(x, NDArray):
            check_size(x, self._source)
        return super().forward(x, *args)

    def hybrid_forward(self, F: Any, x: Tensor) -> Tensor:
        for block in self._children.values():
            x = block(x)
        return x


def resize_of(blocks: Iterable[OpBlock]) -> Resize | None:
    """The resize inside a network; None in a space without one."""
    return next((part for block in blocks for part in block.op.chain() if isinstance(part, Resize)), None)


def check_size(x: NDArray, size: int) -> None:
    """Raise UserError unless `x` are images of `size` pixels a side, which a network with a resize inside needs."""
    if x.shape[2:] != (size, size):
        raise UserError(f"this network resizes its images itself, from {size}x{size}; it was given "
                        f"{'x'.join(map(str, x.shape[2:]))}: resize them, or build it with option input_size")


def fixed_network(arch: Arch) -> Network:
    """The stand-alone network of an architecture, not initialised: exactly the parameters it needs."""
    plan = space_of(arch).plan(arch)
    return Network(arch, ((layer.name, OpBlock(layer.op, layer.name)) for layer in plan.layers))


def resolution_inside(net: Network) -> int | None:
    """The side in pixels to which the network resizes its images itself; None when it does not."""
    resize = resize_of(block for _, block in net.blocks())
    return resize.size if resize else None


def without_resize(net: Network) -> tuple[Network, int]:
    """The same network on the same weights for images that are resized already, and the side in pixels that it takes.

    Raises: UserError when the network resizes nothing.
    """
    size = resolution_inside(net)
    if size is None:
        raise UserError(f"a network of space '{net.arch.space}' has no resize inside, so none can be put outside")
    space = get_space(net.arch.space, **{**net.arch.options, "input_size": size})
    arch = space.arch(net.arch.choices)
    pairs = zip(space.plan(arch).layers, net.blocks(), strict=True)
    blocks = ((name, block if block.op == layer.op else OpBlock(layer.op, name)) for layer, (name, block) in pairs)
    return Network(arch, blocks), size
