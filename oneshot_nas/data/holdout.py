"""Which training images are set aside, as a function of (labels, seed) alone: images are taken in the order of `seeds.keys`."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneshot_nas.data.seeds import by_key
from oneshot_nas.errors import UserError


@dataclass(frozen=True)
class Holdout:
    """Positions of the training set that recalibrate (`calibration`) and judge (`validation`) candidates; disjoint, in key order.

    `records` is the size of the training set they belong to, `labels` a digest of its labels in order (None: not known). Key
    order mixes the classes, so that batches of it are balanced too.
    """

    calibration: tuple[int, ...]
    validation: tuple[int, ...]
    records: int
    labels: str | None = None

    def __post_init__(self) -> None:
        positions = [*self.calibration, *self.validation]
        if len(set(positions)) != len(positions):
            raise UserError("a hold-out lists an image twice; calibration and validation must be disjoint")
        outside = [position for position in positions if not 0 <= position < self.records]
        if outside:
            raise UserError(f"hold-out position {outside[0]} is outside the training set of {self.records} records")

    @property
    def excluded(self) -> frozenset[int]:
        """All positions that supernet training must not see."""
        return frozenset(self.calibration) | frozenset(self.validation)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads."""
        known = {} if self.labels is None else {"labels": self.labels}
        return {"records": self.records, **known, "calibration": list(self.calibration), "validation": list(self.validation)}

    @staticmethod
    def from_json(content: Any) -> Holdout:
        """Return the hold-out of a JSON object written by `to_json`. Raises: UserError."""
        names = {"records", "calibration", "validation"}
        if not isinstance(content, dict) or set(content) - {"labels"} != names:
            raise UserError(f"a hold-out is a JSON object with exactly the keys {sorted(names)}, and perhaps 'labels'")
        lists = [content["calibration"], content["validation"]]
        if not all(isinstance(part, list) for part in lists):
            raise UserError("'calibration' and 'validation' of a hold-out are lists of record positions")
        if not all(type(number) is int for number in [content["records"], *lists[0], *lists[1]]):
            raise UserError("a hold-out holds whole numbers only")
        return Holdout(tuple(lists[0]), tuple(lists[1]), content["records"], content.get("labels"))

    def check(self, labels: np.ndarray) -> None:
        """Raise UserError unless the hold-out was made for a training set with these integer labels."""
        if len(labels) != self.records:
            raise UserError(f"the hold-out is of a training set of {self.records} records, this one has {len(labels)}; use the "
                            "same data set")
        if self.labels not in (None, digest(labels)):
            raise UserError("the hold-out is of a training set in another order, or with other labels; use the same data set: "
                            "packed anew with another seed it mixes held-out with training images")


def digest(labels: np.ndarray) -> str:
    """What tells two training sets apart: the SHA-256 of their labels in order, the first 16 hexadecimal digits."""
    return hashlib.sha256(np.asarray(labels).astype("<i4").tobytes()).hexdigest()[:16]


def split_holdout(labels: np.ndarray, calibration: int, validation: int, seed: int) -> Holdout:
    """Return `calibration` + `validation` disjoint positions of the training set with these integer `labels`.

    In each part the counts of two classes differ by at most 1, except that a class which is too small gives what it has. Every
    class keeps at least one image for training. Raises: UserError when more is asked for than there is.
    """
    labels = np.asarray(labels)
    if calibration < 0 or validation < 0:
        raise UserError(f"{calibration} calibration and {validation} validation images: both must be 0 or more")
    members = _members_by_class(labels, seed)
    free = np.array([len(own) - 1 for own in members], np.int64)
    if calibration + validation > free.sum():
        raise UserError(
            f"{calibration} calibration + {validation} validation images are too many: of the {len(labels)} training images "
            f"{free.sum()} can be set aside when each of the {len(members)} classes keeps one; ask for "
            "fewer (--set holdout.calibration=N --set holdout.validation=N; null takes a twentieth and a tenth)"
        )
    willing = by_key(np.arange(len(members)), ~seed)
    first = _quotas(free, calibration, willing)
    second = _quotas(free - first, validation, willing[::-1])
    chosen = []
    for starts, counts in ((0 * first, first), (first, second)):
        part = np.concatenate([own[start : start + count] for own, start, count in zip(members, starts, counts, strict=True)])
        chosen.append(tuple(by_key(part, seed).tolist()))
    return Holdout(chosen[0], chosen[1], len(labels), digest(labels))


def split_train_val(labels: Sequence[int] | np.ndarray, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (train positions, val positions), int64 in key order: `ratio` of every class goes to val, at least 1, never all.

    Raises: UserError for a ratio outside (0, 1) or a class of one image.
    """
    labels = np.asarray(labels)
    if not 0 < ratio < 1:
        raise UserError(f"validation ratio {ratio} is not between 0 and 1, for example 0.2")
    members = _members_by_class(labels, seed)
    lonely = next((own for own in members if len(own) < 2), None)
    if lonely is not None:
        raise UserError(f"class {labels[lonely[0]]} has a single image; a split into train and val needs at least 2 per class")
    counts = [min(max(1, round(ratio * len(own))), len(own) - 1) for own in members]
    val = np.concatenate([own[:count] for own, count in zip(members, counts, strict=True)])
    train = np.concatenate([own[count:] for own, count in zip(members, counts, strict=True)])
    return by_key(train, seed), by_key(val, seed)


def _members_by_class(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return, for each class that occurs, its positions in key order. Raises: UserError when there are no labels."""
    if not len(labels):
        raise UserError("the training set is empty, there is nothing to split")
    order = by_key(np.arange(len(labels)), seed)
    order = order[np.argsort(labels[order], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _quotas(free: np.ndarray, total: int, order: np.ndarray) -> np.ndarray:
    """Return how many images each class gives: equal up to 1, limited by `free`; who gives one more follows `order`."""
    level = bisect_right(range(int(free.max()) + 1), total, key=lambda level: np.minimum(free, level).sum()) - 1
    quotas = np.minimum(free, level)
    quotas[order[free[order] > level][: total - int(quotas.sum())]] += 1
    return quotas
