"""`OpBlock`: one layer of a plan as a HybridBlock, either the owner of its weights or a view of an owner's."""

from __future__ import annotations

import math
from operator import is_
from typing import Any

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import HybridBlock, Parameter
from mxnet.ndarray import NDArray

from oneshot_nas.blocks import compiled
from oneshot_nas.blocks.joins import JOINS
from oneshot_nas.blocks.tracer import Tensor, Tracer, compiled_norms
from oneshot_nas.ops import Op, largest
from oneshot_nas.primitives import BatchNorm, Conv, Dense

PAD = 16  # physical widths are multiples of this: oneDNN is several times slower on other widths (CPU)


class OpBlock(HybridBlock):
    """The op of one layer.

    An owner (``OpBlock(op, name)``) holds every parameter of `op`; a `shared` one, of a supernet, its matrices too. A view
    (``owner.view(op)``) computes a smaller op of the same kind on slices of the owner's weights: gradients reach exactly the
    used corner. It computes at inner widths rounded up to `PAD`, with zeros in the padding: same function, less time. Running
    statistics cannot be sliced in MXNet, so a view has its own wherever its width differs; see `pull_statistics` and
    `push_statistics`.
    """

    def __init__(self, op: Op, name: str, owner: OpBlock | None = None, private_statistics: bool = False,
                 shared: bool = False) -> None:
        super().__init__(prefix=name.replace(".", "_") + "_")
        self.op = op
        self.fast = False  # see Tracer; set before the block is hybridized, for training on the CPU only
        self.momentum: float | None = None  # of running statistics instead of the op's; set before the block is hybridized
        self.dtype = "float32"  # of what it computes, see `cast`
        object.__setattr__(self, "owner", owner)  # not a child: Gluon must not see it
        self.shared = shared or owner is not None  # whether views slice these weights
        stored = op if owner is None else owner.op
        self.physical = op if owner is None else op.padded(PAD)
        self.stored_shapes = stored.parameters()
        self.private: list[str] = []
        self._windows: tuple[list[NDArray], list[tuple[NDArray, NDArray]]] = ([], [])  # see `_statistic_pairs`
        for key, shape in op.parameters().items():
            self._adopt(key, self._new(key, shape, initial(op, key)) if owner is None else owner.parameter(key))
        for key, shape in stored.matrices().items() if self.shared else ():
            if owner is None:
                self._adopt(key, self._new(key, shape, mx.init.Constant(mx.nd.eye(shape[0]))))
            elif key in owner._reg_params and key not in op.matrices():  # on the way to this smaller kernel
                self._adopt(key, owner.parameter(key))
        for key, shape in self.physical.statistics().items():
            if owner is not None and not private_statistics and stored.statistics()[key] == shape == op.statistics()[key]:
                self._adopt(key, owner.parameter(key))
                continue
            value = mx.init.One() if key.endswith("running_var") else mx.init.Zero()
            self._adopt(key, self._new(key, shape, value, trainable=False))
            self.private.append(key)

    def _new(self, key: str, shape: tuple[int, ...], value: mx.init.Initializer, trainable: bool = True) -> Parameter:
        return self.params.get(key.replace(".", "_"), shape=shape, init=value, grad_req="write" if trainable else "null",
                               differentiable=trainable)

    def _adopt(self, key: str, parameter: Parameter) -> None:
        self.params._params[parameter.name] = parameter  # Gluon asks this dictionary for the inputs of a hybridized graph
        setattr(self, key, parameter)

    def cast(self, dtype: str) -> None:
        """Compute in `dtype`; BatchNorm's arrays stay float32, as MXNet's operator wants them."""
        self._clear_cached_op()
        norms = [part for part in self.op.chain() if isinstance(part, BatchNorm)]
        kept = {key for norm in norms for key in (*norm.parameters(), *norm.statistics())}
        for key, parameter in self._reg_params.items():
            if key not in kept:
                parameter.cast(dtype)
        self.dtype = dtype

    def parameter(self, key: str) -> Parameter:
        """The parameter of that name inside the layer, such as 'pw1.weight'."""
        return self._reg_params[key]

    def parameters(self) -> list[Parameter]:
        """All parameters of the layer, running statistics included."""
        return list(self._reg_params.values())

    def trains(self) -> bool:
        """Whether any parameter of the layer is trained."""
        return any(parameter.grad_req != "null" for parameter in self._reg_params.values())

    def settled(self) -> bool:
        """Whether a training step moves every running statistic of the layer even if its input wants no gradient.

        MXNet's BatchNorm moves them in the backward pass, which goes back to the first trained parameter only, the compiled one
        in the forward pass.
        """
        forward = compiled_norms(self.physical) if self.fast else ()
        return all(part.name in forward or self.parameter(f"{part.name}.beta").grad_req != "null"
                   for part in self.op.chain() if isinstance(part, BatchNorm))

    def view(self, op: Op, private_statistics: bool = False) -> OpBlock:
        """A block that computes the smaller `op` on slices of these weights.

        With `private_statistics` every running statistic is the view's own, so nothing it does reaches the owner.
        Raises: ValueError when `op` is not contained in this block's op.
        """
        if largest(self.op, op) != self.op:
            raise ValueError(f"{op} is not contained in {self.op}")
        block = OpBlock(op, self.prefix[:-1], owner=self, private_statistics=private_statistics)
        for key in block.private:
            block.parameter(key).initialize(ctx=self.parameter(key).list_ctx())
        block.pull_statistics()
        return block

    def resolved(self, key: str, shape: tuple[int, ...], context: mx.Context) -> Any:
        """The array of that name at a smaller shape, as a fixed network holds it: cut out, kernels transformed."""
        arrays = {name: parameter.data(context) for name, parameter in self._reg_params.items()}
        stored = {**self.stored_shapes, **self.op.statistics()}
        return Tracer(mx.nd, self.op, self.op, stored, arrays, shared=True).weight(key, shape)

    def pull_statistics(self) -> None:
        """Copy the owner's running statistics, sliced, into the view's own."""
        with autograd.pause():  # several shards of one step run inside one record()
            for mine, theirs in self._statistic_pairs():
                theirs.copyto(mine)

    def push_statistics(self) -> None:
        """Copy the view's own running statistics into the owner's slice."""
        with autograd.pause():
            for mine, theirs in self._statistic_pairs():
                mine.copyto(theirs)

    def _statistic_pairs(self) -> list[tuple[NDArray, NDArray]]:
        """Windows on the view's own statistics and on the owner's, made once: a step needs hundreds of them."""
        arrays = [(key, mine, theirs) for key in self.private if self.owner is not None
                  for mine, theirs in zip(self.parameter(key).list_data(), self.owner.parameter(key).list_data(), strict=True)]
        now = [array for _, *pair in arrays for array in pair]
        known, pairs = self._windows
        if len(now) != len(known) or not all(map(is_, now, known)):  # Gluon replaces an array when its parameter moves
            widths = self.op.statistics()
            pairs = [(mine[:widths[key][0]], theirs[:widths[key][0]]) for key, mine, theirs in arrays]
            self._windows = now, pairs
        return pairs

    def hybrid_forward(self, F: Any, x: Tensor, **params: Tensor) -> Tensor:
        return self.trace(F, x, params)

    def trace(self, F: Any, x: Tensor, params: dict[str, Tensor] | None = None, mode: str = "normal",
              collected: list | None = None) -> Tensor:
        """Compute the layer; `mode` and `collected` as in `Tracer`. Without `params` the block's own are used.

        Other modes than 'normal' are never exported, so they use the compiled operators wherever there are any.
        """
        fast = self.fast if mode == "normal" else compiled.usable(self.parameters())
        if params is None:
            params = {key: p.var() if F is mx.sym else p.data(x.context) for key, p in self._reg_params.items()}
        tracer = Tracer(F, self.op, self.physical, self.stored_shapes, params, mode, collected, self.shared, fast,
                        self.momentum, [key for key, p in self._reg_params.items() if p.grad_req == "null"], self.dtype)
        return JOINS[type(self.op)](tracer, self.op, x)


def initial(op: Op, key: str) -> mx.init.Initializer:
    """The initialiser of a trainable parameter, as its primitive says."""
    name, what = key.rsplit(".", 1)
    primitive = next(p for p in op.chain() if getattr(p, "name", None) == name)
    if what == "bias":
        return mx.init.Zero()
    if isinstance(primitive, BatchNorm):
        return mx.init.Constant(primitive.gamma if what == "gamma" else primitive.beta)
    assert isinstance(primitive, Conv | Dense)
    outputs, inputs, *kernel = primitive.parameters()[key]
    area = math.prod(kernel)
    rules = {"normal_in": mx.init.Normal(1 / inputs), "he_out": mx.init.Normal(math.sqrt(2 / (area * outputs))),
             "uniform_in": mx.init.Uniform(1 / math.sqrt(area * inputs))}
    return rules[primitive.init] if isinstance(primitive.init, str) else mx.init.Normal(primitive.init)
