"""Batches for training and evaluation, from records and from folders alike, decoded by threads ahead of their receiver.

Why not mx.io.ImageRecordIter: in 1.9.1 an image that cannot be decoded ends the process (SIGFPE, with `resize`) or arrives as a
blank one (with `pad`), a truncated JPEG arrives half grey, records cannot be left out, and the random numbers of one row of the
batch repeat from batch to batch. OpenCV called from Python threads releases the interpreter lock, is faster at 224 pixels
(benchmarks/recordio_input.py) and names a bad record.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call

from oneshot_nas.data.augment import Augment, augment_image, draw
from oneshot_nas.data.images import Images, Preprocessing, fit, normaliser, ordered_map, read_image
from oneshot_nas.data.seeds import shuffled
from oneshot_nas.errors import UserError
from oneshot_nas.progress import track

Batch = tuple[Any, Any]  # data (N, 3, H, W) and label (N,), NDArrays on the CPU
Prepare = Callable[[np.ndarray, np.ndarray], None]  # positions -> rows of a batch, written in place
Shape = tuple[int, ...]
Item = TypeVar("Item")
DTYPES = ("float32", "float16")
CHUNK = 16  # images that a thread prepares at a time
AHEAD = 2  # batches prepared in advance


class HasParts(Protocol):
    """A data set with the parts "train" and "val": `datasets.Dataset` or `folder.ImageFolder`."""

    def part(self, name: str) -> Images:
        """Return the images of one part."""


@dataclass(frozen=True)
class Loader:
    """One pass over a part of a data set: `len()` batches of (data, label). Iterating again gives the same batches again.

    data: normalised, (N, 3, input_size, input_size); label: float32 (N,); both belong to the receiver. `images`: how many arrive.
    """

    batches: int
    images: int
    start: Callable[[], Iterator[Batch]]

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of full batches; images that fill no batch are left out of this epoch. Raises: UserError when it is 0."""
    _check_batch_size(batch_size)
    if images < batch_size:
        raise UserError(f"{images} training images do not fill one batch of {batch_size}; use a smaller batch or more images")
    return images // batch_size


def train_loader(
    dataset: HasParts,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    augment: Augment,
    seed: int,
    epoch: int,
    exclude: Iterable[int] = (),
    threads: int = 2,
    dtype: str = "float32",
) -> Loader:
    """Return the shuffled, augmented training images of one epoch, without the positions in `exclude`; all batches are full.

    A pure function of its arguments: seed and epoch decide order and augmentation, `threads` nothing but speed. No image arrives
    twice. Raises: UserError when a position is outside the part or too few images remain; while iterating, naming a bad image.
    """
    images = dataset.part("train")
    kept = _kept(exclude, len(images))
    batches = batches_per_epoch(len(kept), batch_size)
    order = kept[shuffled(len(kept), seed, epoch)][: batches * batch_size]

    prepare = _for_training(images, preprocessing, augment, seed, epoch)
    return _loader(images, order, prepare, batch_size, preprocessing, threads, dtype)


def val_loader(
    dataset: HasParts,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    threads: int = 2,
    dtype: str = "float32",
    part: str = "val",
) -> Loader:
    """Return every image of a part once, in order, prepared for evaluation; the last batch has the rows that remain."""
    _check_batch_size(batch_size)
    images = dataset.part(part)
    prepare = _for_evaluation(images, preprocessing)
    return _loader(images, np.arange(len(images)), prepare, batch_size, preprocessing, threads, dtype)


def decode_images(
    dataset: HasParts,
    positions: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    *,
    threads: int = 2,
    part: str = "train",
    augment: Augment | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (images, labels) at `positions`: float32 (N, 3, H, W), exactly what `val_loader` gives for them, and int64 (N,).

    With `augment` they vary as `train_loader` lets them in epoch 0 of `seed`.

    Raises: UserError naming an image that cannot be decoded or a position outside the part.
    """
    images = dataset.part(part)
    order = np.asarray(positions, np.int64)
    outside = order[(order < 0) | (order >= len(images))]
    if len(outside):
        raise UserError(f"position {outside[0]} is outside the {len(images)} {part} images")
    if not len(order):
        return np.empty((0, 3, preprocessing.input_size, preprocessing.input_size), np.float32), order
    if augment is None:
        prepare = _for_evaluation(images, preprocessing)
    else:
        prepare = _for_training(images, preprocessing, augment, seed, epoch=0)
    filled = _filled(prepare, order, len(order), preprocessing.input_size, threads, _private)
    (data,) = (array for array in track(filled, "decoding images", -(-len(order) // CHUNK), "batch") if array is not None)
    return data, images.labels[order].astype(np.int64)


class DataWait(Generic[Item]):
    """Passes batches on and measures the share of the time that their receiver waits for them."""

    def __init__(self, batches: Iterable[Item]) -> None:
        self.batches = batches
        self.waited = 0.0
        self.total = 0.0

    @property
    def share(self) -> float:
        """Waiting time / all time, 0 to 1."""
        return self.waited / self.total if self.total else 0.0

    def __iter__(self) -> Iterator[Item]:
        begin = asked = time.perf_counter()
        for batch in self.batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
            self.total = asked - begin


def _for_evaluation(images: Images, preprocessing: Preprocessing) -> Prepare:
    normalise = normaliser(preprocessing)

    def prepare(positions: np.ndarray, out: np.ndarray) -> None:
        for position, row in zip(positions.tolist(), out, strict=True):
            normalise(fit(read_image(images, position), preprocessing), row)

    return prepare


def _for_training(images: Images, preprocessing: Preprocessing, augment: Augment, seed: int, epoch: int) -> Prepare:
    normalise = normaliser(preprocessing)

    def prepare(positions: np.ndarray, out: np.ndarray) -> None:
        for position, draws, row in zip(positions.tolist(), draw(seed, epoch, positions).tolist(), out, strict=True):
            normalise(augment_image(read_image(images, position), augment, preprocessing, draws), row)

    return prepare


def _loader(
    images: Images, order: np.ndarray, prepare: Prepare, batch_size: int, preprocessing: Preprocessing, threads: int, dtype: str
) -> Loader:
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' of batches is not one of {DTYPES}")
    if threads < 1:
        raise UserError(f"{threads} decoding threads: at least 1 is needed")
    labels = images.labels[order].astype(np.float32)

    def start() -> Iterator[Batch]:
        first = 0
        for data in _filled(prepare, order, batch_size, preprocessing.input_size, threads, _shared):
            if data is None:
                continue
            label, view = _shared((len(data),))
            view[:] = labels[first : first + len(data)]
            first += len(data)
            yield data.astype(dtype, copy=False), label

    return Loader(-(-len(order) // batch_size), len(order), start)


def _filled(
    prepare: Prepare,
    order: np.ndarray,
    batch_size: int,
    size: int,
    threads: int,
    allocate: Callable[[Shape], tuple[Any, np.ndarray]],
) -> Iterator[Any]:
    """Yield arrays of the prepared images of `order`, (up to batch_size, 3, size, size), and None for every `CHUNK` images that
    do not complete one; threads fill the next ones meanwhile.

    allocate(shape) returns what is yielded and the float32 numpy view of it that the threads fill.
    """

    def tasks() -> Iterator[tuple[Any, np.ndarray, np.ndarray, int]]:
        for first in range(0, len(order), batch_size):
            positions = order[first : first + batch_size]
            array, view = allocate((len(positions), 3, size, size))
            for row in range(0, len(positions), CHUNK):
                yield array, view, positions, row

    def fill(task: tuple[Any, np.ndarray, np.ndarray, int]) -> Any:
        array, view, positions, row = task
        prepare(positions[row : row + CHUNK], view[row : row + CHUNK])
        return array if row + CHUNK >= len(positions) else None

    ahead = max(threads, AHEAD * -(-batch_size // CHUNK))
    return ordered_map(fill, tasks(), threads, ahead + 1)


def _shared(shape: Shape) -> tuple[Any, np.ndarray]:
    """Return a new float32 NDArray on the CPU and the numpy view of its memory, which lives as long as the NDArray.

    Filling the view costs no copy; mx.nd.array would also wait for the computations that are queued already (0.1 s a batch).
    """
    array = mx.nd.empty(shape, ctx=mx.cpu())  # whatever the current one is
    pointer = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return array, np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), shape)


def _private(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    array = np.empty(shape, np.float32)
    return array, array


def _kept(exclude: Iterable[int], count: int) -> np.ndarray:
    """Return the positions that stay, sorted, int64. Raises: UserError when one to leave out is not among them."""
    left_out = np.unique(np.fromiter(exclude, np.int64))
    outside = left_out[(left_out < 0) | (left_out >= count)]
    if len(outside):
        raise UserError(f"position {outside[0]} to leave out is outside the {count} training images; was it made for other data?")
    return np.setdiff1d(np.arange(count), left_out)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be 1 or more")
