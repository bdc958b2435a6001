"""What a search found: the best candidate, the Pareto front, and how far the scores can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oneshot_nas.arch import Arch
from oneshot_nas.errors import WorkError
from oneshot_nas.progress import track
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.family import members
from oneshot_nas.search.pareto import pareto_front
from oneshot_nas.search.task import SearchTask, limits_json

Reevaluate = Callable[[Arch, int], Mapping[str, float]]


def ranking(task: SearchTask, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with scores, best first; see `Objective.order`."""
    return sorted((c for c in candidates if c.ok), key=task.objective.order)


def measure_noise(task: SearchTask, candidates: Sequence[Candidate], reevaluate: Reevaluate, top: int = 3,
                  repeats: int = 2) -> dict[str, Any] | None:
    """How much the objective varies when the best `top` candidates are evaluated again, `reevaluate(arch, 1..repeats)`.

    `std` is pooled over the candidates (root of the mean sample variance); `lead` is what the best one is ahead of the next.
    The order of the search is not touched. None when nothing is to be repeated.
    """
    best = ranking(task, candidates)[:top]
    if not best or repeats < 1:
        return None
    values = {c.index: [task.objective.fitness(c)] for c in best}
    again = [(repeat, candidate) for repeat in range(1, repeats + 1) for candidate in best]  # one set of images at a time
    for repeat, candidate in track(again, "measuring the noise", unit="evaluation"):
        scores = {**reevaluate(candidate.arch, repeat), **task.objective.extra(task.space, candidate.arch)}
        values[candidate.index].append(task.objective.of(scores))
    spread = {index: statistics.stdev(found) for index, found in values.items()}
    return {
        "std": math.sqrt(statistics.fmean(std**2 for std in spread.values())),
        "lead": values[best[0].index][0] - values[best[1].index][0] if len(best) > 1 else None,
        "repeats": repeats,
        "candidates": [{"index": c.index, "values": values[c.index], "std": spread[c.index]} for c in best],
    }


def result_content(task: SearchTask, candidates: Sequence[Candidate], reason: str, noise: dict[str, Any] | None,
                   commands: Sequence[str]) -> dict[str, Any]:
    """The content of ``result.json`` (kind "search-result"). Raises: WorkError when no candidate has scores."""
    ranked = ranking(task, candidates)
    if not ranked:
        first = candidates[0].error if candidates else "none"
        raise WorkError(f"none of {len(candidates)} candidates could be evaluated; the first error was: {first}")

    def entry(candidate: Candidate) -> dict[str, Any]:
        return {**candidate.to_json(), "fitness": task.objective.fitness(candidate)}

    family = [
        {
            "above": member.above,
            "target": member.target,
            "best": member.best and entry(member.best),
            "dominated_by": member.dominated_by and member.dominated_by.index,
        }
        for member in (members(ranked, task.objective.order, task.targets, task.limits) if task.targets else ())
    ]
    return {
        "best": entry(ranked[0]),
        "front": [entry(c) for c in pareto_front(ranked, task.objective.fitness, task.against)],
        **({"family": family} if family else {}),
        "front_of": [task.objective.name, *task.against],
        "noise": noise,
        "candidates": len(candidates),
        "failed": len(candidates) - len(ranked),
        "seconds": sum(c.seconds for c in candidates),
        "ended": reason,
        "algorithm": task.algorithm,
        "objective": task.objective.name,
        "limits": limits_json(task.limits),
        "seed": task.seed,
        "budget": task.budget,
        "population": task.population,
        "about": dict(task.about),
        "next": list(commands),
    }
