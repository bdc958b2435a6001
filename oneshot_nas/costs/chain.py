"""Cost units in a row: what must be remembered between them, so that sums over all architectures are done one unit at a time.

A decision that several units share stays in the *state* from the first unit that needs it to the last one; where units share
nothing there is a single state. Everything exact in this package (bounds, counting, optimising) walks such a chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from oneshot_nas.errors import WorkError

MOST_TRANSITIONS = 2**21  # of one unit: states before it times combinations of its new decisions


@dataclass(frozen=True, eq=False)
class Step:
    """One unit as transitions, numbered state before (slow) times new decisions (fast).

    `entry` (transitions,) is the offset into the unit's table, `after` (transitions,) the state afterwards; `columns` are the
    decisions made here and `values` (fan, columns) their indices.
    """

    states: int
    fan: int
    entry: np.ndarray
    after: np.ndarray
    columns: tuple[int, ...]
    values: np.ndarray

    @property
    def before(self) -> np.ndarray:
        """The state before every transition."""
        return np.repeat(np.arange(self.states), self.fan)


def chain(units: Sequence[Sequence[int]], counts: Mapping[int, int]) -> tuple[Step, ...]:
    """Return the steps of units given by their decision columns; `counts` is the number of values of a column.

    Raises: WorkError when the units share too many decisions to be walked in this order.
    """
    last = {column: place for place, columns in enumerate(units) for column in columns}
    steps: list[Step] = []
    held: list[int] = []
    for place, columns in enumerate(units):
        new = [column for column in columns if column not in held]
        known = held + new
        sizes = [counts[column] for column in known]
        if prod(sizes) > MOST_TRANSITIONS:
            raise WorkError(f"the cost units share so many decisions that one of them has {prod(sizes):,} cases, "
                            f"more than {MOST_TRANSITIONS:,}; restrict the space or order its units otherwise")
        grid = combinations(sizes)
        held = [column for column in known if last[column] > place]
        fan = prod(counts[column] for column in new)
        steps.append(Step(
            len(grid) // fan, fan,
            _ravel(grid, known, columns, counts), _ravel(grid, known, held, counts),
            tuple(new), grid[:fan, len(known) - len(new) :]))
    return tuple(steps)


def combinations(sizes: Sequence[int]) -> np.ndarray:
    """All index rows (product of `sizes`, len(sizes)), the last column running fastest."""
    rows = np.arange(prod(sizes))
    return np.stack([rows // prod(sizes[place + 1 :]) % size for place, size in enumerate(sizes)], axis=1) if sizes else (
        np.zeros((1, 0), np.int64))


def _ravel(grid: np.ndarray, known: Sequence[int], columns: Sequence[int], counts: Mapping[int, int]) -> np.ndarray:
    """The number of each row's values of `columns` among all their combinations."""
    number = np.zeros(len(grid), np.int64)
    for column in columns:
        number = number * counts[column] + grid[:, known.index(column)]
    return number


def ahead(steps: Sequence[Step], weights: Sequence[np.ndarray], best: np.ufunc) -> list[np.ndarray]:
    """The least (`best` = np.minimum) or greatest (np.maximum) sum still to come, per level 0 to len(steps) and state there.

    `weights` are one array (transitions,) per step.
    """
    levels = [np.zeros(1, np.int64)]
    for step, weight in zip(reversed(steps), reversed(weights), strict=True):
        levels.append(best.reduce((weight + levels[-1][step.after]).reshape(step.states, step.fan), axis=1))
    return levels[::-1]


def behind(steps: Sequence[Step], weights: Sequence[np.ndarray], best: np.ufunc) -> list[np.ndarray]:
    """The least or greatest sum on the way to each state, per level 0 to len(steps); see `ahead`."""
    levels = [np.zeros(1, np.int64)]
    for step, weight in zip(steps, weights, strict=True):
        total = weight + levels[-1][step.before]
        level = total[np.unique(step.after, return_index=True)[1]]
        best.at(level, step.after, total)
        levels.append(level)
    return levels


def paths(steps: Sequence[Step]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """How many ways lead to every state, and from it to the end: float64 per level, exact up to 2^53."""
    to: list[np.ndarray] = [np.ones(1)]
    onward: list[np.ndarray] = [np.ones(1)]
    for step in steps:
        to.append(np.bincount(step.after, to[-1][step.before]))
    for step in reversed(steps):
        onward.append(onward[-1][step.after].reshape(step.states, step.fan).sum(axis=1))
    return to, onward[::-1]
