"""Folders of images: which files they hold, and with which labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from oneshot_nas.data.datasets import as_many
from oneshot_nas.data.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Triple
from oneshot_nas.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VAL_RATIO = 0.1  # share of each class that goes to val where nobody says


@dataclass(frozen=True, eq=False)
class Files:
    """Image files with labels (int64), by position; `others` counts the files beside them that are not taken, by their ending."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    others: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> bytes:
        """Return the encoded image. Raises: UserError."""
        try:
            return self.paths[position].read_bytes()
        except OSError as error:
            raise UserError(f"cannot read image {self.paths[position]}: {error.strerror or error}") from error

    def name(self, position: int) -> str:
        """Return the path."""
        return f"image {self.paths[position]}"


@dataclass(frozen=True)
class ImageFolder:
    """A data set of image files, used like `datasets.Dataset`: class names in label order, RGB statistics in 0..255."""

    classes: tuple[str, ...]
    train: Files
    val: Files
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images in each part."""
        return {"train": len(self.train), "val": len(self.val)}

    def part(self, name: str) -> Files:
        """Return the images of "train" or "val"."""
        return {"train": self.train, "val": self.val}[name]

    def preprocessing(self, input_size: int, crop_ratio: float | None = None) -> Preprocessing:
        """Return how images are prepared for evaluation; crop_ratio is 0.875 unless given."""
        return Preprocessing(input_size, 0.875 if crop_ratio is None else crop_ratio, self.mean, self.std)


def load_folder(root: str | os.PathLike, class_count: int | None = None) -> ImageFolder:
    """Return the images of `root`, which holds train/ and val/ with one folder per class, as in GluonCV's --data-dir.

    Raises: UserError, also when there are not `class_count` classes.
    """
    classes, parts = list_folder(root)
    if "val" not in parts:
        raise UserError(f"{root} needs the folders train and val; or split it into records: oneshot-nas data folder {root} OUT")
    if class_count is not None and class_count != len(classes):
        raise UserError(f"{class_count} classes were asked for, {root} has {len(classes)} class folders; {as_many(len(classes))}")
    return ImageFolder(tuple(classes), parts["train"], parts["val"])


def list_folder(source: str | os.PathLike) -> tuple[list[str], dict[str, Files]]:
    """Return (sorted class names, files by part): parts "train" and "val" when there are such folders, else "train" alone.

    Files are sorted; hidden ones are passed over. Raises: UserError for no or one class, an empty class, or parts with
    other classes.
    """
    source = Path(source).expanduser()
    if not source.is_dir():
        raise UserError(f"no folder {source}; give one that holds a folder of images per class")
    roots = {part: source / part for part in ("train", "val") if (source / part).is_dir()}
    if len(roots) == 1:
        raise UserError(f"{source} has only one of the folders train and val; give both, or class folders alone "
                        "(another name for a class that is called so)")
    roots = roots or {"train": source}
    classes = _subfolders(roots["train"])
    if len(classes) < 2:
        raise UserError(f"{roots['train']} has a single class folder, '{classes[0]}'; at least 2 are needed: give the folder "
                        "that holds a folder of images per class")
    for root in roots.values():
        other = sorted(set(_subfolders(root)) ^ set(classes))
        if other:
            both = " and ".join(map(str, roots.values()))
            raise UserError(f"class '{other[0]}' is not in both of {both}; both parts need the same class folders")
    return classes, {part: _files(root, classes) for part, root in roots.items()}


def count_outside(source: str | os.PathLike, parts: Collection[str]) -> Counter[str]:
    """Count the files of a folder that lie in no class folder, by ending and place; `parts` are those of `list_folder`."""
    source = Path(source).expanduser()
    split = {part: source / part for part in parts} if "val" in parts else {}
    others: Counter[str] = Counter()
    for root in (source, *split.values()):
        loose = (path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
        others.update(f"{_ending(path)} beside class folders" for path in loose)
    for name in _subfolders(source) if split else ():
        if name not in split:
            others.update(f"{_ending(path)} in {name}" for path in _visible(source / name) if path.is_file())
    return others


def _subfolders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{root} has no class folders; put the images of each class into a folder of its name")
    return names


def _files(root: Path, classes: list[str]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        found: list[Path] = []
        for path in _visible(root / name):
            if path.suffix.lower() in SUFFIXES:
                found.append(path)
            elif path.is_file():
                others[_ending(path)] += 1
        if not found:
            raise UserError(f"class folder {root / name} holds no images ({' '.join(SUFFIXES)}); remove it or fill it")
        paths += sorted(found)
        labels += [label] * len(found)
    return Files(tuple(paths), np.array(labels, np.int64), others)


def _ending(path: Path) -> str:
    return path.suffix.lower() or "no ending"


def _visible(folder: Path) -> Iterator[Path]:
    """Yield all that is in a folder at any depth, but what is hidden or inside a hidden folder."""
    return (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
