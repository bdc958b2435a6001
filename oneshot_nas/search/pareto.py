"""Non-dominated sets: which candidates nobody beats in every respect. Points are minimised in every column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from oneshot_nas.errors import UserError
from oneshot_nas.later import check_later
from oneshot_nas.search.candidate import Candidate

COSTS = ("flops", "params")


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Indices (ascending) of the rows of `points` (n, m) that no other row dominates; equal rows are all kept.

    A row dominates another when it is nowhere larger and somewhere smaller. Time: n times the size of the front.
    """
    alive = np.arange(len(points))
    position = 0
    while position < len(alive):
        point, rest = points[alive[position]], points[alive]
        keep = ~((rest >= point).all(axis=1) & (rest > point).any(axis=1))
        position = int(keep[:position].sum()) + 1
        alive = alive[keep]
    return alive


def fronts(points: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the non-dominated fronts (index arrays), best first, each found when it is asked for."""
    rest = np.arange(len(points))
    while len(rest):
        best = non_dominated(points[rest])
        yield rest[best]
        rest = np.delete(rest, best)


def crowding(points: np.ndarray) -> np.ndarray:
    """Crowding distance of every row of one front (n, m): larger is lonelier, infinite at the ends.

    Source: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", 2002, section III.B.
    """
    count = len(points)
    distance = np.zeros(count)
    for column in points.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if count > 2 and spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def check_costs(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of costs that a front is taken against. Raises: UserError with what is allowed."""
    for name in names:
        check_later(name, f"the costs are {COSTS}")
    if not names or any(name not in COSTS for name in names) or len(set(names)) < len(names):
        raise UserError(f"a Pareto front is taken against one or more of {COSTS}, got {tuple(names)}")
    return tuple(names)


def cost_points(candidates: Sequence[Candidate], fitness: Callable[[Candidate], float], against: Sequence[str]) -> np.ndarray:
    """Points to minimise (n, 1 + costs): negated fitness and the named costs."""
    rows = [[-fitness(c), *(getattr(c.cost, name) for name in against)] for c in candidates]
    return np.array(rows, dtype=float).reshape(len(candidates), 1 + len(against))


def pareto_front(
    candidates: Sequence[Candidate], fitness: Callable[[Candidate], float], against: Sequence[str] = COSTS
) -> list[Candidate]:
    """The candidates that no other beats in fitness and every cost of `against`, cheapest first; failed ones never."""
    usable = [c for c in candidates if c.ok]
    best = [usable[i] for i in non_dominated(cost_points(usable, fitness, check_costs(against)))]
    return sorted(best, key=lambda c: (*(getattr(c.cost, name) for name in against), c.index))
