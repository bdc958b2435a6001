"""ONNX files: opset 13, any batch size, preprocessing and architecture recorded in the file.

The exporter inside MXNet 1.9.1 needs help: it stamps the newest opset of the installed onnx on opset-13 nodes, wants a
module `onnx.mapping` that newer onnx releases lack, lists every weight as a graph input, and misreads two defaults. Opset 13
is the newest for which it has converters; IR version 8 lets weights be initializers without being inputs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from oneshot_nas.errors import INSTALL_EXTRA, UserError, WorkError
from oneshot_nas.export.symbol import (
    INPUT,
    ImageShape,
    SymbolFiles,
    explain,
    few,
    image_shape,
    load_symbol,
    nodes_of,
    read_back_symbol,
    trace,
)
from oneshot_nas.files import atomic_path

OPSET = 13
IR_VERSION = 8
OUTPUT = "logits"


def require(module: str) -> ModuleType:
    """Return an imported module of the `onnx` extra. Raises: UserError that says how to install it."""
    try:
        return __import__(module)
    except ImportError as error:
        raise UserError(f"ONNX export needs the package '{module}', which is not installed; "
                        f"{INSTALL_EXTRA.format('onnx')} adds it") from error


def export_onnx(source: HybridBlock | SymbolFiles, path: str | os.PathLike, input_shape: ImageShape, *,
                notes: Mapping[str, Any] | None = None) -> Path:
    """Write a network, or symbol files, as an ONNX model and return its path.

    Input ``data`` (N, channels, height, width), float32; output ``logits`` (N, classes); N is free. `notes` (preprocessing,
    architecture) go into the model's metadata as JSON strings. Nothing is written unless the whole network can be expressed.

    Raises: UserError when the `onnx` extra is missing or an operator has no ONNX form (its layers are named); WorkError.
    """
    onnx = require("onnx")
    input_shape = image_shape(input_shape)
    graph, arrays = trace(source, input_shape) if isinstance(source, HybridBlock) else _read(source)
    problems = unsupported(graph)
    if problems:
        raise UserError(f"the network cannot become ONNX opset {OPSET}: " + "; ".join(problems))
    model = _convert(onnx, *_explicit(graph, {key.split(":", 1)[1]: array for key, array in arrays.items()}), input_shape)
    _finish(onnx, model, graph, input_shape)
    onnx.helper.set_model_props(model, {key: json.dumps(note, sort_keys=True) for key, note in (notes or {}).items()})
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise WorkError(f"the exported model is not valid ONNX, nothing was written: {explain(error)}") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return Path(path)


def unsupported(graph: mx.sym.Symbol) -> list[str]:
    """One phrase for each operator without a converter, naming its layers; empty when all can be converted."""
    known = set(mx.onnx.get_operator_support(OPSET))
    layers: dict[str, list[str]] = {}
    for node in nodes_of(graph):
        if node["op"] not in known:
            layers.setdefault(node["op"], []).append(node["name"])
    return [f"no converter for operator '{operator}' (layers {few(names)})" for operator, names in layers.items()]


def read_onnx(path: str | os.PathLike) -> Any:
    """Return an onnxruntime session on one thread. Raises: UserError when the file is missing or not a model it can run."""
    runtime = require("onnxruntime")
    if not Path(path).is_file():
        raise UserError(f"no ONNX file at {path}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, not printed
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the classes of onnxruntime's errors have no common base but Exception
        raise UserError(f"{path} is not a model that onnxruntime can run: {explain(error)}") from error


def _read(files: SymbolFiles) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Return graph and parameters of symbol files, checked against each other."""
    read_back_symbol(files)
    return load_symbol(files.symbol), mx.nd.load(str(files.params))


def _explicit(graph: mx.sym.Symbol, arrays: dict[str, mx.nd.NDArray]) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Return the same network without the two MXNet defaults that the exporter gets wrong.

    It takes a dense layer without the attribute `flatten` for flatten=False, and it uses gamma even where `fix_gamma` holds
    it at 1.
    """
    content = json.loads(graph.tojson())
    arrays = dict(arrays)
    for node in content["nodes"]:
        if node["op"] == "FullyConnected":
            node.setdefault("attrs", {}).setdefault("flatten", "True")
        elif node["op"] == "BatchNorm" and node.get("attrs", {}).get("fix_gamma", "True") in ("True", "1"):
            gamma = content["nodes"][node["inputs"][1][0]]["name"]
            arrays[gamma] = mx.nd.ones_like(arrays[gamma])
    return mx.sym.load_json(json.dumps(content)), arrays


def _convert(onnx: ModuleType, graph: mx.sym.Symbol, arrays: dict[str, mx.nd.NDArray], input_shape: ImageShape) -> Any:
    """Run MXNet's exporter and return its model. Raises: UserError naming the layers it may have failed at."""
    with tempfile.TemporaryDirectory() as folder, _as_exporter_expects(onnx):
        path = str(Path(folder) / "model.onnx")
        try:
            mx.onnx.export_model(graph, arrays, [(1, *input_shape[1:])], ["float32"], path, dynamic=True,
                                 dynamic_input_shapes=[("N", *input_shape[1:])])
        except OSError:
            raise
        except Exception as error:  # converters raise whatever comes: AttributeError, NotImplementedError, onnx's own
            suspects = [f"{node['name']} shape={node['attrs']['shape']}" for node in nodes_of(graph)
                        if node["op"] == "Reshape" and re.search(r"-[234]", node["attrs"].get("shape", ""))]
            hint = f"; reshape codes -2, -3 and -4 have no ONNX form, use reshape_like (layers {few(suspects)})"
            raise UserError(f"the network cannot become ONNX: {explain(error)}{hint if suspects else ''}") from error
        return onnx.load(path)


@contextmanager
def _as_exporter_expects(onnx: ModuleType) -> Iterator[None]:
    """Let onnx report opset 13 and have a module `onnx.mapping` while the block runs; afterwards all is as before.

    Meanwhile the exporter's warning of every dot is dropped: ours multiply by matrices, which is the same in ONNX.
    """
    newest = onnx.defs.onnx_opset_version
    lacking = not hasattr(onnx, "mapping")
    modules = {name: module for name, module in sys.modules.items() if name == "onnx.mapping"}
    log = logging.getLogger()
    try:
        log.addFilter(_no_dot)
        onnx.defs.onnx_opset_version = lambda: OPSET
        if lacking:
            onnx.mapping = sys.modules["onnx.mapping"] = _mapping(onnx)  # type: ignore[attr-defined]
        yield
    finally:
        log.removeFilter(_no_dot)
        onnx.defs.onnx_opset_version = newest
        if lacking:
            del onnx.mapping, sys.modules["onnx.mapping"]
            sys.modules.update(modules)


def _no_dot(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Converting dot operator")


def _mapping(onnx: ModuleType) -> ModuleType:
    """The module `onnx.mapping` as it was up to onnx 1.18, for the element types of MXNet."""
    module = ModuleType("onnx.mapping")
    types = [np.dtype(name) for name in ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")]
    numbers = {dtype: onnx.helper.np_dtype_to_tensor_dtype(dtype) for dtype in types}
    module.NP_TYPE_TO_TENSOR_TYPE = numbers  # type: ignore[attr-defined]
    module.TENSOR_TYPE_TO_NP_TYPE = {number: dtype for dtype, number in numbers.items()}  # type: ignore[attr-defined]
    return module


def _finish(onnx: ModuleType, model: Any, graph: mx.sym.Symbol, input_shape: ImageShape) -> None:
    """Set versions, drop weights from the inputs, name the output `logits` and give it its shape."""
    model.ir_version = IR_VERSION
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.producer_name = "oneshot_nas"
    body = model.graph
    weights = {tensor.name for tensor in body.initializer}
    inputs = [value for value in body.input if value.name not in weights]
    del body.input[:]
    body.input.extend(inputs)
    names = {OUTPUT: f"{OUTPUT}_inner", body.output[0].name: OUTPUT}
    for node in body.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in body.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    shape = graph.infer_shape(**{INPUT: (1, *input_shape[1:])})[1][0]
    kind = body.output[0].type.tensor_type.elem_type
    body.output[0].CopyFrom(onnx.helper.make_tensor_value_info(OUTPUT, kind, ["N", *shape[1:]]))
