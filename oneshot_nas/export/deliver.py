"""From a run to shipped files: the network with its preprocessing, written in each format, read back and compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mxnet.gluon import HybridBlock

from oneshot_nas.arch import Arch
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.errors import UserError
from oneshot_nas.export.onnx import export_onnx
from oneshot_nas.export.symbol import export_symbol
from oneshot_nas.export.verify import Difference, verify_onnx, verify_symbol
from oneshot_nas.files import VERSION, staged
from oneshot_nas.nets.fixed import Network, without_resize

ONNX_KIND = "exported-onnx"
# What the network's own resize is, for those who do it outside (`oneshot_nas.blocks.resize`)
BICUBIC = {"interpolation": "bicubic", "a": -0.75, "centres": "half-pixel", "borders": "repeated", "antialias": False,
           "after": "crop and normalisation"}


@dataclass(frozen=True)
class Delivery:
    """A network ready to ship; `identity` says which it is ("arch", or "model" and "classes").

    `resolution` is the side of its images where the resize was left out of it, `statistics` says what its running statistics were
    estimated from, where that was done for the delivery.
    """

    net: HybridBlock
    identity: dict[str, Any]
    preprocessing: Preprocessing
    resolution: int | None = None
    statistics: dict[str, Any] | None = None

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
        statistics = {"statistics": self.statistics} if self.statistics else {}
        return {**self.identity, "preprocessing": preprocessing, **statistics}


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


def from_supernet(folder: str, archs: Iterable[Arch], calib_images: int | None = None,
                  method: str = "population") -> Iterator[Delivery]:
    """Yield stand-alone networks with the supernet's weights, each recalibrated on `calib_images` of its calibration images
    (none: all), as `evaluate` does.

    Raises: UserError, before the first one, when an architecture is not of the supernet's space.
    """
    from oneshot_nas.indicators.accuracy import make_calibrator
    from oneshot_nas.train.runs import load_supernet

    run = load_supernet(folder)
    checked = [run.space.check(arch) for arch in archs]
    calibrator = make_calibrator(run, run.source(), calib_images, method=method)
    statistics = {"weights": calibrator.about["weights"], "list": "holdout.calibration of the supernet.json",
                  "seed": run.about.get("holdout_seed"), "images": calibrator.about["calibration"],
                  "augment": calibrator.about["augment"], "method": method}
    for arch in checked:
        yield Delivery(calibrator.inherited(arch), {"arch": arch.to_json()}, run.preprocessing, statistics=statistics)


def deliver(network: Delivery, out: str | os.PathLike, formats: list[str], name: str) -> list[dict[str, Any]]:
    """Write `network` in the formats 'symbol' and 'onnx' into `out`; each file is read back and compared before all of them take
    their places.

    Returns: one object per format with its files and the largest difference from the network: `max_abs_diff` at outputs of
    deviation `std`, with `unit` where rounding is blown up (see `Difference`), and the same for random weights in
    "randomised". Raises: WorkError when one is too large.
    """
    about, shape = network.about(), network.input_shape
    results = []
    with staged(out) as folder:
        if "symbol" in formats:
            files = export_symbol(network.net, folder, name, shape, about)
            found = verify_symbol(network.net, files, shape)
            results.append(_result("symbol", out, [files.symbol, files.params], found))
        if "onnx" in formats:
            notes = {"kind": ONNX_KIND, "version": VERSION, **about}
            path = export_onnx(network.net, folder / f"{name}.onnx", shape, notes=notes)
            results.append(_result("onnx", out, [path], verify_onnx(network.net, path, shape)))
    return results


def _result(kind: str, out: str | os.PathLike, files: list[Path], found: tuple[Difference, ...]) -> dict[str, Any]:
    return {"format": kind, "files": [str(Path(out) / path.name) for path in files], **_worst(found, "real"),
            "randomised": _worst(found, "randomised"), "checks": [str(difference) for difference in found]}


def _worst(found: tuple[Difference, ...], weights: str) -> dict[str, float]:
    """The largest difference, as a share of the outputs' deviation, with real or with randomised weights."""
    worst = max((each for each in found if each.weights == weights), key=lambda each: each.max_abs_diff / max(each.std, 1e-30))
    return {"max_abs_diff": worst.max_abs_diff, "std": worst.std, **({"unit": worst.unit} if worst.unit else {})}
