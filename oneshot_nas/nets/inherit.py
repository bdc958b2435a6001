"""`inherit`: a stand-alone network with a copy of the supernet's weights."""

from __future__ import annotations

from oneshot_nas.arch import Arch
from oneshot_nas.nets.fixed import Network, fixed_network
from oneshot_nas.nets.supernet import Supernet


def corner(stored: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[slice, ...]:
    """Slices that cut `wanted` out of `stored`: leading channels, kernels around their centre."""
    offsets = [0 if axis < 2 else (s - w) // 2 for axis, (s, w) in enumerate(zip(stored, wanted, strict=True))]
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, wanted, strict=True))


def inherit(supernet: Supernet, arch: Arch) -> Network:
    """A fixed network of `arch` with copies of the supernet's weights and running statistics, initialised.

    Its output equals the supernet's for the same architecture. Raises: UserError when `arch` is not of the space.
    """
    net = fixed_network(arch)
    layers = supernet.space.plan(supernet.space.check(arch)).layers
    for layer, (_, block) in zip(layers, net.blocks(), strict=True):
        owner = supernet.owner(layer.weights)
        for key, parameter in block._reg_params.items():
            source = owner.parameter(key)
            parameter.initialize(ctx=source.list_ctx())
            for context in source.list_ctx():  # every device has running statistics of its own
                parameter.data(context)[:] = owner.resolved(key, parameter.shape, context)
    return net
