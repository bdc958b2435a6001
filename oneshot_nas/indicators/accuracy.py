"""Accuracy of an architecture with the supernet's weights: recalibrate BatchNorm exactly, then classify held-out images."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import nd
from mxnet.gluon import Block
from mxnet.ndarray import NDArray

from oneshot_nas.arch import Arch, Space
from oneshot_nas.config import Recipe
from oneshot_nas.data.augment import make_augment
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.data.loader import Loader, decode_images, val_loader
from oneshot_nas.data.seeds import by_key, derive_seed
from oneshot_nas.data.source import Source, open_source
from oneshot_nas.errors import UserError
from oneshot_nas.nets.fixed import Network
from oneshot_nas.nets.inherit import inherit
from oneshot_nas.nets.recalibrate import Folded, recalibrate
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.progress import track
from oneshot_nas.train.runs import SupernetRun, load_fixed, load_supernet

BATCH = 128  # images of one batch at most
CALIBRATION_PIXELS = BATCH * 112**2  # of a calibration batch, whose statistics normalise it: 32 images of 224x224
VALIDATION_PIXELS = BATCH * 64**2  # of a validation batch: fewer images are the same result, and at 192x192 faster by half


def batches(images: np.ndarray, context: mx.Context, size: int) -> list[NDArray]:
    """Images (n, 3, H, W), or labels (n,), as arrays of at most `size` in memory of a device, order kept."""
    return [nd.array(images[start : start + size], ctx=context) for start in range(0, len(images), size)]


def batch_sizes(side: int) -> tuple[int, int]:
    """Images of a calibration and of a validation batch at `side` pixels: powers of two, at most `BATCH`, at least 1."""
    calibration, validation = (2 ** max(0, min(BATCH, pixels // side**2).bit_length() - 1)
                               for pixels in (CALIBRATION_PIXELS, VALIDATION_PIXELS))
    return calibration, validation


def calibration_images(source: Source, positions: Sequence[int], preprocessing: Preprocessing, recipe: Recipe) -> np.ndarray:
    """Training images (n, 3, H, W) at `positions` to take BatchNorm statistics from, varied as in the training of the recipe.

    Weights fit the statistics of the images they were trained on: those of CIFAR-10 images without the black borders that random
    crops have cost 5 points of top-1 (docs/results.md). SPOS and AttentiveNAS calibrate on augmented images too; with
    `holdout.augment` false they are prepared as for validation, as the MXNet predecessor does.
    """
    augment = make_augment(recipe.augment.kind, recipe.augment.changes) if recipe.holdout.augment else None
    return decode_images(source, positions, preprocessing, augment=augment, seed=recipe.seed)[0]


def make_evaluator(net: Supernet, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray, context: mx.Context,
                   about: dict[str, Any], method: str = "population") -> Evaluator:
    """The evaluator of calibration images (n, 3, H, W) and labelled validation images, in batches that suit their size."""
    first, second = batch_sizes(images.shape[-1])
    return Evaluator(net, batches(calibration, context, first), {**about, "batch": first}, method,
                     batches(images, context, second), batches(labels, context, second))


def count_correct(logits: np.ndarray, labels: np.ndarray, top: int) -> int:
    """How many rows of logits (n, K) have their label among the `top` largest; ties count against the label."""
    own = logits[np.arange(len(labels)), labels][:, None]
    better = (logits >= own).sum(axis=1) - 1
    return int((better < top).sum())


def accuracy_of(net: Block, labelled: Iterable[tuple[NDArray, NDArray]], context: mx.Context,
                dtype: str = "float32") -> dict[str, float]:
    """{"top1", "top5"} shares over batches of (images (n, 3, H, W), labels (n,)); 0 when the outputs are not finite."""
    right = {1: 0, 5: 0}
    total = 0
    if isinstance(labelled, Loader):  # a whole validation set
        labelled = track(labelled, "validating", unit="batch")
    for images, labels in labelled:
        logits = net(images.as_in_context(context).astype(dtype, copy=False)).asnumpy().astype(np.float32, copy=False)
        if not np.isfinite(logits).all():
            return {"top1": 0.0, "top5": 0.0}
        for top in right:
            right[top] += count_correct(logits, labels.asnumpy().astype(np.int64), top)
        total += len(logits)
    return {f"top{top}": count / total for top, count in right.items()}


@dataclass
class Calibrator:
    """Estimates the BatchNorm statistics of architectures of one supernet on fixed images."""

    net: Supernet
    calibration: list[NDArray]
    about: dict[str, Any]
    method: str = "population"

    def network(self, arch: Arch) -> Network:
        """The recalibrated whole-net view of `arch`, on the supernet's weights."""
        return recalibrate(self.net.view(arch), self.calibration, self.method)

    def inherited(self, arch: Arch) -> Network:
        """A recalibrated network of `arch` on its own, with a copy of the supernet's weights."""
        return recalibrate(inherit(self.net, arch), track(self.calibration, "calibrating", unit="batch"), self.method)


@dataclass
class Evaluator(Calibrator):
    """Scores architectures of one supernet on fixed images; the score depends on the architecture and the images only.

    Called with an architecture it returns {"top1", "top5", "calibrate_seconds", "validate_seconds"}.
    """

    validation: list[NDArray] = field(default_factory=list)
    labels: list[NDArray] = field(default_factory=list)
    stream: Loader | None = None  # labelled batches that are decoded for each architecture anew, in place of those in memory

    @property
    def images(self) -> int:
        """Number of images that are classified."""
        return sum(len(batch) for batch in self.labels) if self.stream is None else self.stream.images

    @property
    def space(self) -> Space:
        """The supernet's space."""
        return self.net.space

    def __call__(self, arch: Arch) -> dict[str, float]:
        start = time.perf_counter()
        view = self.network(arch)
        nd.waitall()
        middle = time.perf_counter()
        labelled = zip(self.validation, self.labels, strict=True) if self.stream is None else self.stream
        scores = accuracy_of(Folded(view), labelled, self.calibration[0].context)
        end = time.perf_counter()
        del view
        _trim()
        return {**scores, "calibrate_seconds": middle - start, "validate_seconds": end - middle}


def _trim() -> None:
    """Give freed memory back to the system: glibc keeps the holes that one candidate's buffers leave (1.4 instead of 0.5 GB)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def make_calibrator(run: SupernetRun, source: Source, calib_images: int | None = None, seed: int = 0,
                    method: str = "population") -> Calibrator:
    """The calibrator of a supernet run on its own held-out images, decoded once and kept in memory; see `load_evaluator`.

    Raises: UserError when more images are asked for than were held out.
    """
    positions = _chosen(run.holdout.calibration, calib_images, "calibration", seed)
    images = calibration_images(source, positions, run.preprocessing, run.recipe)
    size, _ = batch_sizes(images.shape[-1])
    about = {"supernet": str(run.folder), "weights": run.digest, "space": run.space.name, "options": dict(run.space.options),
             "calibration": len(positions), "augment": run.recipe.holdout.augment, "method": method, "seed": seed, "batch": size}
    return Calibrator(run.net, batches(images, mx.cpu(), size), about, method)


def load_evaluator(supernet_run: str | Path, calib_images: int | None = None, val_images: int | None = None,
                   seed: int = 0, method: str = "population", split: str = "held-out") -> Evaluator:
    """The evaluator of a supernet run on its own held-out images, decoded once and kept in memory.

    `calib_images` and `val_images` take the first so many of each list (as a whole they are class-balanced, their beginnings by
    chance only); None takes all. `seed` 1, 2 ... takes other calibration images, and in place of all a random half of them, so
    that repeated evaluations show the measurement noise.
    With `split` "val" the whole validation set is classified, which nothing was selected on: the figure to report.

    Raises: UserError when more images are asked for than were held out, or there is no validation set.
    """
    run = load_supernet(supernet_run)
    source = run.source()
    _, size = batch_sizes(run.preprocessing.input_size)
    if split == "val":
        _check_validation(source, str(supernet_run))
        stream = val_loader(source, batch_size=size, preprocessing=run.preprocessing)
        return Evaluator(**vars(make_calibrator(run, source, calib_images, seed, method)), stream=stream)
    positions = _chosen(run.holdout.validation, val_images, "validation", 0)
    base = make_calibrator(run, source, calib_images, seed, method)
    images, labels = (batches(part, mx.cpu(), size) for part in decode_images(source, positions, run.preprocessing))
    return Evaluator(**{**vars(base), "about": {**base.about, "validation": len(positions)}}, validation=images, labels=labels)


def _check_validation(source: Source, folder: str) -> None:
    if not source.counts["val"]:
        raise UserError(f"the data set of {folder} has no validation part")


def _chosen(positions: Sequence[int], count: int | None, what: str, seed: int) -> list[int]:
    """`count` positions: the first ones, with `seed` 1, 2 ... the next ones while there are any, then random ones.

    None is all of them, or a random half with a seed above 0.
    """
    total = len(positions)
    if count is not None and not 1 <= count <= total:
        raise UserError(f"{count} {what} images asked for; the supernet's training kept {total} aside")
    if not total:
        raise UserError(f"the supernet's training kept no {what} images; train it with holdout.{what} above 0")
    start = seed * (count or total)
    count = count or (total if seed == 0 else (total + 1) // 2)
    if start + count <= total:
        return list(positions[start : start + count])
    return by_key(np.array(positions), derive_seed(seed, total))[:count].tolist()


def evaluate_fixed(folder: str | Path) -> dict[str, Any]:
    """{"top1", "top5", "images"} of a trained fixed network on its validation set, with what says which it is ("arch", or "model"
    and "classes").

    Raises: UserError when there is none.
    """
    run = load_fixed(folder)
    source = open_source(run.recipe, run.classes)
    _check_validation(source, str(folder))
    run.net.hybridize(static_alloc=True)
    loader = val_loader(source, batch_size=run.recipe.batch_size, preprocessing=run.preprocessing,
                        threads=run.recipe.input_threads)
    return {**run.identity, **accuracy_of(run.net, loader, mx.cpu()), "images": loader.images}
