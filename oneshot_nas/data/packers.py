"""Makes data sets: train/val .rec and .idx plus dataset.json, from bundled digits or from folders of images."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from oneshot_nas.data.datasets import PACKING, Dataset, load_dataset
from oneshot_nas.data.folder import VAL_RATIO, Files, count_outside, list_folder
from oneshot_nas.data.holdout import split_train_val
from oneshot_nas.data.images import decode, encode, ordered_map
from oneshot_nas.data.recordio import write_records
from oneshot_nas.data.seeds import shuffled
from oneshot_nas.errors import UserError
from oneshot_nas.files import LOCK, held, read_json, write_json
from oneshot_nas.progress import track

Sample = tuple[int, bytes, np.ndarray]  # label, what is stored, its pixels (uint8 RGB)
NAMED = 5  # classes that a message names before it counts
KEPT = (b"\xff\xd8", b"\x89PNG")  # JPEG and PNG: what MXNet's own OpenCV surely reads


def pack_digits(
    out: str | os.PathLike, *, size: int = 32, val_ratio: float = 0.2, seed: int = 0, overwrite: bool = False
) -> Dataset:
    """Write scikit-learn's 1797 handwritten digits (8x8, UCI) as lossless RGB PNG of `size` pixels; return the data set.

    The split is stratified and a function of `seed`. Raises: UserError when scikit-learn is not installed.
    """
    if not 8 <= size <= 512:
        raise UserError(f"digits of {size} pixels: give a size from 8 to 512, for example 32")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits are part of scikit-learn; install it with: pip install scikit-learn") from error
    digits = load_digits()
    labels = digits.target.astype(int)
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)

    def sample(position: int) -> Sample:
        pixels = cv2.cvtColor(cv2.resize(small[position], (size, size), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2RGB)
        return int(labels[position]), encode(pixels, ".png"), pixels

    train, val = split_train_val(labels, val_ratio, seed)
    made_by = {"source": "digits", "size": size, "val_ratio": val_ratio, "seed": seed}
    names = [str(digit) for digit in range(10)]
    return write_dataset(out, made_by, names, map(sample, train), map(sample, val), overwrite=overwrite)


def pack_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    val_ratio: float | None = None,
    resize: int | None = None,
    quality: int = 95,
    seed: int = 0,
    skip_bad: bool = False,
    threads: int = 2,
    overwrite: bool = False,
) -> tuple[Dataset, tuple[str, ...], dict[str, int]]:
    """Write a folder of class folders, or of train/ and val/ with these, as a data set.

    Returns: the data set, a reason for each image that was left out, and the number of files that are no images by their ending.

    Classes are the folder names in sorted order. JPEG and PNG files are stored byte by byte; one whose short side exceeds
    `resize` is shrunk and stored as JPEG of `quality`; other formats become PNG. Without train/ and val/ folders, `val_ratio`
    (0.1 unless given) of each class goes to val.
    Raises: UserError for too few classes or images, for a `val_ratio` beside a val/ folder, or, without `skip_bad`, naming the
    first image that cannot be read.
    """
    if resize is not None and resize < 1:
        raise UserError(f"resize {resize}: give the short side in pixels, for example 256")
    if not 1 <= quality <= 100:
        raise UserError(f"JPEG quality {quality} is not in 1..100")
    classes, parts = list_folder(source)
    files = parts["train"]
    if "val" in parts:
        if val_ratio is not None:
            raise UserError(f"{source} has a val folder, which becomes val as it is; leave out --val-ratio {val_ratio:g}")
        chosen = [(files, shuffled(len(files), seed, 0)), (parts["val"], np.arange(len(parts["val"])))]
    else:
        _check_counts(source, classes, files.labels)
        val_ratio = VAL_RATIO if val_ratio is None else val_ratio
        chosen = [(files, positions) for positions in split_train_val(files.labels, val_ratio, seed)]
    skipped: list[str] = []

    def samples(files: Files, positions: np.ndarray) -> Iterator[Sample]:
        def sample(position: int) -> Sample | str:
            try:
                return int(files.labels[position]), *_stored(files.read(position), resize, quality)
            except UserError as error:
                return str(error)
            except ValueError as error:
                return f"{files.name(position)} {error}"

        used: set[int] = set()
        for result in ordered_map(sample, positions, threads, 4 * threads):
            if isinstance(result, str):
                if not skip_bad:
                    raise UserError(f"{result}; remove the file, or leave out all such files with --skip-bad")
                skipped.append(result)
                continue
            used.add(result[0])
            yield result
        lost = sorted(set(range(len(classes))) - used)
        if lost:
            raise UserError(f"class '{classes[lost[0]]}' has no readable image left in {source}")

    told = digest_of(line for part in parts.values() for line in _names_and_sizes(part))
    made_by = {"source": "folder", "files": told, "resize": resize, "quality": quality, "val_ratio": val_ratio, "seed": seed}
    train, val = (samples(files, positions) for files, positions in chosen)
    totals = (len(chosen[0][1]), len(chosen[1][1]))
    dataset = write_dataset(out, made_by, classes, train, val, overwrite=overwrite, totals=totals)
    others = sum((Counter(part.others) for part in parts.values()), count_outside(source, parts))
    return dataset, tuple(skipped), dict(sorted(others.items()))


def write_dataset(
    out: str | os.PathLike,
    made_by: dict[str, Any],
    classes: list[str],
    train: Iterable[Sample],
    val: Iterable[Sample],
    *,
    overwrite: bool,
    totals: tuple[int | None, int | None] = (None, None),
) -> Dataset:
    """Write both parts and, last, dataset.json into folder `out`; return the data set read back and verified.

    All is packed in a folder inside `out` first, so that a failure leaves `out` as it was and the next try starts afresh.

    Raises: UserError when `out` holds another data set, unless `overwrite`; WorkError when the disk refuses.
    """
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the data set")
    fresh = not out.exists()
    with held(out, f"another process is packing into {out}; wait for it, or give another folder"):
        try:
            interrupted = _move_in(out)
            if not overwrite:
                _check_free(out, made_by, again=interrupted)
            _pack(out / PACKING, made_by, classes, (train, val), totals)
            _move_in(out)
            return load_dataset(out)
        finally:
            (out / LOCK).unlink(missing_ok=True)
            if fresh:
                with suppress(OSError):  # it stays when there is something in it
                    out.rmdir()


def _pack(packing: Path, made_by: dict[str, Any], classes: list[str], parts: tuple[Iterable[Sample], Iterable[Sample]],
          totals: tuple[int | None, int | None]) -> None:
    """Write both parts and, last, dataset.json into the folder `packing`, which goes when that fails."""
    statistics = _Statistics(len(classes))
    try:
        for part, samples, total in zip(("train", "val"), parts, totals, strict=True):
            seen = statistics.watch(part, track(samples, f"packing {part}", total, "image"))
            write_records(packing / f"{part}.rec", seen)
        write_json(packing / "dataset.json", "dataset", {"classes": classes, **statistics.summary(), "made_by": made_by})
    except BaseException:
        shutil.rmtree(packing, ignore_errors=True)
        raise


def _move_in(out: Path) -> bool:
    """Move what is packed completely to its place; where that was interrupted, the same call does the rest.

    Returns: whether there was something to move.
    """
    packing = out / PACKING
    if not (packing / "dataset.json").is_file():
        return False
    (out / "dataset.json").unlink(missing_ok=True)
    for name in ("train.idx", "train.rec", "val.idx", "val.rec", "dataset.json"):
        if (packing / name).exists():
            os.replace(packing / name, out / name)
    shutil.rmtree(packing, ignore_errors=True)
    return True


class _Statistics:
    """Counts, common image size, and mean and std of the training pixels, gathered while the images pass by."""

    def __init__(self, class_count: int) -> None:
        self.counts = {part: np.zeros(class_count, np.int64) for part in ("train", "val")}
        self.sizes: set[tuple[int, ...]] = set()
        self.pixels = 0
        self.sums, self.squares = np.zeros(3), np.zeros(3)

    def watch(self, part: str, samples: Iterable[Sample]) -> Iterator[tuple[int, bytes]]:
        """Yield (label, stored image) of each sample. Raises: UserError when there is none."""
        for label, stored, pixels in samples:
            self.counts[part][label] += 1
            self.sizes.add(pixels.shape[:2])
            if part == "train":
                mean, std = (value[:, 0] for value in cv2.meanStdDev(pixels))
                area = pixels.shape[0] * pixels.shape[1]
                self.pixels += area
                self.sums += area * mean
                self.squares += area * (std**2 + mean**2)
            yield label, stored
        if not self.counts[part].any():
            raise UserError(f"the source has no {part} images")

    def summary(self) -> dict[str, Any]:
        """Return the entries of dataset.json; a channel without any variation gets std 1."""
        mean = self.sums / self.pixels
        std = np.sqrt(np.maximum(self.squares / self.pixels - mean**2, 0))
        std[std < 1e-3] = 1.0
        parts = {part: {"count": int(counts.sum()), "per_class": counts.tolist()} for part, counts in self.counts.items()}
        size = list(self.sizes.pop()) if len(self.sizes) == 1 else None
        return {**parts, "image_size": size, "mean": mean.round(4).tolist(), "std": std.round(4).tolist()}


def digest_of(parts: Iterable[bytes]) -> str:
    """What tells the source of a data set from others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _names_and_sizes(files: Files) -> Iterator[bytes]:
    for path in files.paths:
        size = path.stat().st_size if path.exists() else 0
        yield f"{path.parent.name}/{path.name}:{size}\n".encode(errors="surrogateescape")


def _check_free(out: Path, made_by: dict[str, Any], again: bool) -> None:
    """Raise UserError when `out` holds records that this command would not write again exactly.

    The images of a folder may have changed since: it is packed again only where that was interrupted at the very end (`again`).
    """
    taken = [path for path in (out / "train.rec", out / "val.rec") if path.exists()]
    if not taken:
        return
    about = out / "dataset.json"
    same = about.is_file() and read_json(about, "dataset").get("made_by") == made_by
    if not same or (made_by["source"] == "folder" and not again):
        raise UserError(f"{taken[0]} is already there; give another folder, or replace it with --overwrite")


def _check_counts(source: str | os.PathLike, classes: list[str], labels: np.ndarray) -> None:
    """Raise UserError that names the classes which have too few images for a split."""
    lonely = [classes[label] for label in np.flatnonzero(np.bincount(labels) < 2)]
    if lonely:
        more = f" and {len(lonely) - NAMED} more" if len(lonely) > NAMED else ""
        names = ", ".join(f"'{name}'" for name in lonely[:NAMED])
        raise UserError(f"class folders of {source} with a single image: {names}{more}; a split into train and val needs at "
                        "least 2 per class: add images, remove these folders, or make train and val folders yourself")


def _stored(encoded: bytes, resize: int | None, quality: int) -> tuple[bytes, np.ndarray]:
    """Return what is stored for an image file and its pixels. Raises: ValueError when it is no image."""
    pixels = decode(encoded)
    rows, columns = pixels.shape[:2]
    if resize is not None and min(rows, columns) > resize:
        scale = resize / min(rows, columns)
        size = (max(resize, round(columns * scale)), max(resize, round(rows * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        encoded = encode(pixels, ".jpg", quality)
        return encoded, decode(encoded)
    return (encoded if encoded.startswith(KEPT) else encode(pixels, ".png")), pixels
