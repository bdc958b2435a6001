"""How many architectures have which cost, and drawing from just those inside a range: dynamic programming, no rejection.

The chain of cost units is cut in the middle. For each state at the cut, the sums of both sides are listed with the number of ways
to reach them, so the architectures in *any* range of totals are counted by two look-ups per listed sum. A draw picks a pair of
sums with the probability it deserves and walks back through the lists, unit by unit, to the decisions.

Costs are counted in whole cells of a grid. It is their greatest common divisor, hence exact, whenever the lists then stay short
enough; otherwise it is coarser, the lists cover the wanted range only, and whoever draws compares the true cost with the limits.
Counts are float64: exact up to 2^53, beyond that rounded in the 16th digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.costs.chain import Step, ahead, behind, paths
from oneshot_nas.costs.table import CostTable, cost_table

MOST_WORK = 2**27  # sums added up to make the lists
QUERY = 2  # a look-up costs as much as so many sums
DENSE = 8  # sums are added on a full grid when that has at most so many cells per sum
KEPT = 4  # a list keeps its gaps, as zeros, when there are at most so many cells per sum
CHUNK = 2048  # draws walked back together

Listed = tuple[np.ndarray, np.ndarray]  # growing sums (n,) int64 and how many ways lead to each (n,) float64
Cells = tuple[np.ndarray, np.ndarray]  # the least and the greatest useful sum of every state (states,)


@dataclass(frozen=True, eq=False)
class Move:
    """One step as seen from an end of the chain: states it leaves and reaches, and its cost, per transition."""

    step: Step
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Side:
    """Part of the chain from one of its ends to the cut: `lists[level][state]` are the sums after `level` moves."""

    moves: tuple[Move, ...]
    lists: tuple[tuple[Listed, ...], ...]

    def back(self, states: np.ndarray, sums: np.ndarray, rng: np.random.Generator, indices: np.ndarray) -> None:
        """Fill the side's decisions into `indices` (n, decisions), uniform among the ways to `sums` (n,) in `states` (n,)."""
        for move, lists in zip(reversed(self.moves), reversed(self.lists[:-1]), strict=True):
            chance = rng.random(len(sums))
            taken = np.empty(len(sums), np.int64)
            for state in np.unique(states):
                rows, options = np.nonzero(states == state)[0], np.nonzero(move.target == state)[0]
                left = sums[rows, None] - move.weight[options]
                ways = np.empty(left.shape)
                for source in np.unique(move.source[options]):
                    here = move.source[options] == source
                    ways[:, here] = _ways(lists[source], left[:, here])
                total = np.cumsum(ways, axis=1)
                taken[rows] = options[np.argmax(total > chance[rows, None] * total[:, -1:], axis=1)]
            indices[:, move.step.columns] = move.step.values[taken % move.step.fan]
            states, sums = move.source[taken], sums - move.weight[taken]


@dataclass(frozen=True, eq=False)
class Distribution:
    """Architectures counted by one cost: a total is `base` + `grid` x (sums of both sides) + at most `slack`.

    The near side is the one with fewer sums at the cut.
    """

    base: int
    grid: int
    slack: int
    near: Side
    far: Side

    def window(self, low: float, high: float) -> Window:
        """The architectures whose total may lie in [low, high]; exactly those when `slack` is 0."""
        least = -int((self.base + self.slack - low) // self.grid)
        most = int((min(high, 2**62) - self.base) // self.grid)
        ways = []
        for (sums, here), (others, there) in zip(self.near.lists[-1], self.far.lists[-1], strict=True):
            start, stop = _range(sums, others, least, most)
            ways.append(here * np.where(stop > start, _Counter(there).between(start, stop), 0.0))
        return Window(self, least, most, np.cumsum(np.concatenate(ways)))


@dataclass(frozen=True, eq=False)
class Window:
    """A range of totals, in grid cells; `total` is the growing number of architectures over the sums of the near side."""

    whole: Distribution
    least: int
    most: int
    total: np.ndarray

    @property
    def count(self) -> float:
        """How many combinations of the decisions that the cost depends on there are."""
        return float(self.total[-1]) if len(self.total) else 0.0

    def fill(self, rng: np.random.Generator, indices: np.ndarray) -> None:
        """Replace the decisions in `indices` (n, decisions) that the cost depends on by uniform draws from a window of some."""
        for start in range(0, len(indices), CHUNK):
            self._fill(rng, indices[start : start + CHUNK])

    def _fill(self, rng: np.random.Generator, indices: np.ndarray) -> None:
        here, there = self.whole.near.lists[-1], self.whole.far.lists[-1]
        place = np.searchsorted(self.total, rng.random(len(indices)) * self.count, side="right")
        ends = np.cumsum([len(sums) for sums, _ in here])
        states = np.searchsorted(ends, place, side="right")
        near, far, chance = np.empty_like(place), np.empty_like(place), rng.random(len(indices))
        for state in np.unique(states):
            rows, (sums, _), (others, ways) = np.nonzero(states == state)[0], here[state], there[state]
            near[rows] = sums[place[rows] - (ends[state] - len(sums))]
            start, stop = _range(near[rows], others, self.least, self.most)
            far[rows] = others[_Counter(ways).pick(start, stop, chance[rows])]
        self.whole.near.back(states, near, rng, indices)
        self.whole.far.back(states, far, rng, indices)


def count_within(space: Space, rule: str, name: str, low: float, high: float) -> Window:
    """The architectures whose 'flops' or 'params' may lie in [low, high], counted and ready to be drawn."""
    whole = _whole(space, rule, name)
    return _part(space, rule, name, low, high) if whole is None else _window(whole, low, high)


@lru_cache(maxsize=4)
def _whole(space: Space, rule: str, name: str) -> Distribution | None:
    """The distribution over all costs, None when it would need a grid coarser than the costs."""
    found = distribution(cost_table(space, rule), name)
    return None if found.slack else found


@lru_cache(maxsize=32)
def _window(whole: Distribution, low: float, high: float) -> Window:
    return whole.window(low, high)


@lru_cache(maxsize=4)
def _part(space: Space, rule: str, name: str, low: float, high: float) -> Window:
    return distribution(cost_table(space, rule), name, low, high).window(low, high)


def distribution(table: CostTable, name: str, low: float = 0, high: float = float("inf")) -> Distribution:
    """Count the architectures by 'flops' or 'params', on the finest grid that `MOST_WORK` allows for totals in [low, high]."""
    steps, costs = table.steps, table.weights(name)
    base = getattr(table.fixed, name) + sum(int(cost.min()) for cost in costs)
    costs = [cost - cost.min() for cost in costs]
    grid = gcd(*(int(np.gcd.reduce(cost)) for cost in costs)) or 1
    useful = _useful(steps, costs, int(low) - base, int(min(high, 2**62)) + 1 - base)
    while True:
        slack = sum(int((cost % grid).max()) for cost in costs)
        to, on = ([((least - slack) // grid, most // grid) for least, most in side] for side in useful)
        cut, work = _cut(steps, to, on)
        if work <= MOST_WORK or grid > sum(int(cost.max()) for cost in costs):
            break
        grid *= 2
    before = [Move(step, step.before, step.after, cost // grid) for step, cost in zip(steps, costs, strict=True)][:cut]
    after = [Move(step, step.after, step.before, cost // grid) for step, cost in zip(steps, costs, strict=True)][cut:]
    sides = [_side(before, to[: cut + 1]), _side(after[::-1], on[cut:][::-1])]
    near, far = sorted(sides, key=lambda side: sum(len(sums) for sums, _ in side.lists[-1]))
    return Distribution(base, grid, slack, near, far)


def _useful(steps: Sequence[Step], costs: Sequence[np.ndarray], low: int, high: int) -> tuple[list[Cells], list[Cells]]:
    """Per level, the least and greatest sums to and from every state that are part of a total in [low, high]."""
    to_least, to_most = (behind(steps, costs, best) for best in (np.minimum, np.maximum))
    on_least, on_most = (ahead(steps, costs, best) for best in (np.minimum, np.maximum))
    levels = list(zip(to_least, to_most, on_least, on_most, strict=True))
    return ([(np.maximum(a, low - d), np.minimum(b, high - c)) for a, b, c, d in levels],
            [(np.maximum(c, low - b), np.minimum(d, high - a)) for a, b, c, d in levels])


def _cut(steps: Sequence[Step], to: Sequence[Cells], on: Sequence[Cells]) -> tuple[int, float]:
    """The level at which to cut the chain for the least work, and at most how many sums that takes."""
    long_to, long_on = (
        [np.minimum(ways, np.maximum(most - least + 1, 0)) for (least, most), ways in zip(side, count, strict=True)]
        for side, count in zip((to, on), paths(steps), strict=True))
    to_add = [float(length[step.before].sum()) for length, step in zip(long_to[:-1], steps, strict=True)]
    on_add = [float(length[step.after].sum()) for length, step in zip(long_on[1:], steps, strict=True)]
    work = np.cumsum([0.0, *to_add]) + np.cumsum([0.0, *on_add[::-1]])[::-1] + QUERY * np.array([a.sum() for a in long_to])
    return int(np.argmin(work)), float(work.min())


def _side(moves: Sequence[Move], cells: Sequence[Cells]) -> Side:
    """The sums listed per level and state, those outside `cells` left out."""
    levels: list[tuple[Listed, ...]] = [((np.zeros(1, np.int64), np.ones(1)),)]
    for move, (least, most) in zip(moves, cells[1:], strict=True):
        parts: list[list[tuple[np.ndarray, np.ndarray, int]]] = [[] for _ in least]
        for source, target, weight in zip(move.source.tolist(), move.target.tolist(), move.weight.tolist(), strict=True):
            parts[target].append((*levels[-1][source], weight))
        levels.append(tuple(_added(part, int(a), int(b)) for part, a, b in zip(parts, least, most, strict=True)))
    return Side(tuple(moves), tuple(levels))


def _added(parts: Sequence[tuple[np.ndarray, np.ndarray, int]], least: int, most: int) -> Listed:
    """One list of the parts (sums, ways, cost to add to the sums), equal sums joined, those outside [least, most] left out."""
    found = []
    for sums, ways, cost in parts:
        start, stop = np.searchsorted(sums, [least - cost, most - cost + 1])
        if stop > start:
            found.append((sums[start:stop], ways[start:stop], cost))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0)
    least, most = min(int(sums[0]) + cost for sums, _, cost in found), max(int(sums[-1]) + cost for sums, _, cost in found)
    if most - least >= DENSE * sum(len(sums) for sums, _, _ in found):
        joined, place = np.unique(np.concatenate([sums + cost for sums, _, cost in found]), return_inverse=True)
        return joined, np.bincount(place, np.concatenate([ways for _, ways, _ in found]))
    full = np.zeros(most - least + 1)
    for sums, ways, cost in found:
        start = int(sums[0]) + cost - least
        full[slice(start, start + len(sums)) if _gapless(sums) else sums + (cost - least)] += ways
    joined = np.nonzero(full)[0]
    if len(full) <= KEPT * len(joined):
        joined = np.arange(len(full))
    return joined + least, full[joined]


def _gapless(sums: np.ndarray) -> bool:
    return int(sums[-1] - sums[0]) + 1 == len(sums)


def _ways(listed: Listed, sums: np.ndarray) -> np.ndarray:
    """How many ways lead to each of `sums`, any shape; 0 for sums that are not listed."""
    known, ways = listed
    if not len(known):
        return np.zeros(sums.shape)
    place = np.clip(sums - known[0] if _gapless(known) else np.searchsorted(known, sums), 0, len(known) - 1)
    return np.where(known[place] == sums, ways[place], 0.0)


def _range(sums: np.ndarray, others: np.ndarray, least: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """For each sum, where the others that bring it into [least, most] start and stop."""
    return np.searchsorted(others, least - sums), np.searchsorted(others, most - sums, side="right")


class _Counter:
    """Sums of `ways` over ranges of places, from the nearer end: at the far one a few ways vanish beside the others' 10^30."""

    def __init__(self, ways: np.ndarray) -> None:
        self.below = np.concatenate([[0.0], np.cumsum(ways)])
        self.above = np.concatenate([np.cumsum(ways[::-1])[::-1], [0.0]])

    def between(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """How many ways there are from `start` to before `stop`."""
        return np.where(self._low(start, stop), self.below[stop] - self.below[start], self.above[start] - self.above[stop])

    def pick(self, start: np.ndarray, stop: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """A place from `start` to before `stop` by its share of the ways there; `chance` is in [0, 1)."""
        share = chance * self.between(start, stop)
        upward = np.searchsorted(self.below, self.below[start] + share, side="right") - 1
        downward = np.searchsorted(-self.above, -(self.above[start] - share), side="right") - 1
        return np.clip(np.where(self._low(start, stop), upward, downward), start, stop - 1)

    def _low(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return self.below[stop] <= self.above[start]
