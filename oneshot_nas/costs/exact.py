"""The best architectures of an additive score inside limits, and the whole score/FLOPs front: exact, with proof.

Scores and costs are sums over cost units, so dynamic programming over the units (`oneshot_nas.costs.labels`) finds the optimum
that an evolution can only approach. Equal networks under different encodings count as different architectures here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from oneshot_nas.arch import Arch, Space
from oneshot_nas.costs.analytic import Cost
from oneshot_nas.costs.chain import Step
from oneshot_nas.costs.labels import Problem, best_labels, front_labels
from oneshot_nas.costs.limits import ANY, Limits, check_reachable, human, resources
from oneshot_nas.costs.scores import Scores, read_scores
from oneshot_nas.costs.table import cost_table
from oneshot_nas.errors import UserError

MOST_TOP = 10_000
NONE = Limits()


@dataclass(frozen=True)
class Scored:
    """An architecture, the sum of its scores, and its cost."""

    arch: Arch
    score: float
    cost: Cost


def best_within(space: Space, scores: Mapping[str, Any], limits: Limits = NONE, top: int = 1) -> list[Scored]:
    """Return the `top` architectures of highest score inside the limits, best first; fewer only when there are fewer.

    `scores` map a choice to one row of numbers per position, or a cost unit to its table; see `read_scores`. The result is
    proved optimal: a bound or dominance rules out every architecture that is not looked at. Scores are compared in fixed point
    with 60 bits, so two totals that close count as equal, and which of them is returned is not defined.

    Raises: UserError for bad scores, and for limits no architecture meets, with what is reachable; WorkError when limits are
    so narrow that the proof would take too much memory.

    Example: ``best_within(space, {"op": gammas}, Limits(flops=(0, 475e6)), top=10)``
    """
    if not 1 <= top <= MOST_TOP:
        raise UserError(f"top must be from 1 to {MOST_TOP:,}, got {top}")
    given = read_scores(space, scores)
    check_reachable(space, limits)
    steps, ways = _solved(space, given, limits, top)
    if not len(ways):
        raise UserError(f"no architecture of '{space.name}' meets {limits}{_hint(space, limits)} (rule {limits.rule})")
    return _scored(space, given, limits.rule, _decisions(space, steps, ways))


def score_front(space: Space, scores: Mapping[str, Any], limits: Limits = NONE) -> list[Scored]:
    """Return every architecture inside the limits that no other one there beats in score and FLOPs, cheapest first, one of
    those equal in both.

    `scores` are as in `best_within`. Raises: UserError for bad scores and for limits no architecture meets; WorkError when the
    proof would take too much memory.
    """
    return rising(front_downwards(space, scores, limits))


def front_downwards(space: Space, scores: Mapping[str, Any], limits: Limits) -> Iterator[Scored]:
    """Yield the front (see `score_front`) from the dearest architecture on; `rising` turns and cleans it.

    Under an upper FLOPs limit alone it is solved at once. Where another limit leaves out a part of that front, the best ones
    under an ever lower FLOPs limit are proved one by one in its place, each of which takes as long as `best_within`.
    """
    given, (low, ceiling) = read_scores(space, scores), limits.flops
    check_reachable(space, limits)
    problem = _problem(space, given, Limits(flops=(0, ceiling), rule=limits.rule))
    free = _scored(space, given, limits.rule, _decisions(space, problem.steps, front_labels(problem)))
    while free and ceiling >= low:
        dearest = free.pop()
        if dearest.cost.flops > ceiling:
            continue
        if limits.reject(dearest.cost) is None:
            yield dearest
            ceiling = dearest.cost.flops - 1
            continue
        settled = max((scored.cost.flops for scored in free if limits.reject(scored.cost) is None), default=0)
        while ceiling >= max(low, settled):
            steps, ways = _solved(space, given, replace(limits, flops=(low, ceiling)), 1)
            if not len(ways):
                return
            found = _scored(space, given, limits.rule, _decisions(space, steps, ways))[0]
            yield found
            ceiling = found.cost.flops - 1


def rising(found: Iterable[Scored]) -> list[Scored]:
    """The architectures cheapest first, without those whose score a cheaper one has too."""
    kept: list[Scored] = []
    for scored in sorted(found, key=lambda each: each.cost.flops):
        if not kept or scored.score > kept[-1].score:
            kept.append(scored)
    return kept


def _problem(space: Space, scores: Scores, limits: Limits) -> Problem:
    table = cost_table(space, limits.rule)
    steps, flops, params = resources(table, limits, scores.loose(table.steps))
    return Problem(steps, scores.along(space, steps), flops, params)


def _solved(space: Space, scores: Scores, limits: Limits, top: int) -> tuple[Sequence[Step], np.ndarray]:
    problem = _problem(space, scores, limits)
    return problem.steps, best_labels(problem, top)[0]


def _decisions(space: Space, steps: Sequence[Step], ways: np.ndarray) -> np.ndarray:
    """Indices (n, decisions) of transitions (n, steps); a decision that nothing depends on is 0."""
    indices = np.zeros((len(ways), len(space.positions)), np.int64)
    for step, taken in zip(steps, ways.T, strict=True):
        indices[:, step.columns] = step.values[taken % step.fan]
    return indices


def _scored(space: Space, scores: Scores, rule: str, indices: np.ndarray) -> list[Scored]:
    flops, params = cost_table(space, rule)(indices)
    return [Scored(space.decode(row), scores.of(space, row), Cost(f, p, rule))
            for row, f, p in zip(indices.tolist(), flops.tolist(), params.tolist(), strict=True)]


def _hint(space: Space, limits: Limits) -> str:
    """What FLOPs the params limit leaves, in words, where both are limited."""
    if limits.params == ANY or limits.flops == ANY:
        return ", a gap between the costs it can have; widen the limits"
    table, alone = cost_table(space, limits.rule), Limits(params=limits.params, rule=limits.rule)
    ends = []
    for sign in (-1, 1):
        flops = Scores({unit.name: sign * unit.flops.astype(np.float64) for unit in table.units}, {})
        steps, ways = _solved(space, flops, alone, 1)
        ends += [human(float(value)) for value in table(_decisions(space, steps, ways))[0]]
    return f"; with these params the FLOPs are {':'.join(ends)}" if ends else ", whose params are a gap between those it can have"
