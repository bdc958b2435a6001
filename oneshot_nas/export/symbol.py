"""MXNet symbol files: written from a Gluon network, read back, and checked before MXNet's native code sees them.

A network is two files, ``NAME-symbol.json`` and ``NAME-0000.params``, as `SymbolBlock.imports` and `Module` expect them;
``NAME-0000.params.json`` beside them tells kind, version, input shape and whatever the caller wants to record.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mxnet as mx
from mxnet.gluon import HybridBlock, SymbolBlock
from mxnet.gluon.parameter import DeferredInitializationError

from oneshot_nas.errors import UserError
from oneshot_nas.files import parse_json, read_params_about, read_text, write_params, write_text
from oneshot_nas.train.checkpoint import EXPORTED, save_arrays

INPUT = "data"
MAX_SIDE = 2**16
# Attributes that MXNet divides by: a zero kills the process with SIGFPE instead of raising an exception.
DIVISORS = ("num_group", "num_groups")

ImageShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class SymbolFiles:
    """Paths of an exported network: its graph and its parameters."""

    symbol: Path
    params: Path


def image_shape(shape: object) -> ImageShape:
    """Return `shape` as (batch, channels, height, width). Raises: UserError unless it is four positive integers."""
    numbers = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(numbers) != 4 or not all(type(n) is int and 1 <= n <= MAX_SIDE for n in numbers):
        raise UserError(f"input shape {shape} is not batch,channels,height,width, "
                        f"four whole numbers from 1 to {MAX_SIDE}; give for example 1,3,224,224")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def explain(error: BaseException) -> str:
    """The one line of an MXNet error that tells what was wrong, without the C++ file and time."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if "Check failed" in line or "MXNetError:" in line), lines[-1])
    return re.sub(r"^\w*Error: |\[[\d:]+\] \S+:\d+: ", "", line)


def few(names: Iterable[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def trace(net: HybridBlock, input_shape: ImageShape) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Return the symbol graph of `net` and its parameters on the CPU, keyed ``arg:NAME`` and ``aux:NAME``.

    The network keeps its hybridization; parameters that wait for their shapes get them from one image of zeros.
    Parameters that the graph does not use are left out.

    Raises: UserError when the network is not initialised, not a HybridBlock, does not fit the shape or any batch size, or has
    several outputs.
    """
    if not isinstance(net, HybridBlock):
        raise UserError(f"only a HybridBlock can be exported, got {type(net).__name__}")
    parameters = net.collect_params()
    try:
        _finish_initialization(net, input_shape)
        with mx.name.NameManager():
            graph = net(mx.sym.var(INPUT))
        if not isinstance(graph, mx.sym.Symbol) or len(graph.list_outputs()) != 1:
            raise UserError("only networks with exactly one output can be exported")
        graph = _canonical(graph)
        _check_batch(graph, input_shape)
        tags = {**dict.fromkeys(graph.list_arguments(), "arg"), **dict.fromkeys(graph.list_auxiliary_states(), "aux")}
        arrays = {f"{tags[name]}:{name}": parameter.list_data()[0].as_in_context(mx.cpu())
                  for name, parameter in parameters.items() if name in tags}
    except (RuntimeError, ValueError, mx.MXNetError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the network cannot be exported: {explain(error)}") from error
    lost = sorted(set(tags) - {INPUT} - {key.split(":", 1)[1] for key in arrays})
    if lost:
        raise UserError(f"the graph needs {few(lost)}, which are not parameters of the network")
    return graph, arrays


def _canonical(graph: mx.sym.Symbol) -> mx.sym.Symbol:
    """Return the same graph as if it were the first that was ever traced from its network.

    Every trace raises the version number of the auxiliary variables, which is written into the file and means nothing there.
    """
    content = json.loads(graph.tojson())
    first: dict[int, int] = {}
    for node in content["nodes"]:
        for wire in node["inputs"]:
            if wire[2]:
                wire[2] += 1 - first.setdefault(wire[0], wire[2])
    return mx.sym.load_json(json.dumps(content))


def _check_batch(graph: mx.sym.Symbol, input_shape: ImageShape) -> None:
    """Raise UserError unless N images of `input_shape` give N rows of outputs; MXNet may abort the process otherwise."""
    for batch in (1, 3):
        _, found, _ = graph.infer_shape_partial(**{INPUT: (batch, *input_shape[1:])})
        if not found[0] or found[0][0] != batch:
            raise UserError(f"{batch} images give outputs of shape {found[0]}, expected one row for each image")


def context_of(net: HybridBlock) -> mx.Context:
    """The first context that holds the parameters of `net`, the CPU when it has none."""
    return next((parameter.list_ctx()[0] for parameter in net.collect_params().values()), mx.cpu())


def _finish_initialization(net: HybridBlock, input_shape: ImageShape) -> None:
    """Give parameters that wait for their shapes a value, by one image of zeros. Raises: RuntimeError when not initialised."""
    try:
        for parameter in net.collect_params().values():
            parameter.list_data()
    except DeferredInitializationError:
        net(mx.nd.zeros((1, *input_shape[1:]), ctx=context_of(net))).wait_to_read()


def export_symbol(net: HybridBlock, folder: str | os.PathLike, name: str, input_shape: ImageShape,
                  about: dict[str, Any] | None = None) -> SymbolFiles:
    """Write `net` as ``NAME-symbol.json`` and ``NAME-0000.params`` into `folder` and return their paths.

    Each file appears in one step, and the same weights give the same bytes. `about` (architecture, preprocessing ...) is
    recorded in ``NAME-0000.params.json``. Raises: UserError (see `trace`), WorkError when the disk refuses.
    """
    input_shape = image_shape(input_shape)
    graph, arrays = trace(net, input_shape)
    files = SymbolFiles(Path(folder) / f"{name}-symbol.json", Path(folder) / f"{name}-0000.params")
    described = {"symbol": files.symbol.name, "input_name": INPUT, "input_shape": list(input_shape), **(about or {})}

    write_params(files.params, EXPORTED, partial(save_arrays, arrays=arrays), described)
    write_text(files.symbol, graph.tojson() + "\n")
    return files


def read_back_symbol(files: SymbolFiles) -> SymbolBlock:
    """Return the network that the two files hold, as a block on the CPU.

    Raises: UserError when a file is missing or broken, or when they do not belong together.
    """
    load_symbol(files.symbol)
    read_params_about(files.params, EXPORTED)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Cannot decide type", UserWarning)  # of the input; it is known once data comes
            return SymbolBlock.imports(str(files.symbol), [INPUT], str(files.params), ctx=mx.cpu())
    except (mx.MXNetError, ValueError, AssertionError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{files.params} does not hold the parameters of {files.symbol}: {explain(error)}") from error


def load_symbol(path: str | os.PathLike) -> mx.sym.Symbol:
    """Return the symbol of a JSON file after checking what MXNet would crash on.

    Raises: UserError when the file is missing, no JSON, no symbol, or names operators that MXNet does not have.
    """
    text = read_text(path, "symbol file")
    graph = parse_json(text, f"symbol file {path}")
    try:
        _check_order(graph)
        symbol = mx.sym.load_json(text)
        check_graph(symbol)
    except (mx.MXNetError, ValueError) as error:
        raise UserError(f"{path} is not a symbol that MXNet can read: {explain(error)}") from error
    return symbol


def nodes_of(symbol: mx.sym.Symbol) -> list[dict[str, Any]]:
    """The nodes of a symbol in order of computation: op, name, attrs (always there), inputs, subgraphs."""
    return [{"attrs": {}, **node} for node in parse_json(symbol.tojson(), "symbol")["nodes"]]


def check_graph(symbol: mx.sym.Symbol) -> None:
    """Raise UserError for a graph that would kill the process: wires that lead nowhere, attributes that divide by zero."""
    graph = parse_json(symbol.tojson(), "symbol")
    starts = graph["node_row_ptr"]
    wires = [(node["name"], wire) for node in graph["nodes"] for wire in node["inputs"]]
    for name, (source, output, *_) in wires + [("the graph's output", head) for head in graph["heads"]]:
        if output >= starts[source + 1] - starts[source]:
            raise UserError(f"{name} reads output {output} of {graph['nodes'][source]['name']}, which has no such output")
    for node in graph["nodes"]:
        attrs = node.get("attrs", {})
        for key in DIVISORS:
            if any(int(number) == 0 for number in re.findall(r"\d+", attrs.get(key, ""))):
                raise UserError(f"layer '{node['name']}' ({node['op']}) has {key}={attrs[key]}; it must be at least 1")
        if node["op"] == "Reshape" and re.search(r"-4, *0", attrs.get("shape", "")):
            raise UserError(f"layer '{node['name']}' (Reshape) splits an axis into 0 parts: shape={attrs['shape']}")


def _check_order(graph: Any) -> None:
    """Raise UserError unless the parsed JSON has the form of a symbol whose nodes only read earlier nodes."""
    if not isinstance(graph, dict) or not all(isinstance(graph.get(key), list) and graph[key] for key in ("nodes", "heads")):
        raise UserError("it has no list of nodes and heads")
    for position, node in enumerate(graph["nodes"]):
        wires = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(wires, list) or not all(isinstance(wire, list) and len(wire) >= 2 and
                                                  all(type(number) is int and number >= 0 for number in wire)
                                                  and wire[0] < position for wire in wires):
            raise UserError(f"node {position} does not list inputs among the nodes before it")
