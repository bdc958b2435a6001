"""What is searched: one frozen value that, with the history, decides every proposal."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from oneshot_nas.arch import Arch, Choice, Space, show
from oneshot_nas.costs.analytic import Cost, cost, micronet
from oneshot_nas.costs.limits import Limits, Range
from oneshot_nas.errors import UserError
from oneshot_nas.search.batch import CHILDREN, GRID, Proposal, Rules, countable
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.coarse import check_ordered, coarse_grid
from oneshot_nas.search.family import check_targets
from oneshot_nas.search.pareto import COSTS, check_costs
from oneshot_nas.search.searchers import SEARCHERS, WITH_TARGETS
from oneshot_nas.values import Value

Stages = tuple[tuple[str, ...], ...]
Predict = Callable[[Space, np.ndarray], np.ndarray]  # (a part of the space, indices (n, decisions)) -> fitness (n,)
Fit = Callable[[Space, Sequence[Candidate], Callable[[Candidate], float]], Predict | None]  # None: too few candidates yet
MOST_CHILDREN = 1_000_000
MOST_POPULATION = 100_000
EXACT = "exact"  # the algorithm without candidates, which is no task: see `oneshot_nas.search.exact`


@dataclass(frozen=True)
class Objective:
    """What is maximised: ``scores[score] - micronet_weight * MicroNet score``.

    The weighted form is that of the MXNet predecessor's balanced search (accuracy - r * normalised cost). The
    default weight of objective "micronet", 0.1, says that halving a network of MicroNet score 1 (that of
    MobileNetV2 1.4 at fp32 is 2 by definition) is worth five points of accuracy; 1.0 is the predecessor's r.
    """

    name: str = "top1"
    score: str = "top1"
    micronet_weight: float = 0.0

    def extra(self, space: Space, arch: Arch) -> dict[str, float]:
        """Scores that follow from the architecture alone: {"micronet"} where the objective needs it."""
        return {"micronet": micronet(space.plan(arch)).score} if self.micronet_weight else {}

    def of(self, scores: Mapping[str, float]) -> float:
        """The number to maximise. Raises: UserError when the indicator did not give the score."""
        if self.score not in scores:
            raise UserError(f"objective '{self.name}' needs the score '{self.score}', the indicator gives {show(scores)}")
        return scores[self.score] - (self.micronet_weight * scores["micronet"] if self.micronet_weight else 0.0)

    def fitness(self, candidate: Candidate) -> float:
        """The number to maximise, of a candidate that was evaluated."""
        return self.of(candidate.scores)

    def order(self, candidate: Candidate) -> tuple[float, int, int, int]:
        """Sorts candidates best first: by fitness, equal ones by fewer FLOPs, fewer parameters, earlier index."""
        return -self.fitness(candidate), candidate.cost.flops, candidate.cost.params, candidate.index


OBJECTIVES = {"top1": Objective(), "micronet": Objective("micronet", micronet_weight=0.1)}


@dataclass(frozen=True)
class Screening:
    """Many `children` are scored by what `fit` makes of the candidates so far, and only the best of them are evaluated.

    `fit(space, candidates, fitness)` must be a pure function, picklable, that `about` (JSON) tells from every other one.
    """

    fit: Fit
    about: Mapping[str, Any] = field(default_factory=dict)
    children: int = CHILDREN


@dataclass(frozen=True)
class SearchTask:
    """One search. `stages` are the choices searched in turn, each stage with the others fixed (none: all jointly).

    The first stage fixes the other choices to `base`, a later one to the best candidate so far. `about` describes what
    gives the scores (the supernet, its images); it is part of the identity of the history. `targets` are the growing upper FLOPs
    limits of a family (none: one best net); `grid` is the most points of the coarse grid of "coarse-to-fine".
    """

    space: Space
    limits: Limits = Limits()
    algorithm: str = "evolution"
    objective: Objective = Objective()
    budget: int = 1000
    population: int = 50
    seed: int = 0
    top_k: int = 10
    mutation: float = 0.1
    against: tuple[str, ...] = COSTS
    stages: Stages = ()
    base: Arch | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[float, ...] = ()
    grid: int = GRID
    screen: Screening | None = None

    def check(self) -> None:
        """Raise UserError for settings that cannot work: wrong names and numbers, limits or a population out of reach."""
        if self.algorithm not in SEARCHERS:
            raise UserError(f"unknown search algorithm '{self.algorithm}'; there are {show((*SEARCHERS, EXACT))}")
        for name in ("budget", "population", "top_k", "grid"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.population > MOST_POPULATION:
            raise UserError(f"population {self.population} is too large; give --population {MOST_POPULATION} or less")
        if not 0 < self.mutation <= 1:
            raise UserError(f"the mutation probability must be above 0 and at most 1, got {self.mutation}")
        check_costs(self.against)
        if self.generations < len(self.stages):
            raise UserError(f"a search in {len(self.stages)} stages needs a budget of at least {len(self.stages)} populations of "
                            f"{self.population}, got {self.budget}")
        if self.targets:
            self._check_targets()
        space = self.space_of_stage(0, ())
        listed = countable(space, self.limits)
        if listed is not None and not listed:
            raise UserError(f"no architecture of '{self.space.name}' meets {self.limits}; widen the limits")
        if listed is not None and self.population > len(listed):
            self.too_large(len(listed))
        if self.algorithm == "coarse-to-fine":
            for stage in range(max(1, len(self.stages))):
                check_ordered(self.space_of_stage(stage, ()))
            cells = len(coarse_grid(space, self.limits, self.grid))
            if self.budget <= cells:
                raise UserError(f"the coarse grid has {cells} architectures, a budget of {self.budget} leaves nothing to refine; "
                                f"give --budget above {cells}, or a smaller --grid")
        if self.screen and not self.population <= self.screen.children <= MOST_CHILDREN:
            raise UserError(f"{self.screen.children} children are no choice for a population of {self.population}; "
                            f"give --children from {self.population} to {MOST_CHILDREN:,}")

    def check_first_batch(self) -> None:
        """Raise UserError when a space too large to be listed has fewer architectures inside the limits than a population."""
        found = len(self.propose([], 0))
        if found < self.population:
            self.too_large(found)

    def _check_targets(self) -> None:
        if self.algorithm not in WITH_TARGETS:
            raise UserError(f"FLOPs targets do not go with algorithm '{self.algorithm}', which finds a whole front by itself; "
                            f"use one of {show(WITH_TARGETS)}")
        check_targets(self.targets, self.space_of_stage(0, ()), self.limits)
        if self.limits.flops[1] > self.targets[-1]:
            raise UserError(f"limits {self.limits} go beyond the largest target; make the task with `for_targets`")

    def for_targets(self, targets: Sequence[float]) -> SearchTask:
        """This search for a family of nets, each the best up to a target: limits on FLOPs end at the largest."""
        flops = self.limits.flops[0], min(self.limits.flops[1], max(targets))
        return replace(self, targets=tuple(targets), limits=replace(self.limits, flops=flops))

    def too_large(self, count: int) -> None:
        """Raise UserError: the population does not fit into what can be searched."""
        raise UserError(f"a population of {self.population} is larger than the {count} architectures found inside the limits "
                        f"({self.limits}); give --population {count} or less, or widen the limits")

    @property
    def generations(self) -> int:
        """Batches until the budget is used."""
        return -(-self.budget // self.population)

    def space_of_stage(self, stage: int, history: Sequence[Candidate]) -> Space:
        """The space with everything fixed that this stage does not search. Raises: UserError when a base is missing."""
        if not self.stages:
            return self.space
        usable = [c for c in history if c.ok] if stage else []
        base = min(usable, key=self.objective.order).arch if usable else self.start()
        return self.space.freeze(base, self.stages[stage])

    def start(self) -> Arch:
        """What the first stage fixes the other choices to."""
        if self.base is not None:
            return self.space.check(self.base)
        return self.space.arch({choice.name: tuple(usual(choice, allowed) for allowed in choice.values)
                                for choice in self.space.choices})

    def propose(self, history: Sequence[Candidate], first: int) -> list[Proposal]:
        """The batch whose first candidate has index `first`: a pure function of this task and the candidates before it."""
        before = history[:first]
        rng = random.Random(f"{self.seed}:{first}")
        rules = Rules(self.limits, self.objective.fitness, self.top_k, self.mutation, self.against,
                      targets=self.targets, grid=self.grid)
        searcher = SEARCHERS[self.algorithm]
        predict = self.screen.fit(self.space, before, self.objective.fitness) if self.screen else None
        if not self.stages:
            return searcher(self.space, before, rng, self.population, self._scored(rules, predict, self.space))
        stage = min(first // self.population * len(self.stages) // self.generations, len(self.stages) - 1)
        batch: list[Proposal] = []
        for number in range(stage, len(self.stages)):  # a stage without new architectures hands the rest to the next one
            tried = [*before, *(Candidate(-1, p.arch, cost(p.arch, self.limits.rule), error="in this batch") for p in batch)]
            space = self.space_of_stage(number, before)
            batch += searcher(space, tried, rng, self.population - len(batch), self._scored(rules, predict, space))
            if len(batch) == self.population:
                break
        return batch

    def _scored(self, rules: Rules, predict: Predict | None, space: Space) -> Rules:
        """The rules with the predictor's scores for index rows of `space`, where there is a predictor."""
        if predict is None or self.screen is None:
            return rules
        return replace(rules, score=partial(predict, space), children=self.screen.children)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the history, as JSON: two searches with equal fingerprints are the same search.

        The budget belongs to it only where it decides when a stage ends; otherwise a search may be prolonged.
        """
        return {
            "space": self.space.name,
            "options": dict(self.space.options),
            "size": str(self.space.size),
            "limits": limits_json(self.limits),
            "algorithm": self.algorithm,
            "objective": asdict(self.objective),
            "population": self.population,
            "seed": self.seed,
            "top_k": self.top_k,
            "mutation": self.mutation,
            "against": list(self.against),
            "stages": [list(stage) for stage in self.stages],
            "base": self.start().to_json()["choices"] if self.stages else None,
            "about": dict(self.about),
            **({"budget": self.budget} if len(self.stages) > 1 else {}),
            **({"targets": list(self.targets)} if self.targets else {}),
            **({"grid": self.grid} if self.algorithm == "coarse-to-fine" else {}),
            **({"screen": {**self.screen.about, "children": self.screen.children}} if self.screen else {}),
        }

    def directions(self) -> list[str]:
        """Optuna's directions of `values`."""
        return ["maximize"] + ["minimize"] * len(self._costs())

    def values(self, scores: Mapping[str, float], cost: Cost) -> list[float]:
        """The numbers that Optuna is told: the objective, for nsga2 also the costs of the Pareto front."""
        return [self.objective.of(scores), *(float(getattr(cost, name)) for name in self._costs())]

    def _costs(self) -> tuple[str, ...]:
        return self.against if self.algorithm == "nsga2" else ()


def limits_json(limits: Limits) -> dict[str, Any]:
    """Limits as JSON; an open end is null."""
    def pair(limit: Range) -> list[float | None]:
        return [None if bound in (0, float("inf")) else bound for bound in limit]

    return {"flops": pair(limits.flops), "params": pair(limits.params), "rule": limits.rule}


def usual(choice: Choice, allowed: Sequence[Value]) -> Value:
    """What a decision is fixed to where nobody says: the choice's default, else the middle value of one that grows (the larger
    of two), the first operator of others."""
    if choice.default is not None and choice.default in allowed:
        return choice.default
    return allowed[len(allowed) // 2 if choice.ordered else 0]


def parse_over(text: str | None, space: Space) -> Stages:
    """The stages of ``--over``: 'block,scale' jointly, 'block' with the others fixed, 'block+scale' one after the other.

    Raises: UserError for a choice that the space does not have, or one named twice.
    """
    if text is None:
        return ()
    stages = tuple(tuple(name.strip() for name in part.split(",")) for part in text.split("+"))
    names = [space.choice(name).name for stage in stages for name in stage]
    if len(set(names)) < len(names):
        raise UserError(f"--over '{text}' names a choice twice; use each of {show(c.name for c in space.choices)} at most once")
    return () if len(stages) == 1 and len(names) == len(space.choices) else stages
