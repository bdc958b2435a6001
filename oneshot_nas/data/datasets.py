"""What a data set is: its files, classes, counts and pixel statistics; and whether every record of it is sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.data.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Triple, decode, ordered_map
from oneshot_nas.data.messages import damage, library_messages
from oneshot_nas.data.recordio import Index, read_index
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json, read_text
from oneshot_nas.progress import track

CLASS_FILES = ("classes.txt", "synsets.txt")
PACKING = ".packing"  # folder inside a data set that holds what is being packed; its dataset.json comes last
PROBED = 16
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class Dataset:
    """A classification data set in RecordIO files; either part may be absent (None).

    classes: names in label order; mean, std: of the training images, RGB in 0..255; train_counts, val_counts: images per class;
    image_size: (height, width) when all stored images share one, else None.
    """

    classes: tuple[str, ...]
    train_rec: Path | None
    train_idx: Path | None
    val_rec: Path | None
    val_idx: Path | None
    mean: Triple
    std: Triple
    train_counts: tuple[int, ...]
    val_counts: tuple[int, ...]
    image_size: tuple[int, int] | None

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images in each part."""
        return {"train": sum(self.train_counts), "val": sum(self.val_counts)}

    def part(self, name: str) -> Index:
        """Return the images of "train" or "val", verified. Raises: UserError when the data set lacks them."""
        rec, idx = {"train": (self.train_rec, self.train_idx), "val": (self.val_rec, self.val_idx)}[name]
        if rec is None:
            other = self.val_rec if name == "train" else self.train_rec
            raise UserError(f"the data set has no {name} part, only {other}; give a folder with {name}.rec and {name}.idx")
        return read_index(rec, idx)

    def preprocessing(self, input_size: int, crop_ratio: float | None = None) -> Preprocessing:
        """Return how images are prepared for evaluation; images stored at the input size are taken as they are (crop_ratio 1)."""
        if crop_ratio is None:
            crop_ratio = 1.0 if self.image_size == (input_size, input_size) else 0.875
        return Preprocessing(input_size, crop_ratio, self.mean, self.std)


def load_dataset(path: str | os.PathLike, class_count: int | None = None) -> Dataset:
    """Return the data set at `path`: a folder (train.rec and/or val.rec with their .idx, optional dataset.json) or one .rec.

    Without dataset.json the class count is read from the labels, names from classes.txt, and mean and std are ImageNet's.
    Every header is verified. Raises: UserError, also when there are not `class_count` classes.
    """
    path = Path(path).expanduser()
    if (path / PACKING / "dataset.json").is_file():
        raise UserError(f"packing {path} was interrupted just before its end; repeat that `oneshot-nas data` command")
    recs = find_recs(path)
    about = path / "dataset.json"
    if not about.is_file():
        return dataset_from_files(recs.get("train"), None, recs.get("val"), None, class_count=class_count)
    classes, counts, mean, std, image_size = _read_about(read_json(about, "dataset"), about)
    dataset = dataset_from_files(
        recs.get("train"), None, recs.get("val"), None, classes=classes, class_count=class_count, mean=mean, std=std
    )
    for part, found in (("train", dataset.train_counts), ("val", dataset.val_counts)):
        if list(found) != counts[part]:
            differ = f"{about} and {path / part}.rec differ in their images per class ({sum(counts[part])}, {sum(found)} in all)"
            raise UserError(f"{differ}; pack the data set again")
    return replace(dataset, image_size=image_size)


def find_recs(path: str | os.PathLike) -> dict[str, Path]:
    """Return the .rec files of a folder by part ("train", "val"), or a single .rec file as "train". Raises: UserError."""
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix != ".rec":
            raise UserError(f"{path} is no .rec file; give one, or a folder with train.rec and val.rec")
        return {"train": path}
    if not path.is_dir():
        raise UserError(f"no data set at {path}; give a folder with train.rec and val.rec, or make one: oneshot-nas data --help")
    recs = {part: path / f"{part}.rec" for part in ("train", "val") if (path / f"{part}.rec").exists()}
    if not recs:
        raise UserError(f"folder {path} has neither train.rec nor val.rec; make them with: oneshot-nas data folder SOURCE {path}")
    return recs


def declared_classes(folder: Path) -> tuple[str, ...] | None:
    """Return the class names that dataset.json, classes.txt or synsets.txt in `folder` declare, None when there is none."""
    about = folder / "dataset.json"
    return _read_about(read_json(about, "dataset"), about)[0] if about.is_file() else _class_names(folder)


def dataset_from_files(
    train_rec: str | os.PathLike | None = None,
    train_idx: str | os.PathLike | None = None,
    val_rec: str | os.PathLike | None = None,
    val_idx: str | os.PathLike | None = None,
    *,
    classes: Sequence[str] | None = None,
    class_count: int | None = None,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Dataset:
    """Return the data set of single .rec files; an .idx defaults to the same name, class names to those that
    dataset.json or classes.txt beside the first declares.

    Raises: UserError for labels that are not 0, 1, 2 ... below the class count, or for a class count other than `class_count`.
    """
    indices = [None if rec is None else read_index(rec, idx) for rec, idx in ((train_rec, train_idx), (val_rec, val_idx))]
    present = [index for index in indices if index is not None]
    if not present:
        raise UserError("a data set needs at least one .rec file")
    if classes is None:
        classes = declared_classes(present[0].rec.parent)
    found = max(_largest_label(index) for index in present) + 1
    if classes is not None and found > len(classes):
        beyond = next(index for index in present if _largest_label(index) >= len(classes))
        position = int(np.argmax(beyond.labels >= len(classes)))
        label = f"label {beyond.labels[position]:g}, beyond the {len(classes)} classes of the data set"
        raise UserError(f"{beyond.name(position)} has {label}; name all classes or pack the data set again")
    classes = tuple(classes) if classes is not None else tuple(str(label) for label in range(found))
    if class_count is not None and class_count != len(classes):
        raise UserError(
            f"{class_count} classes were asked for, {present[0].rec} has {len(classes)}; {as_many(len(classes))}, "
            "or name all classes in a classes.txt beside it, one a line"
        )
    (rec, idx), (other_rec, other_idx) = ((None, None) if index is None else (index.rec, index.idx) for index in indices)
    counts, other_counts = (_counts(index, len(classes)) for index in indices)
    return Dataset(classes, rec, idx, other_rec, other_idx, mean, std, counts, other_counts, _common_size(present))


def as_many(classes: int) -> str:
    """What to do where another number of classes was asked for than the data set has."""
    return (f"ask for {classes} (--set options.classes={classes}; train_imagenet.py --num-classes {classes}; for an arch.json: "
            f"oneshot-nas arch FILE --option classes={classes})")


@dataclass(frozen=True)
class BadRecord:
    """One record that cannot be used, and why."""

    position: int
    key: int
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"record {self.position} (key {self.key}, byte {self.offset})"


@dataclass(frozen=True)
class Report:
    """What a full check of one .rec file found; `counts` are images per whole label, smallest and largest are (height, width)."""

    rec: str
    records: int
    counts: dict[int, int]
    label_range: tuple[int, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    bad: tuple[BadRecord, ...]


def check(
    rec: str | os.PathLike, idx: str | os.PathLike | None = None, class_count: int | None = None, threads: int = 2
) -> Report:
    """Return the report of decoding every record; a structure that cannot be read at all raises UserError instead.

    Bad is: an image that cannot be decoded or whose decoder says that its data are damaged, or a label that is no whole number
    from 0 up to `class_count` - 1.
    """
    index = read_index(rec, idx)

    def examine(position: int) -> tuple[tuple[int, int] | None, str]:
        label = float(index.labels[position])
        if not label.is_integer() or label < 0 or label >= (class_count or np.inf):
            last = class_count - 1 if class_count else "the class count"
            return None, f"label {label:g} is not a whole number from 0 to {last}"
        try:
            return _size(decode(index.read(position))), ""
        except ValueError as error:
            return None, str(error)

    with library_messages() as said:
        found = ordered_map(examine, range(len(index)), threads, 64)
        results = list(track(found, f"checking {index.rec.name}", len(index), "image"))
        if damage(said()):  # one image at a time tells which
            for position in track(range(len(index)), f"looking for damage in {index.rec.name}", unit="image"):
                size, reason = examine(position)
                message = damage(said())
                if message and not reason:
                    results[position] = size, f"is damaged ({message})"
    bad = [
        BadRecord(position, int(index.keys[position]), int(index.offsets[position]), reason)
        for position, (_, reason) in enumerate(results)
        if reason
    ]
    sizes = [size for size, _ in results if size] or [(0, 0)]
    labels, counts = np.unique(index.labels, return_counts=True)
    whole = {int(label): int(count) for label, count in zip(labels, counts, strict=True) if float(label).is_integer()}
    smallest, largest = ((pick(size[0] for size in sizes), pick(size[1] for size in sizes)) for pick in (min, max))
    label_range = (min(whole, default=0), max(whole, default=0))
    return Report(str(index.rec), len(index), whole, label_range, smallest, largest, tuple(bad))


def _largest_label(index: Index) -> int:
    """Return the largest label of a file whose labels are whole numbers from 0 up. Raises: UserError naming one that is not."""
    labels = index.labels
    wrong = np.flatnonzero(~((labels >= 0) & (labels < MAX_CLASSES) & (labels == np.floor(labels))))
    if len(wrong):
        allowed = f"class labels are whole numbers 0, 1 ... {MAX_CLASSES - 1}"
        raise UserError(f"{index.name(wrong[0])} has label {labels[wrong[0]]:g}; {allowed}")
    return int(labels.max())


def _counts(index: Index | None, class_count: int) -> tuple[int, ...]:
    """Return the number of images per class, () for an absent part."""
    return () if index is None else tuple(np.bincount(index.labels.astype(np.int64), minlength=class_count).tolist())


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the lines of classes.txt (or synsets.txt) in `folder`, None when there is neither."""
    path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    return tuple(line.strip() for line in read_text(path, "class names").splitlines() if line.strip()) if path else None


def _common_size(indices: list[Index]) -> tuple[int, int] | None:
    """Return (height, width) when some images spread over the files all have it, else None. An undecodable one is passed over."""
    sizes: set[tuple[int, int]] = set()
    for index in indices:
        for position in np.unique(np.linspace(0, len(index) - 1, PROBED).astype(int)):
            try:
                sizes.add(_size(decode(index.read(int(position)))))
            except ValueError:
                continue
    return sizes.pop() if len(sizes) == 1 else None


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


About = tuple[tuple[str, ...], dict[str, list[int]], Triple, Triple, "tuple[int, int] | None"]


def _read_about(content: dict[str, Any], source: Path) -> About:
    """Return (classes, counts per part, mean, std, image size) of a dataset.json. Raises: UserError naming what is wrong."""
    try:
        classes = tuple(str(name) for name in content["classes"])
        counts = {part: [int(count) for count in content[part]["per_class"]] for part in ("train", "val")}
        statistics = Preprocessing.from_json({**Preprocessing(32).to_json(), "mean": content["mean"], "std": content["std"]})
        size = content["image_size"]
        image_size = None if size is None else (int(size[0]), int(size[1]))
    except KeyError as error:
        raise UserError(f"{source} lacks the entry {error}; pack the data set again") from error
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{source} cannot be read: {error}; pack the data set again") from error
    return classes, counts, statistics.mean, statistics.std, image_size
