"""The pictures of a run folder: finds out what kind of run it is and writes ``plots/*.png``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from oneshot_nas.arch import read_arch, read_arch_file
from oneshot_nas.config import KIND as RECIPE
from oneshot_nas.config import RunFolder, parse_yaml, read_recipe, training_space
from oneshot_nas.costs.analytic import Cost
from oneshot_nas.costs.limits import ANY, Limits, Range
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json, read_text
from oneshot_nas.plots.architecture import architecture
from oneshot_nas.plots.curves import read_metrics, training_curves
from oneshot_nas.plots.distribution import compared, distribution
from oneshot_nas.plots.samplers import ATTENTIVE
from oneshot_nas.plots.search import best_of, score_text, search_progress, search_scatter
from oneshot_nas.plots.style import save
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.task import Objective
from oneshot_nas.shell import command

COUNT = 1000  # architectures of a sampler's distribution


def plot_run(folder: str | os.PathLike, compare: Sequence[str] = (), count: int = COUNT, storage: str | None = None,
             study: str | None = None) -> list[Path]:
    """Write the pictures of a run and return their paths: of a supernet, a fixed network or a search (beside those of `compare`).

    `count` is the number of architectures of a sampler; `storage` and `study` tell where the history of a search is when its
    folder does not. Raises: UserError when there is no run, or nothing to draw in it yet; then nothing is written.
    """
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise UserError(f"no run folder {folder}; give the --out of oneshot-nas train or oneshot-nas search")
    if _is_search(run) or storage:
        figures = dict(_search(run, compare, storage, study))
    elif compare or study:
        raise UserError(f"{folder} is not the run of a search, so --compare and --study say nothing; leave them out")
    elif run.supernet.exists():
        figures = dict(_supernet(run, count))
    elif run.arch.exists() or run.config.exists():
        figures = dict(_fixed(run))
    elif (run.path / "space.json").exists() and (run.path / "supernet").is_dir():
        supernet = run.path / "supernet"
        raise UserError(f"{folder} is a run of oneshot-nas shrink, whose trained supernet is in {supernet}; "
                        f"plot that one: {command('plot', supernet)}")
    else:
        raise UserError(f"{folder} holds no run of this program (no config.yaml, supernet.json, arch.json or study.db)")
    return [save(figure, run.plots / f"{name}.png") for name, figure in figures.items()]


def _is_search(run: RunFolder) -> bool:
    """Whether there is a history, or a config.yaml of another kind than that of a training run."""
    if run.study.exists() or not run.config.exists():
        return run.study.exists()
    content = parse_yaml(read_text(run.config, "configuration"), str(run.config))
    return isinstance(content, dict) and content.get("kind", RECIPE) != RECIPE


def _supernet(run: RunFolder, count: int) -> Iterator[tuple[str, Figure]]:
    about, recipe = read_json(run.supernet, "supernet"), read_recipe(run.config)
    try:
        space = training_space(about["space"], about["options"], recipe.allowed)
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.supernet} lacks {error}; it was not written by this program") from None
    metrics = read_metrics(run.metrics)
    yield "curves", training_curves(metrics, f"supernet of {space.name}", "validation (mean of random subnets)")
    sampler, what = recipe.sampler, f"architectures that train the supernet of {space.name}"
    if sampler.name in ATTENTIVE:
        sampler, what = sampler.model_copy(update={"name": "flops"}), f"architectures that '{sampler.name}' chooses from"
    yield "distribution", distribution(compared(space, sampler, count, recipe.epochs, recipe.seed), what)


def _fixed(run: RunFolder) -> Iterator[tuple[str, Figure]]:
    metrics = read_metrics(run.metrics)
    arch = read_arch_file(str(run.arch)) if run.arch.exists() else None
    title = f"fixed network of {arch.space}" if arch else f"model {read_recipe(run.config).model or ''}"
    yield "curves", training_curves(metrics, title)
    if arch is not None:
        yield "architecture", architecture(arch)


def _search(run: RunFolder, compare: Sequence[str], storage: str | None, study: str | None) -> Iterator[tuple[str, Figure]]:
    from oneshot_nas.search.record import is_exact, open_run  # brings optuna, which takes a second

    if storage is None and run.config.exists() and is_exact(run):
        if compare:
            raise UserError(f"{run.path} is an exact search, which makes no progress to compare; leave out --compare")
        yield from _exact(run)
        return
    history = open_run(run.path, storage, study)
    about, candidates = history.about, history.candidates
    limits, objective, population = limits_of(about["limits"]), Objective(**about["objective"]), int(about["population"])
    best = best_of(candidates, objective)
    histories = {_name(about, run.path): candidates}
    for folder in compare:
        other = open_run(folder)
        if other.about["objective"] != about["objective"]:
            raise UserError(f"{folder} has another objective ({other.about['objective']['name']}, here {objective.name}); "
                            "only searches for the same objective can be compared")
        name = _name(other.about, Path(folder))
        histories[f"{name}, {len(histories) + 1}" if name in histories else name] = other.candidates
    yield "search", search_scatter(candidates, population, limits, objective, method(about), about.get("targets", ()))
    yield "progress", search_progress(histories, population, objective, "" if compare else method(about))
    title = f"best of the search (candidate {best.index}, {score_text(objective, best)})"
    yield "architecture", architecture(best.arch, title, limits.rule)


def _exact(run: RunFolder) -> Iterator[tuple[str, Figure]]:
    """The proved front and the best architectures of an exact search."""
    result = read_json(run.result, "search-result")
    try:
        limits, objective = limits_of(result["limits"]), Objective(result["objective"], result["objective"])
        found = [Candidate(number, read_arch(entry["arch"]), Cost(**entry["cost"]), entry["scores"])
                 for number, entry in enumerate((*result["top"], *result["front"]))]
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.result} lacks {error}; it was not written by this program") from None
    best = best_of(found, objective)
    yield "search", search_scatter(found, len(found), limits, objective, "exact")
    yield "architecture", architecture(best.arch, f"optimum of the search ({score_text(objective, best)})", limits.rule)


def method(about: Mapping[str, Any]) -> str:
    """How a search chose its candidates, for a title."""
    return f"{about['algorithm']} with a predictor" if about.get("screen") else str(about["algorithm"])


def _name(about: Mapping[str, Any], folder: Path) -> str:
    return f"{method(about)} ({folder.name})"


def limits_of(content: Mapping[str, Any]) -> Limits:
    """The limits of a history that `oneshot_nas.search.task.limits_json` described: an open end is null."""
    def pair(bounds: Sequence[float | None]) -> Range:
        return (bounds[0] or ANY[0], ANY[1] if bounds[1] is None else bounds[1])

    return Limits(pair(content["flops"]), pair(content["params"]), content["rule"])
