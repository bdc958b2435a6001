"""Angle-based shrinking of a search space: train on what is left, score every operator by angles, drop the worst, repeat.

Source: Hu et al., "Angle-based Search Space Shrinking for Neural Architecture Search", ECCV 2020, algorithm 1, and the
published code for the MobileNet space: 7 operators a step, 100 epochs before the first and 5 before every other, 1,000
architectures an operator, new base weights once more than 50 operators are gone, until 1e6 architectures are left.

The state of a run is ``shrink.json``: the finished steps. All randomness follows from (seed, step, operator), so a killed run
ends with the same space.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.config import Recipe, RunFolder, training_space
from oneshot_nas.costs.limits import Limits, check_reachable, sample_within
from oneshot_nas.data.source import open_source
from oneshot_nas.errors import UserError
from oneshot_nas.files import as_json, read_json, write_json, write_params
from oneshot_nas.indicators.additive import Weights
from oneshot_nas.indicators.angle import angle_sums, angles
from oneshot_nas.search.task import limits_json
from oneshot_nas.spacefile import space_json, write_space
from oneshot_nas.train.checkpoint import latest_weights
from oneshot_nas.train.job import absolute, asked_classes
from oneshot_nas.train.loop import train
from oneshot_nas.train.operators import Operator, default_over, scored, with_weights, without, worst
from oneshot_nas.train.report import Log, logging
from oneshot_nas.train.sampling import at_least, make_sampler
from oneshot_nas.values import show

KIND = "shrink"


@dataclass(frozen=True)
class Shrinking:
    """How to shrink; the defaults are the published ones.

    Operators of the choices `over` (none: those that hold operators) are dropped, `drop` a step, until these choices leave
    `until` combinations or fewer.
    The supernet trains `first_epochs` before the first step and `step_epochs` before every other. Angles are the mean of
    `samples` architectures inside `limits`. The base weights become the current ones once, when more than `refresh`
    operators have been dropped.
    """

    over: tuple[str, ...] = ()
    limits: Limits = Limits()
    drop: int = 7
    until: float = 1e6
    first_epochs: int = 100
    step_epochs: int = 5
    samples: int = 1000
    refresh: int = 50

    def epochs(self, step: int) -> int:
        """Epochs that the supernet has trained when step 1, 2 ... scores its operators."""
        return self.first_epochs + (step - 1) * self.step_epochs

    def size(self, space: Space) -> int:
        """Combinations that the choices `over` leave."""
        return prod(len(values) for name in self.over for values in space.choice(name).values)

    def check(self, space: Space, recipe: Recipe) -> None:
        """Raise UserError for numbers that cannot work, limits out of reach, or a recipe with too few epochs."""
        for name in ("drop", "first_epochs", "step_epochs", "samples"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not self.until >= 1 or self.refresh < 0:
            raise UserError(f"--until must be at least 1 and --refresh at least 0, got {self.until:g} and {self.refresh}")
        if recipe.trainable != "all":
            raise UserError(f"angles need weights that move, the recipe trains '{recipe.trainable}' only; set trainable=all")
        if recipe.sampler.operator_warmup:
            raise UserError("angles compare how far operators have turned, which needs equal training: set "
                            "sampler.operator_warmup=0")
        for name in self.over:
            several = any(len(values) > 1 for values in space.choice(name).values)
            if several and name not in (known := with_weights(space)):
                raise UserError(f"angles do not depend on '{name}', which changes no weights; --over takes {show(known)}")
        check_reachable(space, self.limits)
        steps = self.most_steps(space)
        if steps and self.epochs(steps) > recipe.epochs:
            raise UserError(f"shrinking may take {steps} steps, hence {self.epochs(steps)} epochs; the recipe's schedule has "
                            f"{recipe.epochs}: set epochs={self.epochs(steps)} or more, or give fewer --first-epochs or "
                            "--step-epochs")

    def most_steps(self, space: Space) -> int:
        """The steps that are needed when the operators that leave the most combinations are dropped."""
        counts = sorted(len(values) for name in self.over for values in space.choice(name).values)
        steps = 0
        while prod(counts) > self.until:
            for _ in range(self.drop):
                counts[-1] -= counts[-1] > 1
                counts.sort()
            steps += 1
        return steps


@dataclass
class _State:
    """The finished steps of a run, as they stand in shrink.json."""

    path: Path
    identity: dict[str, Any]
    steps: list[dict[str, Any]]

    @staticmethod
    def read(path: Path, identity: dict[str, Any]) -> _State:
        """The state of this run. Raises: UserError when the folder holds another one."""
        if not path.exists():
            return _State(path, identity, [])
        content = read_json(path, KIND)
        if not isinstance(content.get("steps"), list) or not isinstance(content.get("identity"), dict):
            raise UserError(f"{path} lacks 'identity' or 'steps'; it was changed by hand")
        changed = [f"{key}: {str(content['identity'].get(key))[:80]} -> {str(identity[key])[:80]}" for key in identity
                   if content["identity"].get(key) != identity[key]]
        if changed:
            raise UserError(f"{path.parent} holds another shrinking run ({'; '.join(changed)}); give the same arguments to "
                            "resume it, or another folder")
        return _State(path, identity, content["steps"])

    def dropped(self) -> list[Operator]:
        """All operators that are gone."""
        try:
            return [Operator(*entry) for step in self.steps for entry in step["dropped"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.path} holds a step that is none ({error}); it was changed by hand") from None

    def add(self, space: Space, plan: Shrinking, epochs: int, found: Sequence[Operator], dropped: Sequence[Operator],
            refreshed: bool) -> None:
        """Record a finished step."""
        self.steps.append({
            "step": len(self.steps) + 1, "epochs": epochs, "size": plan.size(space), "base": refreshed,
            "dropped": [[o.choice, o.position, o.value] for o in dropped],
            "operators": [[o.choice, o.position, o.value, o.score, o.pool] for o in found]})
        write_json(self.path, KIND, {"identity": self.identity, "steps": self.steps})


def shrink(recipe: Recipe, out: str | Path, plan: Shrinking, say: Log | None = None) -> Space:
    """Shrink the space of a supernet's recipe in the run folder `out`; the same call again resumes, to the same result.

    ``out/space.json`` is the space after the last finished step, ``out/shrink.json`` every step with all angles,
    ``out/supernet`` the run of the supernet. Returns: the shrunk space.
    Raises: UserError for bad input or another run's folder, WorkError when training fails.
    """
    if recipe.space is None:
        raise UserError("a space is shrunk with the recipe of a supernet; this one trains a fixed network")
    run, recipe = RunFolder(out), absolute(recipe.model_copy(update={"keep_initial": True}))
    source = open_source(recipe, asked_classes(recipe))
    whole = at_least(training_space(recipe.space or "", {**recipe.options, "classes": source.class_count}, recipe.allowed),
                     recipe.sampler.least_scale)
    plan = replace(plan, over=plan.over or default_over(whole))
    plan.check(whole, recipe)
    identity = as_json({**asdict(plan), "limits": limits_json(plan.limits), "space": space_json(whole)})
    with run.lock(), logging(run.log, say) as log:
        RunFolder(run.path / "supernet").check_recipe(recipe, unset=True)
        state = _State.read(run.path / "shrink.json", identity)
        space = without(whole, state.dropped())
        write_space(run.path / "space.json", space)
        while plan.size(space) > plan.until:
            smaller = _step(recipe, run, plan, state, space, log)
            if smaller is space:
                break
            space = smaller
        log(f"shrunk to {plan.size(space):,} combinations in {len(state.steps)} steps: {run.path / 'space.json'}")
    return space


def _step(recipe: Recipe, run: RunFolder, plan: Shrinking, state: _State, space: Space, log: Log) -> Space:
    """Train, score and drop once; returns the smaller space, or `space` itself where nothing can go."""
    number = len(state.steps) + 1
    supernet, base = RunFolder(run.path / "supernet"), run.path / "base.params"
    until = min(plan.epochs(number), recipe.epochs)
    if state.steps and state.steps[-1]["epochs"] == until:
        log(f"warning: the limits kept so many operators that step {number} comes after the last of the {recipe.epochs} epochs: "
            "it scores the same weights again")
    else:
        log(f"step {number}: {plan.size(space):.4g} combinations, training to epoch {until}")
        train(recipe, supernet.path, log, until=until, over=space)
    current = latest_weights(supernet.checkpoint)
    refreshed = any(step["base"] for step in state.steps)
    sums = angle_sums(space, Weights(base if refreshed else supernet.initial), Weights(current))
    found = scored(space, plan.over, lambda pool: angles(sums(pool)), plan.limits, plan.samples, (recipe.seed, number))
    dropped = worst(found, plan.drop, partial(_leaves_some, space, plan.limits, recipe))
    if not dropped:
        log(f"warning: no operator can go any more: without any one of the {len(found)} that are left no architecture has "
            f"{plan.limits}")
        return space
    smaller = without(space, dropped)
    refresh = not refreshed and len(state.dropped()) + len(dropped) > plan.refresh
    if refresh:  # before the step is recorded: until then a new try still measures from the old ones
        write_params(base, "network", partial(_copy, current), {"space": space.name, "step": number})
    state.add(smaller, plan, until, found, dropped, refresh)
    write_space(run.path / "space.json", smaller)
    log(f"step {number}: dropped {show(f'{o.choice}[{o.position}] {o.value}' for o in dropped)}"
        + ("; angles are measured from the present weights from now on" if refresh else ""))
    return smaller


def _leaves_some(space: Space, limits: Limits, recipe: Recipe, dropped: Sequence[Operator]) -> bool:
    """Whether the space without these operators still has what its training draws, and an architecture inside the limits."""
    try:
        smaller = without(space, dropped)
        make_sampler(smaller, recipe.sampler, recipe.seed)
        return bool(sample_within(smaller, limits, np.random.default_rng(0), 1))
    except UserError:
        return False


def _copy(source: Path, target: str) -> None:
    shutil.copyfile(source, target)
