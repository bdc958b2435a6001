"""Additive scores of a space's decisions, checked and laid along the chain of its cost units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import frexp, fsum
from typing import Any

import numpy as np

from oneshot_nas.arch import Space, show
from oneshot_nas.costs.chain import Step
from oneshot_nas.costs.table import cost_table
from oneshot_nas.errors import UserError
from oneshot_nas.values import shorten

BITS = 60  # of the largest total: scores are added and compared as whole multiples of 2^-60 of it, so sums have no order


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of all decisions: `units`, flat tables of float64, and `decisions`, one row per scored column of the encoding."""

    units: Mapping[str, np.ndarray]
    decisions: Mapping[int, np.ndarray]

    def along(self, space: Space, steps: Sequence[Step]) -> list[np.ndarray]:
        """The scores of every transition of `steps`, which are those of the cost table and `loose` ones, in fixed point."""
        names = [unit.name for unit in space.units]
        parts: list[list[np.ndarray]] = []
        for place, step in enumerate(steps):
            parts.append([])
            if place < len(names) and names[place] in self.units:
                parts[-1].append(self.units[names[place]][step.entry])
            for column, values in zip(step.columns, step.values.T, strict=True):
                if column in self.decisions:
                    parts[-1].append(np.tile(self.decisions[column][values], step.states))
        largest = fsum(float(np.abs(part).max()) for step in parts for part in step)
        shift = BITS - frexp(largest)[1] if largest else 0
        return [sum((np.rint(np.ldexp(part, shift)).astype(np.int64) for part in found), np.zeros(len(step.entry), np.int64))
                for step, found in zip(steps, parts, strict=True)]

    def loose(self, steps: Sequence[Step]) -> list[Step]:
        """A step for each scored decision that no cost depends on."""
        known = {column for step in steps for column in step.columns}
        sizes = {column: len(row) for column, row in self.decisions.items() if column not in known}
        return [Step(1, n, np.zeros(n, np.int64), np.zeros(n, np.int64), (column,), np.arange(n)[:, None])
                for column, n in sizes.items()]

    def of(self, space: Space, indices: Sequence[int]) -> float:
        """The score of one architecture, correctly rounded."""
        parts = [float(row[indices[column]]) for column, row in self.decisions.items()]
        for unit in cost_table(space).units:
            if unit.name in self.units:
                place = sum(indices[column] * stride for column, stride in zip(unit.columns, unit.strides, strict=True))
                parts.append(float(self.units[unit.name][place]))
        return fsum(parts)


def read_scores(space: Space, scores: Mapping[str, Any]) -> Scores:
    """Return the checked scores of a mapping whose keys are choices or cost units of the space.

    A choice has one row per position: numbers in the order of the allowed values there (further ones must be NaN, so that rows
    fit one array), or a mapping from value to number. A unit has one number for each combination of its decisions, the last one
    running fastest, in any shape. What is left out scores 0.

    Raises: UserError for a foreign name, a wrong size, or a number that is not finite.
    """
    if not isinstance(scores, Mapping) or not scores:
        raise UserError(f"scores must map choices or cost units of space '{space.name}' to numbers, got {shorten(scores)}")
    column_of = {(name, position): column for column, (name, position, _) in enumerate(space.positions)}
    choices, units = {choice.name: choice for choice in space.choices}, {unit.name: unit for unit in cost_table(space).units}
    tables: dict[str, np.ndarray] = {}
    rows: dict[int, np.ndarray] = {}
    for name, given in scores.items():
        if name in choices:
            lists = choices[name].values
            if not hasattr(given, "__len__") or len(given) != len(lists):
                raise UserError(f"scores of choice '{name}' need one row for each of its {len(lists)} positions, "
                                f"got {len(given) if hasattr(given, '__len__') else shorten(given)}")
            for position, allowed in enumerate(lists):
                rows[column_of[name, position]] = _row(f"'{name}'[{position}]", given[position], allowed)
        elif name in units:
            tables[name] = _numbers(f"unit '{name}'", given, len(units[name].flops))
        else:
            raise UserError(f"scores of {shorten(name)}: space '{space.name}' has the choices {show(choices)} "
                            f"and the cost units {show(units)}")
    return Scores(tables, rows)


def _row(what: str, given: Any, allowed: Sequence[Any]) -> np.ndarray:
    if isinstance(given, Mapping):
        missing = [value for value in allowed if value not in given]
        if missing:
            raise UserError(f"scores of {what} lack the values {show(missing)}")
        given = [given[value] for value in allowed]
    array = _array(what, given)
    extra = array[len(allowed) :]
    return _numbers(what, array[: len(allowed)] if np.isnan(extra).all() else array, len(allowed))


def _numbers(what: str, given: Any, count: int) -> np.ndarray:
    array = _array(what, given)
    if len(array) != count:
        raise UserError(f"scores of {what} are {len(array)} numbers, {count} needed: one for each allowed value or combination")
    if not np.isfinite(array).all():
        raise UserError(f"scores of {what} are not finite: {show(array[~np.isfinite(array)].tolist())}")
    return array


def _array(what: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        raise UserError(f"scores of {what} must be numbers, got {shorten(given)}") from None
