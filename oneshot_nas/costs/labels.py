"""Best sums along a chain of cost units under limits: labels, pruned only by proof.

A label is a way from the start of the chain to a state. It is dropped when no completion is inside the limits of one resource, or
by a bound inside those of both; when an upper bound of its score is not above what is already known; or when others of its state
are at least as good in every respect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from oneshot_nas.costs.chain import Step, ahead
from oneshot_nas.errors import WorkError

WIDTHS = (2**11, 2**13, 2**15, 2**17, 2**19)  # labels kept of a level, until none is left out without proof
BLOCK = 2**21  # labels made together
HALVINGS = 40  # steps of the search for a price
MARGIN = 1e-9  # of the largest sums: more than float64 loses in a bound


@dataclass(frozen=True, eq=False)
class Resource:
    """One cost of every transition, int64 (transitions,) per step, and the inclusive limits of its sum, inside what it can be."""

    amounts: list[np.ndarray]
    low: int
    high: int
    least: list[np.ndarray]  # still to come from every state, per level
    most: list[np.ndarray]

    @property
    def limited(self) -> tuple[bool, bool]:
        """Whether the lower limit, and the upper one, leaves anything out."""
        return self.low > int(self.least[0][0]), self.high < int(self.most[0][0])


def resource(steps: Sequence[Step], amounts: list[np.ndarray], low: float, high: float) -> Resource:
    """The resource with limits clipped to what sums are possible; an empty range stays empty."""
    least, most = ahead(steps, amounts, np.minimum), ahead(steps, amounts, np.maximum)
    bounds = int(-(-max(low, int(least[0][0])) // 1)), int(min(high, int(most[0][0])) // 1)
    return Resource(amounts, *bounds, least, most)


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one level: state, sums of both resources, sum of scores; `parent` in the level before, `taken` transition."""

    state: np.ndarray
    flops: np.ndarray
    params: np.ndarray
    score: np.ndarray
    parent: np.ndarray
    taken: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Labels:
        return Labels(*(getattr(self, name)[rows] for name in LABELS))


LABELS = ("state", "flops", "params", "score", "parent", "taken")
START = Labels(*(np.zeros(1, np.int64) for _ in LABELS))


@dataclass(frozen=True, eq=False)
class Bound:
    """An upper bound of the scores inside the limits: score - price x resources is maximised without limits.

    `ahead` is its part still to come, per level and state; `credit` what the limits give back.
    """

    prices: tuple[float, float]
    ahead: list[np.ndarray]
    credit: float
    margin: float

    def of(self, level: int, labels: Labels) -> np.ndarray:
        """The bound of every label at a level, float64."""
        paid = self.prices[0] * labels.flops + self.prices[1] * labels.params
        return labels.score - paid + self.ahead[level][labels.state] + self.credit


@dataclass(frozen=True, eq=False)
class Problem:
    """The chain, the int64 score of every transition, and both resources."""

    steps: Sequence[Step]
    scores: list[np.ndarray]
    flops: Resource
    params: Resource


@dataclass(frozen=True, eq=False)
class Reach:
    """How far one resource gets inside the limits of the other one: a bound of `sign` times its sum, which must get to `goal`."""

    name: str
    sign: int
    bound: Bound
    goal: int

    def of(self, level: int, labels: Labels) -> np.ndarray:
        """The most (sign 1) or the least (sign -1) that the resource can become from every label at a level, float64."""
        sums = replace(labels, score=self.sign * getattr(labels, self.name))
        return self.sign * (self.bound.of(level, sums) + self.bound.margin)

    def keeps(self, level: int, labels: Labels) -> np.ndarray:
        """Which labels the bound leaves a chance."""
        return self.sign * self.of(level, labels) >= self.goal


def reaches(steps: Sequence[Step], flops: Resource, params: Resource) -> list[Reach]:
    """A bound for every limit of one resource that the other one's limits may put out of reach."""
    found = []
    for name, own, other in (("flops", flops, params), ("params", params, flops)):
        for sign, limited in zip((1, -1), own.limited, strict=True):
            if limited and any(other.limited):
                free = replace(own, low=int(own.least[0][0]), high=int(own.most[0][0]))
                ends = {"flops": flops, "params": params, name: free}
                problem = Problem(steps, [sign * amounts for amounts in own.amounts], **ends)
                found.append(Reach(name, sign, _bound(problem), sign * (own.low if sign > 0 else own.high)))
    return found


def best_labels(problem: Problem, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Transitions (n, steps) and int64 scores (n,) of the `top` best ways inside the limits, best first, or of all there are.

    Raises: WorkError when the proof takes more than the last of `WIDTHS` labels.
    """
    bound, rest = _bound(problem), ahead(problem.steps, problem.scores, np.maximum)
    goals = reaches(problem.steps, problem.flops, problem.params)
    ways, scores, costs = np.zeros((0, len(problem.steps)), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for width in WIDTHS:
        floor = int(scores[top - 1]) if len(scores) >= top else None
        levels, complete = _levels(problem, top, bound, rest, floor, width, goals)
        ways, place = np.unique(np.concatenate([ways, _trace(levels)]), axis=0, return_index=True)
        scores = np.concatenate([scores, levels[-1].score])[place]
        costs = np.concatenate([costs, levels[-1].flops])[place]
        order = np.lexsort((costs, -scores))[:top]
        ways, scores, costs = ways[order], scores[order], costs[order]
        if complete:
            return ways, scores
    raise WorkError(f"no proof of the best with {WIDTHS[-1]:,} partial architectures; the limits are too narrow for this space, "
                    "widen or drop the lower or the params limit")


def front_labels(problem: Problem) -> np.ndarray:
    """Transitions (n, steps) of the ways that no other beats in score and flops, growing in both; upper flops limit only.

    Raises: WorkError when more than the last of `WIDTHS` partial ways are undominated.
    """
    levels, complete = _levels(problem, 1, None, None, None, WIDTHS[-1])
    if not complete:
        raise WorkError(f"the front has more than {WIDTHS[-1]:,} partial architectures; give a FLOPs limit")
    return _trace(levels)[np.argsort(levels[-1].flops)]


def _levels(problem: Problem, top: int, bound: Bound | None, rest: list[np.ndarray] | None, floor: int | None,
            width: int, goals: Sequence[Reach] = ()) -> tuple[list[Labels], bool]:
    """The labels of every level, and whether none of them was left out without proof (the best bounds stay then)."""
    levels, complete = [START], True
    for level, step in enumerate(problem.steps, 1):
        labels, count = levels[-1], max(1, BLOCK // step.fan)
        blocks = []
        for start in range(0, max(1, len(labels.state)), count):
            made = _extended(problem, level, step, labels, np.arange(start, min(start + count, len(labels.state))))
            for goal in goals:
                made = made[goal.keeps(level, made)]
            if floor is not None and rest is not None and bound is not None:
                made = made[made.score + rest[level][made.state] > floor]
                made = made[bound.of(level, made) >= floor - bound.margin]
            blocks.append(made)
        made = Labels(*(np.concatenate([getattr(block, name) for block in blocks]) for name in LABELS))
        made = made[_undominated(problem, level, made, top)]
        if len(made.state) > width:
            complete = False
            worth = made.score if bound is None else bound.of(level, made)
            made = made[np.sort(np.argpartition(-worth, width)[:width])]
        levels.append(made)
    return levels, complete


def _extended(problem: Problem, level: int, step: Step, labels: Labels, rows: np.ndarray) -> Labels:
    """All transitions of the labels in `rows` that may still end inside the limits."""
    taken = (labels.state[rows, None] * step.fan + np.arange(step.fan)).ravel()
    parent = np.repeat(rows, step.fan)
    state = step.after[taken]
    flops = labels.flops[parent] + problem.flops.amounts[level - 1][taken]
    params = labels.params[parent] + problem.params.amounts[level - 1][taken]
    inside = np.ones(len(taken), bool)
    for sums, limit in ((flops, problem.flops), (params, problem.params)):
        inside &= (sums + limit.least[level][state] <= limit.high) & (sums + limit.most[level][state] >= limit.low)
    score = labels.score[parent] + problem.scores[level - 1][taken]
    return Labels(state, flops, params, score, parent, taken)[inside]


def _undominated(problem: Problem, level: int, labels: Labels, top: int) -> np.ndarray:
    """Rows of the labels that fewer than `top` others beat or equal in score and in what is left of the limits.

    One limited resource is compared; where both are, only labels of equal params are. A lower limit that a label cannot miss
    any more, and an upper one that it cannot exceed any more, count as equal.
    """
    groups = [labels.state]
    for sums, limit in ((labels.flops, problem.flops), (labels.params, problem.params)):
        if limit.limited[0]:
            groups.append(np.minimum(sums, limit.low - limit.least[level][labels.state]))
    cost = labels.flops
    if problem.params.limited[1]:
        used = np.maximum(labels.params, problem.params.high - problem.params.most[level][labels.state])
        if problem.flops.limited[1]:
            groups.append(used)
        else:
            cost = used
    order = np.lexsort((-labels.score, cost, *groups))
    changed = np.zeros(len(order), bool)
    for group in groups:
        changed[1:] |= group[order][1:] != group[order][:-1]
    rank = np.unique(labels.score, return_inverse=True)[1][order] + np.cumsum(changed) * (len(order) + 1)
    kept = []
    for _ in range(top):
        if not len(order):
            break
        highest = np.maximum.accumulate(rank)
        front = np.concatenate([[True], highest[1:] > highest[:-1]])
        kept.append(order[front])
        order, rank = order[~front], rank[~front]
    return np.sort(np.concatenate(kept)) if kept else order


def _trace(levels: list[Labels]) -> np.ndarray:
    """The transitions (labels of the last level, steps) that lead to them."""
    rows = np.arange(len(levels[-1].state))
    ways = np.empty((len(rows), len(levels) - 1), np.int64)
    for place in range(len(levels) - 1, 0, -1):
        ways[:, place - 1] = levels[place].taken[rows]
        rows = levels[place].parent[rows]
    return ways


def _bound(problem: Problem) -> Bound:
    """The bound at the best prices found: one resource after the other, twice where both are limited."""
    prices = [0.0, 0.0]
    limits = (problem.flops, problem.params)
    limited = [place for place, limit in enumerate(limits) if any(limit.limited)]
    for place in limited * len(limited):
        prices[place] = _price(problem, prices, place)
    values, _ = _dual(problem, prices)
    credit = sum(price * (limit.high if price >= 0 else limit.low) for price, limit in zip(prices, limits, strict=True))
    scale = sum(float(np.abs(score).max()) for score in problem.scores)
    scale += sum(abs(price) * (abs(limit.low) + abs(limit.high) + int(limit.most[0][0]))
                 for price, limit in zip(prices, limits, strict=True))
    return Bound((prices[0], prices[1]), values, credit, MARGIN * scale)


def _price(problem: Problem, prices: Sequence[float], place: int) -> float:
    """The price of one resource that makes the bound least, found by halving; the other one's price stays."""
    limit = (problem.flops, problem.params)[place]

    def used(price: float) -> int:
        return _dual(problem, [price if index == place else other for index, other in enumerate(prices)])[1][place]

    sign = 1 if used(0.0) > limit.high else -1 if used(0.0) < limit.low else 0
    if not sign:
        return 0.0
    wanted = limit.high if sign > 0 else limit.low
    spread = sum(float(np.ptp(score)) for score in problem.scores)
    near, far = 0.0, spread / max(1, int(limit.most[0][0] - limit.least[0][0])) + MARGIN
    for _ in range(HALVINGS):
        if (used(sign * far) - wanted) * sign <= 0:
            break
        near, far = far, far * 4
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        near, far = (near, middle) if (used(sign * middle) - wanted) * sign <= 0 else (middle, far)
    return sign * far


def _dual(problem: Problem, prices: Sequence[float]) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The greatest score - price x resources still to come, per level and state, and the resources of the best way."""
    levels, flops, params = [np.zeros(1)], np.zeros(1, np.int64), np.zeros(1, np.int64)
    for step, score, f, p in zip(reversed(problem.steps), reversed(problem.scores), reversed(problem.flops.amounts),
                                 reversed(problem.params.amounts), strict=True):
        value = (score - prices[0] * f - prices[1] * p + levels[-1][step.after]).reshape(step.states, step.fan)
        best = np.arange(step.states) * step.fan + np.argmax(value, axis=1)
        levels.append(value.ravel()[best])
        flops, params = f[best] + flops[step.after[best]], p[best] + params[step.after[best]]
    return levels[::-1], (int(flops[0]), int(params[0]))
