"""Pictures of a search: accuracy against costs with the Pareto front, and the best so far against candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from oneshot_nas.costs.limits import Limits, Range
from oneshot_nas.errors import UserError
from oneshot_nas.plots.style import COLOURS, INK, MILLION, PALE, flops_label, millions, styled, viridis, whole_numbers
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.family import Member, members
from oneshot_nas.search.pareto import pareto_front
from oneshot_nas.search.task import OBJECTIVES, Objective

TOP1, NO_LIMITS = OBJECTIVES["top1"], Limits()
STAR = {"marker": "*", "s": 170, "color": COLOURS[4], "edgecolor": INK, "linewidth": 0.8, "zorder": 6}


def score_label(objective: Objective) -> str:
    """What the objective is, for an axis; accuracies are in percent."""
    return "supernet top-1 accuracy (%)" if objective.name == "top1" else f"objective '{objective.name}'"


def score_of(objective: Objective, candidate: Candidate) -> float:
    """The objective of a candidate in the unit of `score_label`."""
    return objective.fitness(candidate) * (100 if objective.name == "top1" else 1)


def score_text(objective: Objective, candidate: Candidate) -> str:
    """The objective of a candidate with its unit."""
    return f"{score_of(objective, candidate):.2f} %" if objective.name == "top1" else f"{score_of(objective, candidate):.5g}"


def evaluated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that have scores. Raises: UserError when there are none."""
    found = [candidate for candidate in candidates if candidate.ok]
    if not found:
        failed = f"; all {len(candidates)} so far failed" if candidates else ""
        raise UserError(f"the search has no evaluated candidate yet{failed}; plot again after the first one")
    return found


def best_of(candidates: Sequence[Candidate], objective: Objective = TOP1) -> Candidate:
    """The best candidate, of equals the cheapest. Raises: UserError when there is none."""
    return min(evaluated(candidates), key=objective.order)


@styled
def search_scatter(candidates: Sequence[Candidate], population: int = 50, limits: Limits = NO_LIMITS,
                   objective: Objective = TOP1, title: str = "", targets: Sequence[float] = ()) -> Figure:
    """Objective against FLOPs and against parameters, coloured by generation (batches of `population`).

    Each panel has the Pareto front of its own two quantities as a step line, the best candidate as a star, and what is
    outside the limits shaded. With `targets` the nets of the family are diamonds, hollow where a cheaper one is no worse.
    Raises: UserError without an evaluated candidate.
    """
    found, best = evaluated(candidates), best_of(candidates, objective)
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    panels, shaded = figure.subplots(1, 2, sharey=True), False
    generations = [candidate.index // population + 1 for candidate in found]
    norm = BoundaryNorm(np.arange(max(generations) + 1) + 0.5, max(generations))
    colours = ListedColormap(viridis(max(generations)))
    for axes, name, label, limit in zip(panels, ("flops", "params"), (f"{flops_label(limits.rule)} (M)", "parameters (M)"),
                                        (limits.flops, limits.params), strict=True):
        values = [getattr(candidate.cost, name) / MILLION for candidate in found]
        scores = [score_of(objective, candidate) for candidate in found]
        axes.scatter(values, scores, c=generations, cmap=colours, norm=norm, s=16, alpha=0.8, linewidth=0, zorder=3)
        front = pareto_front(found, objective.fitness, (name,))
        steps = sorted((getattr(candidate.cost, name) / MILLION, score_of(objective, candidate)) for candidate in front)
        axes.step(*zip(*steps, strict=True), where="post", color=INK, linewidth=1.3, marker="o", markersize=4,
                  markerfacecolor="none", zorder=4, label="Pareto front")
        axes.scatter([getattr(best.cost, name) / MILLION], [score_of(objective, best)], label="best", **STAR)
        if targets:
            _family(axes, members(found, objective.order, targets, limits), name, objective)
        shaded = _shade_outside(axes, limit) or shaded
        axes.set_xlabel(label)
    panels[0].set_ylabel(score_label(objective))
    if max(generations) > 1:
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), pad=0.015, aspect=30)
        bar.set_label(f"generation ({population} candidates each)")
        bar.set_ticks(_whole_ticks(max(generations)))
        bar.minorticks_off()
    handles = panels[0].get_legend_handles_labels()[0]
    if shaded:
        handles.append(Patch(facecolor=PALE, alpha=0.5, label=f"outside the limits ({limits})"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    failed = len(candidates) - len(found)
    count = f"{len(found)} candidate{'s' * (len(found) > 1)}" + (f" ({failed} failed)" if failed else "")
    figure.suptitle(f"{title + ': ' if title else ''}{count}, best {score_text(objective, best)} at {millions(best.cost.flops)} "
                    f"{flops_label(limits.rule)}, {millions(best.cost.params)} parameters")
    return figure


def _family(axes: Axes, family: Sequence[Member], cost: str, objective: Objective) -> None:
    """Mark the nets of a family, and its targets where the axis is FLOPs."""
    for label, beaten in (("family", False), ("family, a cheaper net is no worse", True)):
        shown = [m.best for m in family if m.best is not None and (m.dominated_by is not None) == beaten]
        if shown:
            places = [getattr(c.cost, cost) / MILLION for c in shown], [score_of(objective, c) for c in shown]
            axes.scatter(*places, marker="D", s=44, facecolor="none" if beaten else COLOURS[1], edgecolor=INK, linewidth=0.9,
                         zorder=5, label=label)
    if cost == "flops":
        for member in family:
            axes.axvline(member.target / MILLION, color=PALE, linewidth=0.8, linestyle=":", zorder=1)


def _shade_outside(axes: Axes, limit: Range) -> bool:
    """Shade what a limit excludes, where the limit is near enough to the data to be shown; returns whether it is anywhere."""
    low, high = axes.get_xlim()
    least, most = (bound / MILLION for bound in limit)
    margin = 0.05 * (high - low)
    reach = 0.5 * (high - low)
    from_below, from_above = least > 0 and low - least <= max(reach, 0.1 * least), most - high <= max(reach, 0.1 * high)
    if from_below:
        low = min(low, least - margin)
        axes.axvspan(low, least, color=PALE, alpha=0.5, linewidth=0, zorder=0)
    if from_above:
        high = max(high, most + margin)
        axes.axvspan(most, high, color=PALE, alpha=0.5, linewidth=0, zorder=0)
    axes.set_xlim(low, high)
    return from_below or from_above


def _whole_ticks(most: int) -> list[int]:
    step = max(1, -(-most // 10))
    return list(range(1, most + 1, step))


@styled
def search_progress(histories: Mapping[str, Sequence[Candidate]], population: int = 50, objective: Objective = TOP1,
                    title: str = "") -> Figure:
    """Best objective so far against candidates, of one search (with the median of each generation) or of several to compare.

    Raises: UserError for a search without an evaluated candidate.
    """
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.subplots()
    alone = len(histories) == 1
    for place, (name, candidates) in enumerate(histories.items()):
        found = sorted(evaluated(candidates), key=lambda candidate: candidate.index)
        numbers = [candidate.index + 1 for candidate in found]
        scores = [score_of(objective, candidate) for candidate in found]
        colour = COLOURS[place % len(COLOURS)]
        axes.scatter(numbers, scores, s=10, color=PALE if alone else colour, alpha=0.9 if alone else 0.25, linewidth=0,
                     label="candidates" if alone else "_")
        if alone:
            _medians(axes, numbers, scores, population)
        axes.step(numbers, np.maximum.accumulate(scores), where="post", color=colour, linewidth=2, zorder=4,
                  marker="o" if len(found) == 1 else "", label="best so far" if alone else f"{name}: best so far")
    axes.set_xlabel("candidates evaluated")
    axes.set_ylabel(score_label(objective))
    whole_numbers(axes, range(1 + max(candidate.index + 1 for found in histories.values() for candidate in found)))
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title)
    return figure


def _medians(axes: Axes, numbers: Sequence[int], scores: Sequence[float], population: int) -> None:
    """The median score of every generation as a line with markers in the middle of its candidates."""
    generations: dict[int, list[float]] = {}
    for number, score in zip(numbers, scores, strict=True):
        generations.setdefault((number - 1) // population, []).append(score)
    if len(generations) > 1:
        axes.plot([(generation + 0.5) * population for generation in generations], list(map(median, generations.values())),
                  color=COLOURS[1], marker="s", linewidth=1.3, label=f"median of a generation ({population})", zorder=3)


