"""FLOPs and parameters of a plan, exact integers under named counting rules.

| rule | counted, for one image |
|---|---|
| macs | multiply-adds of convolutions and dense layers |
| oneshot-mxnet | macs + biases + input elements of global pools |
| oneshot-mxnet-full | oneshot-mxnet + 3 per BatchNorm element + 1 per ReLU element |
| mmrazor | convolution macs and biases, dense weights, 2 per BatchNorm element, 1 per ReLU element, input elements of all pools |
| abs-lut | macs, but a dense layer as (2 in - 1) out |

Parameters are all trainable numbers under every rule. `micronet` is the score of the MicroNet challenge 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from oneshot_nas.arch import Arch, show, space_of
from oneshot_nas.errors import UserError
from oneshot_nas.later import check_later
from oneshot_nas.ops import MBConv, Op
from oneshot_nas.plan import Layer, Plan
from oneshot_nas.primitives import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    GlobalPool,
    Primitive,
    Shape,
    Shuffle,
    SqueezeExcite,
)

Rule = Callable[[Primitive, Shape, Shape], int]


@dataclass(frozen=True)
class Cost:
    """FLOPs of one image under `rule` and the number of trainable parameters."""

    flops: int
    params: int
    rule: str = "macs"


def _macs(primitive: Primitive, given: Shape, out: Shape) -> int:
    if isinstance(primitive, Conv):
        return prod(primitive.weight_shape) * out[1] * out[2]
    if isinstance(primitive, Dense):
        return primitive.in_features * primitive.out_features
    return 0


def _oneshot_mxnet(primitive: Primitive, given: Shape, out: Shape) -> int:
    if isinstance(primitive, GlobalPool):
        return prod(given)
    bias = prod(out) if isinstance(primitive, Conv | Dense) and primitive.bias else 0
    return _macs(primitive, given, out) + bias


def _oneshot_mxnet_full(primitive: Primitive, given: Shape, out: Shape) -> int:
    if isinstance(primitive, BatchNorm):
        return 3 * prod(given)
    return _relu(primitive, out) + _oneshot_mxnet(primitive, given, out)


def _relu(primitive: Primitive, out: Shape) -> int:
    return prod(out) if isinstance(primitive, Activation) and primitive.kind in ("relu", "relu6") else 0


def _mmrazor(primitive: Primitive, given: Shape, out: Shape) -> int:
    if isinstance(primitive, Dense):
        return primitive.in_features * primitive.out_features
    if isinstance(primitive, BatchNorm):
        return 2 * prod(given)
    if isinstance(primitive, AveragePool):
        return prod(given)
    return _relu(primitive, out) + _oneshot_mxnet(primitive, given, out)


def _abs_lut(primitive: Primitive, given: Shape, out: Shape) -> int:
    if isinstance(primitive, Dense):
        return (2 * primitive.in_features - 1) * primitive.out_features
    return _macs(primitive, given, out)


RULES: dict[str, Rule] = {
    "macs": _macs,
    "oneshot-mxnet": _oneshot_mxnet,
    "oneshot-mxnet-full": _oneshot_mxnet_full,
    "mmrazor": _mmrazor,
    "abs-lut": _abs_lut,
}


def check_rule(rule: str) -> str:
    """Return `rule` if there is one of that name. Raises: UserError."""
    if rule not in RULES:
        check_later(rule, f"the rules are {show(RULES)}")
        raise UserError(f"unknown cost rule '{rule}'; the rules are {show(RULES)}")
    return rule


def flattened(op: Op, shape: Shape) -> Iterator[tuple[Primitive, Shape, Shape]]:
    """Yield (primitive, input shape, output shape) of an op with squeeze-and-excite taken apart."""
    for primitive, given, out in op.trace(shape):
        if isinstance(primitive, SqueezeExcite):
            for inner in primitive.inner():
                after = inner.out_shape(given)
                yield inner, given, after
                given = after
        else:
            yield primitive, given, out


@lru_cache(maxsize=65536)
def op_cost(op: Op, shape: Shape, rule: str = "macs") -> Cost:
    """Cost of one op for a layer input of `shape` (channels, height, width). Raises: UserError for an unknown rule."""
    count = RULES[check_rule(rule)]
    flops = sum(count(primitive, given, out) for primitive, given, out in flattened(op, shape))
    return Cost(flops, sum(map(prod, op.parameters().values())), rule)


def layer_costs(plan: Plan, rule: str = "macs") -> list[tuple[Layer, Cost]]:
    """Every layer of the plan with its cost."""
    return [(layer, op_cost(layer.op, layer.in_shape, rule)) for layer in plan.layers]


def plan_cost(plan: Plan, rule: str = "macs") -> Cost:
    """Cost of a whole network; weights that several layers share count once."""
    costs = layer_costs(plan, rule)
    params = {layer.weights: found.params for layer, found in costs}
    return Cost(sum(found.flops for _, found in costs), sum(params.values()), rule)


def cost(arch: Arch, rule: str = "macs") -> Cost:
    """FLOPs (one image) and parameters of an architecture under a counting rule. Raises: UserError for an unknown rule.

    Example: ``cost(space.sample(random.Random(0))).flops``
    """
    return plan_cost(_space(arch.space, arch.options).plan(arch), rule)


@lru_cache(maxsize=64)
def _space(name: str, options):
    return space_of(Arch(name, options, options))


@dataclass(frozen=True)
class MicroNet:
    """Counts of the MicroNet challenge: multiplications, additions, parameters, and the score (lower is better)."""

    multiplications: int
    additions: int
    params: float
    score: float


def micronet(plan: Plan) -> MicroNet:
    """MicroNet score: params / 6.9 M + (multiplications + additions) / 1170 M, 32-bit arithmetic, BatchNorm free.

    Source: rules of the NeurIPS 2019 MicroNet challenge as the MXNet predecessor applied them; a channel shuffle counts as
    a sparse 1x1 convolution. hard-swish: 1 addition, 3 multiplications; hard-sigmoid: 1 addition, 2 multiplications; a shortcut:
    1 addition per element.
    """
    mults = adds = 0
    params = 0.0
    for layer in plan.layers:
        if isinstance(layer.op, MBConv) and layer.op.shortcut != "none":
            adds += prod(layer.out_shape)
        for primitive, given, out in flattened(layer.op, layer.in_shape):
            elements = prod(out)
            if isinstance(primitive, Conv | Dense):
                inputs = prod(primitive.weight_shape[1:]) if isinstance(primitive, Conv) else primitive.in_features
                mults += inputs * elements
                adds += (inputs - 1 + primitive.bias) * elements
                params += sum(map(prod, primitive.parameters().values()))
            elif isinstance(primitive, GlobalPool):
                mults += given[0]
                adds += (given[1] * given[2] - 1) * given[0]
            elif isinstance(primitive, Activation):
                per_element = {"relu": (1, 0), "relu6": (2, 0), "hswish": (3, 1), "hsigmoid": (2, 1), "swish": (3, 1)}
                mults += per_element[primitive.kind][0] * elements
                adds += per_element[primitive.kind][1] * elements
            elif isinstance(primitive, Shuffle):
                mults += elements
                params += primitive.channels + primitive.channels**2 / 16
    return MicroNet(mults, adds, params, params / 6.9e6 + (mults + adds) / 1170e6)
