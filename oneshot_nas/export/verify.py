"""Exported files against the network they came from: read back, run on random images, largest difference measured.

Two checks for each format. With the *real* weights the shipped files themselves are compared. A freshly initialised network
has outputs near zero, where that proves little, so the same graph is also written to a temporary folder with *randomised*
weights and BatchNorm statistics, gamma and beta, and compared again. The shipped files never hold anything but real weights.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon import Constant, HybridBlock, SymbolBlock

from oneshot_nas.errors import WorkError
from oneshot_nas.export.onnx import INPUT, OUTPUT, export_onnx, read_onnx
from oneshot_nas.export.symbol import (
    ImageShape,
    SymbolFiles,
    context_of,
    export_symbol,
    image_shape,
    nodes_of,
    read_back_symbol,
    trace,
)

TOLERANCE = 1e-4  # of the outputs' standard deviation
# Weights as they are may blow rounding up, those of a supernet that has hardly been trained a thousandfold: the outputs may then
# differ by so many times what one unit in the last place of the images does, but never by more than this share.
UNITS, MOST = 32, 0.01
SENSITIVE = 0.01  # share of that deviation which must come from the image, else early layers are not seen in the outputs
# Sizes of random weights, the first that is sensitive is taken; they matter to networks without BatchNorm only: 1.0 lets deep
# ones forget the image, 1.4 can blow rounding up.
GAINS = (1.2, 1.25, 1.3, 1.4)
# Random gamma, beta and running variance, by their place among the inputs of BatchNorm. Most ReLUs are open, so that small
# differences shrink from layer to layer; around a beta of 0 they grow, in 50 layers a thousandfold. Measured: one unit in the
# last place of the image moves the outputs of the 16 networks tried, ours and GluonCV's, by at most 2e-5 of their deviation.
RANGES = {1: (0.5, 2.5), 2: (0.9, 2.1), 4: (0.5, 1.5)}
BATCHES = (1, 3)

Reader = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """How far a file's outputs are from the network's.

    `max_abs_diff` is the largest difference, `std` the standard deviation of all outputs, `image_std` the mean standard
    deviation of one output over the images of the batch, `unit` what one unit in the last place of the images does to the
    outputs, measured only where the difference is larger than usual.
    """

    file: str
    weights: str
    batch: int
    max_abs_diff: float
    std: float
    image_std: float
    unit: float = 0.0

    def __str__(self) -> str:
        blown = f"; one unit in the last place of the images moves them by {self.unit:.3g}" if self.unit else ""
        return (f"{self.file}, {self.weights} weights, batch {self.batch}: max abs diff {self.max_abs_diff:.3g}, "
                f"outputs' std {self.std:.3g}{blown}")


def verify_symbol(net: HybridBlock, files: SymbolFiles, input_shape: ImageShape, seed: int = 0) -> tuple[Difference, ...]:
    """Return the differences between `net` and its symbol files. Raises: WorkError when one is too large, UserError."""

    def write(folder: Path) -> Reader:
        return symbol_reader(export_symbol(net, folder, "randomised", input_shape))

    return _verify(net, symbol_reader(files), write, files.symbol, input_shape, seed)


def verify_onnx(net: HybridBlock, path: str | os.PathLike, input_shape: ImageShape, seed: int = 0) -> tuple[Difference, ...]:
    """Return the differences between `net` and its ONNX file, run by onnxruntime. Raises: WorkError, UserError."""

    def write(folder: Path) -> Reader:
        return onnx_reader(export_onnx(net, folder / "randomised.onnx", input_shape))

    return _verify(net, onnx_reader(path), write, Path(path), input_shape, seed)


def symbol_reader(files: SymbolFiles) -> Reader:
    """Return images -> outputs of symbol files, read by `SymbolBlock.imports`."""
    block = read_back_symbol(files)
    return lambda images: block(mx.nd.array(images)).asnumpy()


def onnx_reader(path: str | os.PathLike) -> Reader:
    """Return images -> outputs of an ONNX file, run by onnxruntime on one thread."""
    session = read_onnx(path)
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def random_images(shape: ImageShape, seed: int) -> np.ndarray:
    """Return images of `shape`: noise on a random colour for each, so that global pooling does not make them alike."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape, dtype=np.float32) + 2 * rng.standard_normal((*shape[:2], 1, 1), dtype=np.float32)


def compare(net: HybridBlock, reader: Reader, shape: ImageShape, seed: int, file: str = "file",
            weights: str = "real") -> Difference:
    """Return the difference between `net` and `reader` on random images of `shape`.

    Raises: WorkError when the shapes differ, a number is not finite, or the difference exceeds 1e-4 of the outputs' standard
    deviation (rounding of float32 outputs, 8 units in the last place of the largest, is always allowed; of real weights that
    blow it up, see `UNITS`, more).
    """
    images = random_images(shape, seed)
    expected = _run(net, images)
    try:
        found = np.asarray(reader(images))
    except Exception as error:  # the file was read but does not run: whatever the runtime raises
        raise WorkError(f"{file} does not run on images of shape {shape}: {error}") from error
    if found.shape != expected.shape:
        raise WorkError(f"{file} gives outputs of shape {found.shape}, the network of shape {expected.shape}")
    if not np.isfinite(expected).all():
        raise WorkError(f"the network's own outputs are not finite with {weights} weights, so {file} cannot be verified")
    difference = Difference(file, weights, shape[0], float(np.abs(found - expected).max()), float(expected.std()),
                            _image_std(expected))
    rounding = 8 * float(np.finfo(np.float32).eps) * float(np.abs(expected).max())
    allowed = TOLERANCE * difference.std + rounding
    if not difference.max_abs_diff <= allowed and weights == "real":
        difference = replace(difference, unit=_unit(net, images, expected, seed))
        allowed = max(allowed, min(UNITS * difference.unit, MOST * difference.std))
    if not difference.max_abs_diff <= allowed:
        raise WorkError(f"{difference}; allowed is {allowed:.2g}: the file is not the network, do not use it")
    return difference


def _unit(net: HybridBlock, images: np.ndarray, expected: np.ndarray, seed: int) -> float:
    """How far outputs move when every number of the images moves by one unit in its last place, up or down by chance."""
    ends = np.where(np.random.default_rng(seed).random(images.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
    return float(np.abs(_run(net, np.nextafter(images, ends)) - expected).max())


@contextmanager
def randomised(net: HybridBlock, input_shape: ImageShape, seed: int = 0) -> Iterator[None]:
    """Give `net` random weights, gamma, beta and running statistics while the block runs, then exactly its own again.

    Running statistics are those of random images, as in a trained network: with others, outputs of deep networks explode, and
    rounding with them. The weights are as large as it takes for the outputs to depend on the image.
    """
    graph, arrays = trace(net, image_shape(input_shape))
    used = {key.split(":", 1)[1] for key in arrays}
    parameters = {name: parameter for name, parameter in net.collect_params().items()
                  if name in used and not isinstance(parameter, Constant)}
    kept = [(array, array.copy()) for parameter in parameters.values() for array in parameter.list_data()]
    mx.nd.waitall()
    places = _norm_places(graph)
    images = random_images((BATCHES[-1], *input_shape[1:]), seed)
    try:
        for gain in GAINS:
            rng = np.random.default_rng(seed)
            for name, parameter in parameters.items():
                shape = parameter.shape
                if places.get(name) in RANGES:
                    values = rng.uniform(*RANGES[places[name]], shape)
                else:
                    values = rng.normal(0, gain * np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2, shape)
                parameter.set_data(mx.nd.array(values, dtype=parameter.dtype))
            for name, values in _batch_statistics(graph, net, images).items():
                parameters[name].set_data(mx.nd.array(values))
            outputs = _run(net, images)
            if _image_std(outputs) > SENSITIVE * outputs.std():
                break
        yield
    finally:
        for array, values in kept:
            array[:] = values
        mx.nd.waitall()


def _batch_statistics(graph: mx.sym.Symbol, net: HybridBlock, images: np.ndarray) -> dict[str, np.ndarray]:
    """Name of each running mean and variance -> its values for `images`, when every BatchNorm normalises by the batch.

    Variances far below a layer's mean one are raised: their channels would drown the others.
    """
    content = json.loads(graph.tojson())
    norms = [node for node in content["nodes"] if node["op"] == "BatchNorm"]
    if not norms:
        return {}
    for node in norms:
        node.get("attrs", {}).pop("use_global_stats", None)
    content["heads"] = [node["inputs"][0] for node in norms]
    inputs = SymbolBlock(mx.sym.load_json(json.dumps(content)), mx.sym.var(INPUT, dtype="float32"), net.collect_params())
    with mx.autograd.train_mode():
        outputs = inputs(mx.nd.array(images, ctx=context_of(net)))
    found = {}
    for node, seen in zip(norms, outputs if isinstance(outputs, list) else [outputs], strict=True):
        mean_name, variance_name = (content["nodes"][node["inputs"][place][0]]["name"] for place in (3, 4))
        channels = np.moveaxis(seen.asnumpy().astype(np.float64), int(node.get("attrs", {}).get("axis", 1)), 0)
        flat = channels.reshape(len(channels), -1)
        variance = flat.var(axis=1)
        found[mean_name], found[variance_name] = flat.mean(axis=1), np.maximum(variance, max(0.1 * variance.mean(), 1e-3))
    return found


def _run(net: HybridBlock, images: np.ndarray) -> np.ndarray:
    """Outputs of the network where its parameters are."""
    return net(mx.nd.array(images, ctx=context_of(net))).asnumpy()


def _image_std(outputs: np.ndarray) -> float:
    """Mean standard deviation of an output over the images of a batch."""
    return float(outputs.std(axis=0).mean())


def _norm_places(graph: mx.sym.Symbol) -> dict[str, int]:
    """Name -> place of every array among the inputs of a BatchNorm: 1 gamma, 2 beta, 3 running mean, 4 running variance."""
    nodes = nodes_of(graph)
    return {nodes[node["inputs"][place][0]]["name"]: place for node in nodes if node["op"].endswith("BatchNorm")
            for place in range(1, 5)}


def _verify(net: HybridBlock, shipped: Reader, write: Callable[[Path], Reader], file: Path, input_shape: ImageShape,
            seed: int) -> tuple[Difference, ...]:
    """Compare the shipped file with real weights, and what `write` makes with randomised ones, in all batch sizes."""
    shapes = [(batch, *image_shape(input_shape)[1:]) for batch in BATCHES]
    found = [compare(net, shipped, shape, seed, file.name) for shape in shapes]
    with randomised(net, input_shape, seed), tempfile.TemporaryDirectory() as folder:
        reader = write(Path(folder))
        found += [compare(net, reader, shape, seed, file.name, "randomised") for shape in shapes]
    if not found[-1].image_std > SENSITIVE * found[-1].std:
        raise WorkError(f"{file.name}: the network's outputs hardly depend on the image, so the comparison proves nothing")
    return tuple(found)
