"""The best architectures of an additive score inside limits, and the whole score/FLOPs front: exact, with proof.

Scores and costs are sums over cost units, so dynamic programming over the units (`oneshot_nas.costs.labels`) finds the optimum
that an evolution can only approach. Equal networks under different encodings count as different architectures here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneshot_nas.arch import Arch, Space
from oneshot_nas.costs.analytic import Cost
from oneshot_nas.costs.chain import Step
from oneshot_nas.costs.labels import Problem, best_labels, front_labels
from oneshot_nas.costs.limits import ANY, Limits, Range, check_reachable, human, resources
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


def score_front(space: Space, scores: Mapping[str, Any], flops: Range = ANY, rule: str = "macs") -> list[Scored]:
    """Return every architecture that no other beats in score and FLOPs, cheapest first, one of those equal in both.

    The front is that of the whole space; `flops` cuts out a part of it. `scores` are as in `best_within`.

    Raises: UserError for bad scores and for FLOPs no architecture has.
    """
    given, limits = read_scores(space, scores), Limits(flops=(0, flops[1]), rule=rule)
    check_reachable(space, Limits(flops=flops, rule=rule))
    problem = _problem(space, given, limits)
    found = _scored(space, given, rule, _decisions(space, problem.steps, front_labels(problem)))
    return [scored for scored in found if scored.cost.flops >= flops[0]]


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
