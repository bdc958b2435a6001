"""From a run to shipped files: the network with its preprocessing, written in each format, read back and compared."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mxnet.gluon import HybridBlock

from oneshot_nas.arch import read_arch_file
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.errors import UserError
from oneshot_nas.export.onnx import export_onnx
from oneshot_nas.export.symbol import export_symbol
from oneshot_nas.export.verify import Difference, verify_onnx, verify_symbol
from oneshot_nas.nets.fixed import Network, without_resize
from oneshot_nas.nets.inherit import inherit
from oneshot_nas.nets.recalibrate import recalibrate

# What the network's own resize is, for those who do it outside (`oneshot_nas.blocks.resize`)
BICUBIC = {"interpolation": "bicubic", "a": -0.75, "centres": "half-pixel", "borders": "repeated", "antialias": False,
           "after": "crop and normalisation"}


@dataclass(frozen=True)
class Delivery:
    """A network ready to ship; `identity` says which it is ("arch", or "model" and "classes").

    `resolution` is the side of its images where the resize was left out of it.
    """

    net: HybridBlock
    identity: dict[str, Any]
    preprocessing: Preprocessing
    resolution: int | None = None

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(1, 3, H, W)."""
        size = self.resolution or self.preprocessing.input_size
        return (1, 3, size, size)

    def about(self) -> dict[str, Any]:
        """What is recorded with every file: which network it is, and how its images are made."""
        preprocessing = self.preprocessing.to_json()
        if self.resolution is not None:
            preprocessing["resize"] = {"size": self.resolution, **BICUBIC}
        return {**self.identity, "preprocessing": preprocessing}


def resize_outside(network: Delivery) -> Delivery:
    """The network without its resize: it takes images of its resolution, and the preprocessing says how they are resized.

    Raises: UserError when it resizes nothing.
    """
    if not isinstance(network.net, Network):
        raise UserError("this network resizes nothing; leave out --resize outside")
    net, size = without_resize(network.net)
    return replace(network, net=net, identity={"arch": net.arch.to_json()}, resolution=size)


def from_run(folder: str) -> Delivery:
    """The trained fixed network of a run. Raises: UserError when the folder is not such a run."""
    from oneshot_nas.train.runs import load_fixed

    run = load_fixed(folder)
    return Delivery(run.net, run.identity, run.preprocessing)


def from_supernet(folder: str, arch_file: str) -> Delivery:
    """A stand-alone network with the supernet's weights, recalibrated on all its calibration images. Raises: UserError."""
    from oneshot_nas.indicators.accuracy import load_evaluator
    from oneshot_nas.train.runs import load_supernet

    arch = load_supernet(folder).space.check(read_arch_file(arch_file))
    evaluator = load_evaluator(folder)
    net = recalibrate(inherit(evaluator.net, arch), evaluator.calibration, evaluator.method)
    return Delivery(net, {"arch": arch.to_json()}, load_supernet(folder).preprocessing)


def deliver(network: Delivery, out: str | os.PathLike, formats: list[str], name: str) -> list[dict[str, Any]]:
    """Write `network` in the formats 'symbol' and 'onnx' into `out`; each file is read back and compared.

    Returns: one object per format with its files and the largest difference found. Raises: WorkError when it is too large.
    """
    about = network.about()
    folder = Path(out)
    results = []
    if "symbol" in formats:
        files = export_symbol(network.net, folder, name, network.input_shape, about)
        found = verify_symbol(network.net, files, network.input_shape)
        results.append(_result("symbol", [files.symbol, files.params], found))
    if "onnx" in formats:
        path = export_onnx(network.net, folder / f"{name}.onnx", network.input_shape,
                           notes=about)
        results.append(_result("onnx", [path], verify_onnx(network.net, path, network.input_shape)))
    return results


def _result(kind: str, files: list[Path], found: tuple[Difference, ...]) -> dict[str, Any]:
    worst = max(found, key=lambda difference: difference.max_abs_diff / max(difference.std, 1e-30))
    return {"format": kind, "files": [str(path) for path in files], "max_abs_diff": worst.max_abs_diff, "std": worst.std,
            "checks": [str(difference) for difference in found]}
