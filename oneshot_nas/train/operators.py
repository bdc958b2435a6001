"""Operators of a search space, as shrinking sees them: which are left, how they score, and which go first.

Source: Hu et al., "Angle-based Search Space Shrinking for Neural Architecture Search", ECCV 2020, section 3.3, and the
published code. Unlike there every operator has a pool of its own, so no pool is biased by those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.costs.limits import Limits, sample_within
from oneshot_nas.costs.table import CostTable, cost_table
from oneshot_nas.errors import UserError
from oneshot_nas.progress import track
from oneshot_nas.values import Value, same_kind

BATCH = 4096  # architectures drawn together
TRIES = 100  # draws per wanted architecture


@dataclass(frozen=True)
class Operator:
    """One value of one decision, and how it scores: the mean over `pool` architectures that contain it.

    `score` is None when no architecture inside the limits contains it.
    """

    choice: str
    position: int
    value: Value
    score: float | None = None
    pool: int = 0

    @property
    def decision(self) -> tuple[str, int]:
        """Where it may be chosen."""
        return self.choice, self.position


def default_over(space: Space) -> tuple[str, ...]:
    """The choices that hold operators: those whose values do not grow, or all with weights where every choice's do."""
    return tuple(c.name for c in space.choices if not c.ordered) or with_weights(space)


def with_weights(space: Space) -> tuple[str, ...]:
    """The choices whose values differ in weights, as all do but those of a resolution."""
    found = set()
    for unit in cost_table(space, "macs").units:
        for column, stride in zip(unit.columns, unit.strides, strict=True):
            name, _, allowed = space.positions[column]
            if np.ptp(unit.params.reshape(-1, len(allowed), stride), axis=1).any():
                found.add(name)
    return tuple(choice.name for choice in space.choices if choice.name in found)


def operators(space: Space, over: Sequence[str]) -> list[Operator]:
    """Every value of a decision that has more than one left, in encoding order."""
    return [Operator(name, position, value) for name, position, allowed in space.positions
            if name in over and len(allowed) > 1 for value in allowed]


def scored(space: Space, over: Sequence[str], score: Callable[[np.ndarray], np.ndarray], limits: Limits, samples: int,
           seed: Sequence[int]) -> list[Operator]:
    """All operators of the choices `over` with the mean ``score(indices)`` of their pools; see `draw_pool`."""
    skips = skip_values(space)
    found = []
    for operator in track(operators(space, over), "scoring", unit="operator"):
        pool = draw_pool(space, operator, limits, samples, skips, seed)
        found.append(replace(operator, score=float(score(pool).mean()) if len(pool) else None, pool=len(pool)))
    return found


def draw_pool(space: Space, operator: Operator, limits: Limits, samples: int, skips: np.ndarray,
              seed: Sequence[int]) -> np.ndarray:
    """Indices (at most `samples`, decisions) of different architectures inside the limits that contain the operator.

    Operators other than skip are uniform in every layer; then a uniform number of the other layers that may skip does. Where
    that finds nothing in `TRIES` draws per wanted architecture, uniform draws inside the limits take its place; none when the
    limits exclude the operator.
    """
    columns = [(name, position) for name, position, _ in space.positions]
    column = columns.index(operator.decision)
    value = space.positions[column][2].index(operator.value)
    only = space.restrict({operator.choice: [(operator.value,) if place == operator.position else values
                                             for place, values in enumerate(space.choice(operator.choice).values)]})
    rng, table = np.random.default_rng([*seed, column, value]), cost_table(space, limits.rule)
    seen: dict[bytes, np.ndarray] = {}
    if least_flops(space, table, column, value) > limits.flops[1]:
        return np.zeros((0, len(columns)), np.int64)
    for _ in range(-(-TRIES * samples // BATCH)):
        drawn = draw(space, skips, rng, BATCH, (column, value))
        for row in drawn[limits.inside(*table(drawn))]:
            seen.setdefault(row.tobytes(), row)
        if len(seen) >= samples:
            break
    if not seen:
        with suppress(UserError):  # nothing inside the limits contains it
            for arch in sample_within(only, limits, rng, samples):
                row = np.array(space.encode(arch))
                seen.setdefault(row.tobytes(), row)
    return np.array(list(seen.values())[:samples]).reshape(-1, len(columns))


def least_flops(space: Space, table: CostTable, column: int, value: int) -> int:
    """FLOPs below which no architecture with that value is: each unit's least (units may contradict each other)."""
    total, count = table.fixed.flops, len(space.positions[column][2])
    for unit in table.units:
        flops = unit.flops
        if column in unit.columns:
            flops = flops[np.arange(len(flops)) // unit.strides[unit.columns.index(column)] % count == value]
        total += int(flops.min())
    return total


def skip_values(space: Space) -> np.ndarray:
    """Index of every decision's value that leaves its layer out, -1 where there is none: it alone has no weights there."""
    base = [0] * len(space.positions)
    found = np.full(len(base), -1)
    for column, (name, position, allowed) in enumerate(space.positions):
        mine = [unit.name for unit in space.units if unit.positions == ((name, position),)]
        bare = []
        for index in range(len(allowed)) if mine else ():
            base[column] = index
            layers = [layer for layer in space.plan(space.decode(base)).layers if layer.unit in mine]
            if not any(layer.op.parameters() for layer in layers):
                bare.append(index)
        if 0 < len(bare) < len(allowed):
            found[column] = bare[-1]
        base[column] = 0
    return found


def draw(space: Space, skips: np.ndarray, rng: np.random.Generator, count: int, fixed: tuple[int, int]) -> np.ndarray:
    """Indices (count, decisions) as `draw_pool` says; `fixed` is (column, value)."""
    sizes = np.array([len(allowed) for _, _, allowed in space.positions])
    optional = (skips >= 0) & (sizes > 1)
    indices = rng.integers(0, sizes - optional, size=(count, len(sizes)))
    indices += optional & (indices >= skips)  # the skip's own number is left out
    others = np.flatnonzero(optional & (np.arange(len(sizes)) != fixed[0]))
    number = rng.integers(0, len(others) + 1, size=(count, 1))
    order = rng.random((count, len(others))).argsort(axis=1).argsort(axis=1)
    indices[:, others] = np.where(order < number, skips[others], indices[:, others])
    indices[:, fixed[0]] = fixed[1]
    return indices


def worst(found: Sequence[Operator], drop: int, possible: Callable[[Sequence[Operator]], bool] = bool) -> list[Operator]:
    """The `drop` operators of the smallest score, those without one first; every decision keeps its best one.

    An operator stays if without it and those dropped before, nothing is ``possible`` any more.
    """
    left: dict[tuple[str, int], int] = {}
    for operator in found:
        left[operator.decision] = left.get(operator.decision, 0) + 1
    dropped: list[Operator] = []
    for operator in sorted(found, key=lambda o: -inf if o.score is None else o.score):
        if len(dropped) < drop and left[operator.decision] > 1 and possible([*dropped, operator]):
            left[operator.decision] -= 1
            dropped.append(operator)
    return dropped


def without(space: Space, dropped: Sequence[Operator]) -> Space:
    """The space without these operators. Raises: UserError when a decision would be left empty."""
    gone: dict[tuple[str, int], list[Value]] = {}
    for operator in dropped:
        gone.setdefault(operator.decision, []).append(operator.value)
    def kept(name: str, position: int, values: Sequence[Value]) -> list[Value]:
        return [value for value in values if not any(same_kind(value, other) for other in gone.get((name, position), ()))]

    return space.restrict({c.name: [kept(c.name, *entry) for entry in enumerate(c.values)] for c in space.choices})
