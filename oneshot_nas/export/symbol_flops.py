"""FLOPs and parameters of an MXNet symbol graph, operator by operator, as exact integers.

This way of counting knows nothing of plans: it reads shapes from MXNet's own shape inference, so it checks the analytic
counter (`oneshot_nas.costs.analytic`, where the rules are described) and works for the symbol of any classification network.

Every operator is in one of three states: *counted* (a function below gives its cost, which may be 0 under a rule),
*ignored* on purpose (`IGNORED`, each with its reason) or *unknown*: listed in the result and warned of, never silent.

All counts are for one image: the graph is sized with batch 1, whatever batch the given shape has. Parameters are all
arguments of the graph but its inputs and labels; running statistics are auxiliary states and no parameters. A symbol does
not tell which arguments are held constant, so those are counted too (gamma under `fix_gamma`, for one).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import mxnet as mx

from oneshot_nas.costs.analytic import check_rule
from oneshot_nas.errors import UserError
from oneshot_nas.export.symbol import INPUT, check_graph, explain, few, image_shape, load_symbol, nodes_of

Shape = tuple[int, ...]
SHOWN = ("kernel", "stride", "dilate", "pad", "num_group", "pool_type", "global_pool", "act_type", "fix_gamma")
LOSSES = ("SoftmaxOutput", "LinearRegressionOutput", "LogisticRegressionOutput", "MAERegressionOutput", "SVMOutput")
FUSED = ("_sg_mkldnn_conv", "_sg_mkldnn_fully_connected")  # a convolution or dense layer with what follows it


class UnknownOperator(UserWarning):
    """An operator of the graph has no cost function and is not ignored on purpose."""


@dataclass(frozen=True)
class Rule:
    """What a rule charges. Multiply-adds of convolutions and dense layers cost 1 under every rule.

    Per output element: `conv_bias`, `dense_bias`, `relu` (ReLU6 included). Per input element: `global_pool`, `window_pool`,
    `norm`, `plain_norm` (a BatchNorm without gamma: `fix_gamma`). `dense_add`: each of a dense output's in - 1 additions.
    """

    conv_bias: int = 0
    dense_bias: int = 0
    dense_add: int = 0
    global_pool: int = 0
    window_pool: int = 0
    norm: int = 0
    plain_norm: int = 0
    relu: int = 0


RULES: dict[str, Rule] = {
    "macs": Rule(),
    "oneshot-mxnet": Rule(conv_bias=1, dense_bias=1, global_pool=1),
    "oneshot-mxnet-full": Rule(conv_bias=1, dense_bias=1, global_pool=1, norm=3, plain_norm=3, relu=1),
    "mmrazor": Rule(conv_bias=1, global_pool=1, window_pool=1, norm=2, plain_norm=1, relu=1),
    "abs-lut": Rule(dense_add=1),
}


@dataclass(frozen=True)
class Node:
    """One operator with shapes of one image; `sources` are the nodes it reads, `arguments` those of them that are variables."""

    name: str
    operator: str
    attrs: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Shape, ...] = ()
    output: Shape = ()
    sources: tuple[Node, ...] = field(default=(), repr=False)

    @property
    def arguments(self) -> tuple[Node, ...]:
        """Variables that this node reads, labels of a loss excepted."""
        sources = self.sources[:1] if self.operator in LOSSES else self.sources
        return tuple(source for source in sources if source.operator == "null")

    def flag(self, name: str, default: str = "False") -> bool:
        """A Boolean attribute."""
        return self.attrs.get(name, default).lower() in ("true", "1")


def _convolution(node: Node, rule: Rule) -> int:
    out = prod(node.output)
    return out * prod(node.inputs[1][1:]) + rule.conv_bias * out * (len(node.inputs) > 2)


def _deconvolution(node: Node, rule: Rule) -> int:
    bias = rule.conv_bias * prod(node.output) * (len(node.inputs) > 2)
    return prod(node.inputs[0]) * prod(node.inputs[1][1:]) + bias


def _dense(node: Node, rule: Rule) -> int:
    out, features = prod(node.output), node.inputs[1][1]
    return out * features + rule.dense_add * out * (features - 1) + rule.dense_bias * out * (len(node.inputs) > 2)


def _pooling(node: Node, rule: Rule) -> int:
    return prod(node.inputs[0]) * (rule.global_pool if node.flag("global_pool") else rule.window_pool)


def _adaptive_pooling(node: Node, rule: Rule) -> int:
    return prod(node.inputs[0]) * (rule.global_pool if prod(node.output[2:]) == 1 else rule.window_pool)


def _batch_norm(node: Node, rule: Rule) -> int:
    return prod(node.inputs[0]) * (rule.plain_norm if node.flag("fix_gamma", "True") else rule.norm)


def _norm(node: Node, rule: Rule) -> int:
    return prod(node.inputs[0]) * rule.norm


def _relu(node: Node, rule: Rule) -> int:
    return prod(node.output) * rule.relu


def _activation(node: Node, rule: Rule) -> int:
    return _relu(node, rule) if node.attrs.get("act_type") == "relu" else 0


def _clip(node: Node, rule: Rule) -> int:
    """ReLU6 is clip(x, 0, 6); clip(x + 3, 0, 6) is a piece of hard-sigmoid or hard-swish and costs nothing."""
    before = node.sources[0]
    shifted = before.operator == "_plus_scalar" and float(before.attrs["scalar"]) == 3
    return 0 if shifted or (float(node.attrs["a_min"]), float(node.attrs["a_max"])) != (0, 6) else _relu(node, rule)


COUNTED: dict[str, Callable[[Node, Rule], int]] = {
    "Convolution": _convolution, "Deconvolution": _deconvolution, "FullyConnected": _dense,
    "Pooling": _pooling, "_contrib_quantized_pooling": _pooling, "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling,
    "BatchNorm": _batch_norm, "_contrib_SyncBatchNorm": _batch_norm,
    "LayerNorm": _norm, "GroupNorm": _norm, "InstanceNorm": _norm,
    "Activation": _activation, "relu": _relu, "clip": _clip,
}

IGNORED: dict[str, str] = {operator: reason for reason, operators in {
    "only moves or views data": """Concat SliceChannel _split_v2 slice slice_axis slice_like Reshape reshape_like Flatten
        transpose SwapAxis expand_dims squeeze stack Crop Pad take reverse tile repeat broadcast_to broadcast_axis broadcast_like
        depth_to_space space_to_depth Cast amp_cast amp_multicast _copy BlockGrad""",
    "one elementary operation per element, which no rule counts": """elemwise_add elemwise_sub elemwise_mul elemwise_div add_n
        broadcast_add broadcast_sub broadcast_mul broadcast_div _plus_scalar _minus_scalar _rminus_scalar _mul_scalar _div_scalar
        _rdiv_scalar _maximum_scalar _minimum_scalar broadcast_maximum broadcast_minimum negative square sqrt abs sum
        _lesser_scalar _lesser_equal_scalar _greater_scalar _greater_equal_scalar""",
    "an activation that no rule counts": """LeakyReLU sigmoid hard_sigmoid tanh softsign erf exp softmax log_softmax
        SoftmaxActivation SoftmaxOutput""",
    "does nothing at inference": "Dropout _identity_with_attr_like_rhs",
    "resizes by interpolation, which no rule counts": "UpSampling _contrib_BilinearResize2D",
    "makes a constant": "ones_like zeros_like _zeros _ones _arange _full shape_array",
    "changes the number format": "_contrib_quantize _contrib_quantize_v2 _contrib_dequantize _contrib_requantize",
}.items() for operator in operators.split()}


@dataclass(frozen=True)
class Row:
    """One operator of the graph with its cost for one image; `state` is counted, ignored or unknown.

    `params` are those that no earlier row has, so that the rows add up even where weights are shared.
    """

    name: str
    operator: str
    input_shape: Shape
    output_shape: Shape
    attributes: dict[str, str]
    flops: int
    params: int
    state: str


@dataclass(frozen=True)
class SymbolCost:
    """The cost of a symbol graph: `rows` in order of computation, their totals, and what is missing from them."""

    rule: str
    input_shape: Shape
    rows: tuple[Row, ...]

    @property
    def flops(self) -> int:
        """FLOPs of one image."""
        return sum(row.flops for row in self.rows)

    @property
    def params(self) -> int:
        """Number of trainable numbers, shared weights counted once."""
        return sum(row.params for row in self.rows)

    @property
    def unknown(self) -> tuple[Row, ...]:
        """Rows whose operator is not known; their FLOPs are missing from the total."""
        return tuple(row for row in self.rows if row.state == "unknown")


def count_symbol(symbol: mx.sym.Symbol | str | os.PathLike, input_shape: Shape = (1, 3, 224, 224), rule: str = "macs",
                 data_name: str = INPUT) -> SymbolCost:
    """FLOPs and parameters of a symbol, or of a symbol file, for one image of `input_shape` (batch, channels, height, width).

    Warns: UnknownOperator, once per operator. Raises: UserError for a file that is no symbol, a graph without an input
    `data_name`, an unknown rule, and a shape that does not fit the network.
    """
    charges = RULES[check_rule(rule)]
    shape = (1, *image_shape(input_shape)[1:])
    if isinstance(symbol, mx.sym.Symbol):
        check_graph(symbol)
    else:
        symbol = load_symbol(symbol)
    rows: list[Row] = []
    seen = {data_name}
    auxiliary = set(symbol.list_auxiliary_states())
    for node in walk(symbol, shape, data_name):
        fresh = {source.name: source.output for source in node.arguments if source.name not in seen | auxiliary}
        seen.update(fresh)
        state = _state(node)
        rows.append(Row(node.name, node.operator, node.inputs[0] if node.inputs else (), node.output,
                        {key: node.attrs[key] for key in SHOWN if key in node.attrs},
                        COUNTED[node.operator](node, charges) if state == "counted" else 0,
                        sum(map(prod, fresh.values())), state))
    cost = SymbolCost(rule, shape, tuple(rows))
    for line in describe_unknown(cost):
        warnings.warn(line, UnknownOperator, stacklevel=2)
    return cost


def _state(node: Node) -> str:
    if node.operator == "dot" and any(map(_constant, node.sources)):
        return "ignored"  # a product with a matrix that the graph itself computes: resizing by interpolation
    return "counted" if node.operator in COUNTED else "ignored" if node.operator in IGNORED else "unknown"


def _constant(node: Node) -> bool:
    """Whether a node depends on no variable."""
    return node.operator != "null" and all(map(_constant, node.sources))


def describe_unknown(cost: SymbolCost) -> list[str]:
    """One sentence for each unknown operator, naming it and its nodes."""
    names: dict[str, list[str]] = {}
    for row in cost.unknown:
        names.setdefault(row.operator, []).append(row.name)
    return [f"operator '{operator}' has no cost rule and is missing from the FLOPs: {few(nodes)}"
            for operator, nodes in names.items()]


def walk(symbol: mx.sym.Symbol, input_shape: Shape, data_name: str = INPUT) -> Iterator[Node]:
    """Yield the operators of a graph in order of computation, fused ones taken apart. Raises: UserError (see `count_symbol`)."""
    graph = nodes_of(symbol)
    shapes = _infer(symbol, graph, input_shape, data_name)
    nodes: list[Node] = []
    for position, entry in enumerate(graph):
        wires = [(source, output) for source, output, *_ in entry["inputs"]]
        node = Node(entry["name"], entry["op"], entry["attrs"], tuple(shapes[s][o] for s, o in wires), shapes[position][0],
                    tuple(nodes[source] for source, _ in wires))
        nodes.append(node)
        if node.operator in FUSED:
            yield from _unfused(node, entry["subgraphs"][0])
        elif node.operator != "null":
            yield node


def _unfused(fused: Node, subgraph: dict[str, Any]) -> Iterator[Node]:
    """Yield the operators inside a fused one: a convolution or dense layer, then operators that keep its output shape."""
    given = iter(zip(fused.sources, fused.inputs, strict=True))
    inner: list[tuple[Node, Shape]] = []
    for entry in subgraph["nodes"]:
        if entry["op"] == "null":
            inner.append(next(given))
            continue
        wires = [inner[source] for source, *_ in entry["inputs"]]
        node = Node(f"{fused.name}/{entry['name']}", entry["op"], entry.get("attrs", {}), tuple(shape for _, shape in wires),
                    fused.output, tuple(source for source, _ in wires))
        inner.append((node, fused.output))
        yield node


def _infer(symbol: mx.sym.Symbol, graph: list[dict[str, Any]], input_shape: Shape, data_name: str) -> list[list[Shape]]:
    """Return the shapes of all visible outputs of every node, from MXNet's shape inference.

    Nodes are renamed to their positions for the inference: names need not be unique in a symbol, positions are.
    """
    names = [node["name"] for node in graph]
    if data_name not in symbol.list_arguments():
        raise UserError(f"the symbol has no input '{data_name}'; its arguments are {few(symbol.list_arguments())}")
    numbered = json.loads(symbol.tojson())
    for position, node in enumerate(numbered["nodes"]):
        node["name"] = str(position)
    internals = mx.sym.load_json(json.dumps(numbered)).get_internals()
    given = ",".join(map(str, input_shape))
    try:
        _, found, _ = internals.infer_shape_partial(
            **{str(position): input_shape for position, name in enumerate(names) if name == data_name})
    except Exception as error:  # MXNet raises MXNetError, and a bare Exception for tensors of 2^31 elements
        reason = re.sub(r"operator (\d+):", lambda match: f"operator {names[int(match[1])]}:", explain(error))
        raise UserError(f"input shape {given} does not fit the network: {reason}") from error
    shapes: list[list[Shape]] = [[] for _ in names]
    for label, shape in zip(internals.list_outputs(), found, strict=True):
        position = int(label.split("_")[0])
        if not shape or min(shape) < 1:
            raise UserError(f"the shape of '{names[position]}' does not follow from input shape {given}")
        shapes[position].append(shape)
    return shapes
