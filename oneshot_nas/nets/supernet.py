"""`Supernet`: the weights of every architecture of a space, called as ``net(x, arch)``."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mxnet import autograd
from mxnet.gluon import Block, HybridBlock
from mxnet.ndarray import NDArray

from oneshot_nas.arch import Arch, Space
from oneshot_nas.blocks import compiled
from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.blocks.tracer import Tensor
from oneshot_nas.nets.fixed import Network, check_size, resize_of
from oneshot_nas.ops import Op, largest
from oneshot_nas.plan import Layer

MAX_VIEWS = 2048  # training views kept; the least recently used goes first


class Selector(HybridBlock):
    """The candidates of one layer, each with weights of its own; called, it gives the mean of all their outputs."""

    def __init__(self, candidates: dict[str, OpBlock]) -> None:
        super().__init__(prefix="")
        for name, block in candidates.items():
            self.register_child(block, name)

    def hybrid_forward(self, F: Any, x: Tensor) -> Tensor:
        outputs = [block(x) for block in self._children.values()]
        return F.add_n(*outputs) / len(outputs)


def supernet_ops(space: Space) -> dict[str, tuple[Layer, Op]]:
    """Name of every set of weights -> (a layer that uses it, the op that contains all uses), in network order.

    Found by asking the plan for every combination of decisions of every cost unit, so widths have one home.
    """
    from itertools import product

    column_of = {(name, position): column for column, (name, position, _) in enumerate(space.positions)}
    base = [0] * len(space.positions)
    found: dict[str, tuple[Layer, Op]] = {}
    order = {layer.name: place for place, layer in enumerate(space.plan(space.decode(base)).layers)}

    def add(layer: Layer) -> None:
        known = found.get(layer.weights)
        found[layer.weights] = (layer, largest(known[1], layer.op) if known else layer.op)

    for layer in space.plan(space.decode(base)).layers:
        if not layer.unit:
            add(layer)
    for unit in space.units:
        columns = [column_of[pair] for pair in unit.positions]
        for combination in product(*(range(len(space.positions[column][2])) for column in columns)):
            indices = list(base)
            for column, index in zip(columns, combination, strict=True):
                indices[column] = index
            for layer in space.plan(space.decode(indices)).layers:
                if layer.unit == unit.name:
                    add(layer)
                    order.setdefault(layer.name, len(order))
    return dict(sorted(found.items(), key=lambda item: order[item[1][0].name]))


class _Store:
    """Owners by name of their weights and the most recently used views; hides them from Gluon, which knows them as children."""

    def __init__(self) -> None:
        self.owners: dict[str, OpBlock] = {}
        self.views: OrderedDict[tuple[str, Op, bool], OpBlock] = OrderedDict()
        self.dirty: list[OpBlock] = []


class Supernet(Block):
    """Weights of every candidate at its largest width; keeps no active architecture.

    ``net(x, arch)`` computes logits (N, classes) for x (N, 3, H, W) through block views on slices of the weights, each
    hybridized once and kept; unused candidates take no part, so their gradients stay stale and a trainer leaves them alone.
    A Supernet is a plain Block on purpose: the path changes with every call. ``view(arch)`` is one hybridizable network.

    Parameter names: ``stage1.block2.shuffle5.pw1.weight`` (layer, candidate, array). `bn_momentum` is the share of the running
    statistics that a training step keeps, None for what the space says.
    """

    def __init__(self, space: Space, bn_momentum: float | None = None) -> None:
        super().__init__(prefix="")
        self.space = space
        self._bn_momentum = bn_momentum
        self._store = _Store()
        selectors: dict[str, dict[str, OpBlock]] = {}
        for weights, (layer, op) in supernet_ops(space).items():
            block = OpBlock(op, weights, shared=True)
            self._store.owners[weights] = block
            if layer.candidate:
                selectors.setdefault(layer.name, {})[layer.candidate] = block
            else:
                self.register_child(block, layer.name)
        for name, candidates in selectors.items():
            self.register_child(Selector(candidates), name)
        resize = resize_of(self._store.owners.values())
        self._source = resize.source if resize else None

    def hybridize(self, active: bool = True, **kwargs: Any) -> None:
        """Refused: the supernet's path changes with every call; its block views are hybridized already."""
        if active:
            raise TypeError("a Supernet cannot be hybridized: its path changes with every call and its block views are "
                            "hybridized already; hybridize net.view(arch) for one architecture")

    def forward(self, x: NDArray, arch: Arch) -> NDArray:
        """Logits (N, classes) of `arch`. Raises: UserError when `arch` is not of this space, or `x` has another size than a space
        with a resize inside takes."""
        return self._run(x, [[(layer.weights, layer.op)] for layer in self.space.plan(self.space.check(arch)).layers])

    def calm(self, x: NDArray, arch: Arch) -> NDArray:
        """Logits of `arch` as by ``net(x, arch)``, without dropout and drop connect. Raises: UserError."""
        return self._run(x, [[(layer.weights, layer.op.calm())] for layer in self.space.plan(self.space.check(arch)).layers])

    def mean_of_blocks(self, x: NDArray, arch: Arch) -> NDArray:
        """Logits when every layer averages all its operators at the other choices of `arch` (predecessor's all-blocks phase).

        Raises: UserError when the space has no choice 'block'.
        """
        values = self.space.choice("block").values
        plans = []
        for place in range(max(map(len, values))):
            blocks = tuple(allowed[min(place, len(allowed) - 1)] for allowed in values)
            plans.append(self.space.plan(self.space.arch({**arch.choices, "block": blocks})).layers)
        return self._run(x, [list({layer.weights: layer.op for layer in layers}.items()) for layers in zip(*plans, strict=True)])

    def _run(self, x: NDArray, layers: list[list[tuple[str, Op]]]) -> NDArray:
        """Logits of the chain of `layers`, each the mean of some operators (name of the weights, op).

        A backward pass ends at the first trained parameter. Where that is too late for the running statistics of a layer, the
        layer's input is given a gradient of its own.
        """
        if self._source is not None:
            check_size(x, self._source)
        self.flush()
        reached = not autograd.is_recording()
        for operators in layers:
            views = [self._view(*each) for each in operators]
            if not reached and not all(view.settled() for view in views):
                x = x.detach()
                x.attach_grad()
                reached = True
            reached = reached or any(view.trains() for view in views)
            outputs = [view(x) for view in views]
            x = outputs[0] if len(outputs) == 1 else sum(outputs[1:], outputs[0]) / len(outputs)
        return x

    def _view(self, weights: str, op: Op) -> OpBlock:
        learns = autograd.is_recording()  # compiled BatchNorm moves running statistics even when no backward pass follows
        owner, key, views = self._store.owners[weights], (weights, op, learns), self._store.views
        block = views.get(key)
        if block is None:
            block = views[key] = owner.view(op)
            block.fast, block.momentum = learns and compiled.usable(owner.parameters()), self._bn_momentum
            block.hybridize()
            if len(views) > MAX_VIEWS:
                views.popitem(last=False)
        views.move_to_end(key)
        if block.private:
            block.pull_statistics()
            if autograd.is_training():
                self._store.dirty.append(block)
        return block

    def flush(self) -> None:
        """Bring running statistics that the last training steps changed in views home to the supernet."""
        for block in self._store.dirty:
            block.push_statistics()
        self._store.dirty.clear()

    def view(self, arch: Arch) -> Network:
        """One hybridizable network of `arch` on slices of these weights, with running statistics of its own."""
        self.flush()
        layers = self.space.plan(self.space.check(arch)).layers
        owners = self._store.owners
        return Network(arch, ((layer.name, owners[layer.weights].view(layer.op, private_statistics=True)) for layer in layers))

    def candidates(self) -> list[tuple[str, OpBlock]]:
        """(name of its weights, owner) of every block that is one of several operators to choose from."""
        return [(weights, block) for name, selector in self._children.items() if isinstance(selector, Selector)
                for weights, block in ((f"{name}.{candidate}", block) for candidate, block in selector._children.items())]

    def owner(self, weights: str) -> OpBlock:
        """The block that owns a set of weights, by name (`Layer.weights`)."""
        self.flush()
        return self._store.owners[weights]

    def save_parameters(self, filename: str, deduplicate: bool = False) -> None:
        """Write all weights and running statistics; see Gluon."""
        self.flush()
        super().save_parameters(filename, deduplicate)

    def load_parameters(self, filename: str, **kwargs: Any) -> None:
        """Read all weights and running statistics; see Gluon."""
        self._store.dirty.clear()
        super().load_parameters(filename, **kwargs)
