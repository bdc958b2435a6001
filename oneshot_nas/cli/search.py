"""`oneshot-nas search`: looks for the best architectures of a trained supernet, resumes, and shares the work."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from oneshot_nas.arch import Space
    from oneshot_nas.config import RunFolder
    from oneshot_nas.search.history import History
    from oneshot_nas.search.loop import Ending
    from oneshot_nas.search.task import Objective, Screening, SearchTask


@dataclass(frozen=True)
class Indicator:
    """What scores a candidate: ``factory`` is "module:function" of a loader, imported when it is asked for; ``score`` the name
    of the score that is maximised.

    The loader is called ``factory(supernet_run, calib_images, val_images, seed=0)``, without the image counts when `images` is
    False, and returns an evaluator: a callable ``evaluator(arch) -> {score: float, ..., "..._seconds": float}`` with attributes
    ``space`` (a `Space`) and ``about`` (a JSON mapping that tells it from every other evaluator, with "weights", a digest, where
    there is one). The same arguments give the same scores; where nothing is random the seed is ignored. `screened`: its scores
    train a predictor that chooses among many children which are evaluated at all.
    """

    factory: str
    score: str = "top1"
    images: bool = True
    screened: bool = False

    def load(self) -> Any:
        """The loader."""
        import importlib

        module, function = self.factory.split(":")
        return getattr(importlib.import_module(module), function)


INDICATORS = {
    "accuracy": Indicator("oneshot_nas.indicators.accuracy:load_evaluator"),
    "bn-gamma": Indicator("oneshot_nas.indicators.bn_gamma:load_bn_gamma", "bn-gamma", images=False),
    "angle": Indicator("oneshot_nas.indicators.angle:load_angle", "angle", images=False),
    "predictor": Indicator("oneshot_nas.indicators.accuracy:load_evaluator", screened=True),
}

IMAGES = ("calib_images", "val_images", "repeats")  # options of `command` for indicators that look at images
CANDIDATES = ("budget", "population", "seed", "mutation", "against", "grid", "children", "workers", "study", "objective")


def command(
    supernet: Annotated[str, typer.Option(help="Run folder of the trained supernet.", metavar="RUN")],
    out: Annotated[str, typer.Option(help="Run folder of the search; the same command again resumes in it.", metavar="RUN2")],
    algorithm: Annotated[str, typer.Option(
        help="evolution, random, nsga2 (accuracy against --against), coarse-to-fine (a grid, then its best), "
             "or exact (the proved optimum of bn-gamma).")] = "evolution",
    budget: Annotated[int, typer.Option(help="Candidates in all; a larger one later prolongs the search.")] = 1000,
    population: Annotated[int, typer.Option(help="Candidates of one generation.")] = 50,
    flops: Annotated[str | None, typer.Option(help="FLOPs limits, such as 290M:330M or :330M.", metavar="LO:HI")] = None,
    params: Annotated[str | None, typer.Option(help="Parameter limits, such as :4M.", metavar="LO:HI")] = None,
    targets: Annotated[str | None, typer.Option(
        help="Search a whole family: 8 nets in equal steps, or the best up to each of 4M,6M,8M FLOPs.", metavar="N|LIST")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same search.")] = 0,
    rule: Annotated[str, typer.Option(help="How FLOPs are counted; see cost --help.")] = "macs",
    objective: Annotated[str, typer.Option(help="top1, or micronet: top1 - weight * MicroNet score.")] = "top1",
    micronet_weight: Annotated[float, typer.Option(min=0, help="Weight of objective micronet; the predecessor's was 1.")] = 0.1,
    over: Annotated[str | None, typer.Option(
        help="Choices to search: block,scale jointly (default), block or scale alone, block+scale one after the other; "
             "choices of other spaces: oneshot-nas spaces.")] = None,
    base: Annotated[str | None, typer.Option(help="Architecture that fixes what --over leaves out.", metavar="ARCH.json")] = None,
    top_k: Annotated[int, typer.Option(help="Parents of evolution; results of exact (thousands take long).")] = 10,
    mutation: Annotated[float, typer.Option(help="Probability that a mutation redraws a decision.")] = 0.1,
    against: Annotated[str, typer.Option(help="Costs of nsga2 and of the Pareto front.")] = "flops,params",
    grid: Annotated[int, typer.Option(help="Most architectures of the coarse grid.")] = 160,
    indicator: Annotated[str, typer.Option(
        help=f"What scores a candidate: {', '.join(INDICATORS)}; predictor: accuracy of the best predicted only.")] = "accuracy",
    children: Annotated[int, typer.Option(help="Children of a generation that --indicator predictor scores.")] = 1000,
    predictor: Annotated[str | None, typer.Option(
        help="A stored predictor, instead of one fitted to the search itself.", metavar="FILE.npz")] = None,
    space: Annotated[str | None, typer.Option(help="Search only what a space file leaves (see shrink).", metavar="FILE")] = None,
    base_weights: Annotated[str | None, typer.Option(
        help="Weights that --indicator angle measures from (default: the supernet's first ones).", metavar="FILE.params")] = None,
    compare: Annotated[str | None, typer.Option(
        help="A finished search whose regret --algorithm exact tells.", metavar="RUN")] = None,
    calib_images: Annotated[int | None, typer.Option(help="Held-out images for BatchNorm statistics (default: all).")] = None,
    val_images: Annotated[int | None, typer.Option(help="Held-out images that are classified (default: all).")] = None,
    repeats: Annotated[int, typer.Option(
        min=0, help="Evaluate the best three so often again, calibrated on other --calib-images, or on halves of all.")] = 2,
    storage: Annotated[str | None, typer.Option(help="Database of a shared history (default: in RUN2).", metavar="URL")] = None,
    study: Annotated[str, typer.Option(help="Name of the history in the storage.", metavar="NAME")] = "search",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes on this machine that share the history.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
    ctx: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Search over a trained supernet by one of several algorithms, inside limits on FLOPs and parameters.

    A search that was interrupted or killed goes on with the same command, to the same result. With --storage URL several
    machines share one search, each with an --out of its own. --indicator predictor evaluates only the best of many children,
    as a predictor of their accuracy sees them that is fitted anew before every generation; the first ones are not screened.

    Example:  oneshot-nas search --supernet runs/supernet --out runs/search --budget 200 --flops 290M:330M

    Example:  oneshot-nas search --supernet runs/elastic --out runs/family --targets 8 --indicator predictor
    """
    arguments = {name: value for name, value in locals().items() if name not in ("json_", "ctx")}
    from oneshot_nas.arch import read_arch_file, show
    from oneshot_nas.cli._supernet import tell_unfinished
    from oneshot_nas.config import RunFolder
    from oneshot_nas.costs.limits import parse_limits
    from oneshot_nas.errors import UserError
    from oneshot_nas.later import check_later
    from oneshot_nas.search.searchers import SEARCHERS
    from oneshot_nas.search.storage import absolute_url, sqlite_url
    from oneshot_nas.search.task import EXACT, OBJECTIVES, SearchTask, parse_over
    from oneshot_nas.threads import configure_threads

    for word, known in ((indicator, INDICATORS), (objective, OBJECTIVES), (algorithm, (*SEARCHERS, EXACT))):
        check_later(word, f"there are {show(known)}")
    if indicator not in INDICATORS:
        raise UserError(f"unknown indicator '{indicator}'; there are {show(INDICATORS)}")
    if not INDICATORS[indicator].images:
        arguments["repeats"] = 0  # nothing is random
    if predictor is not None and not INDICATORS[indicator].screened:
        raise UserError(f"--predictor goes with --indicator predictor, got --indicator {indicator}")
    if base_weights is not None and indicator != "angle":
        raise UserError(f"--base-weights goes with --indicator angle, got --indicator {indicator}")
    exact = algorithm == EXACT
    if exact and INDICATORS[indicator].images:
        raise UserError(f"algorithm exact needs a score that is a sum over layers, got --indicator {indicator}; take bn-gamma")
    if exact and any(value is not None for value in (over, base, targets, storage)):
        raise UserError("algorithm exact searches everything at once and keeps no history: leave out --over, --base, --targets "
                        "and --storage; --space FILE searches a part")
    if compare is not None and not exact:
        raise UserError(f"--compare goes with --algorithm exact, got --algorithm {algorithm}")
    if objective not in OBJECTIVES:
        raise UserError(f"unknown objective '{objective}'; there are {show(OBJECTIVES)}")
    limits = parse_limits(flops, params, rule)
    if base == "-":
        raise UserError("--base - cannot be repeated when the search goes on: write the architecture to a file and give that")
    fixed = read_arch_file(base) if base is not None else None
    run = RunFolder(out)
    shared = absolute_url(storage) if storage is not None else None
    url = shared or sqlite_url(run.study)
    configure_threads(workers)
    load_evaluator = evaluators(arguments)
    with run.lock():
        from oneshot_nas.search.history import start_history
        from oneshot_nas.search.record import check_folder, save_record

        check_folder(run, shared, study, exact)
        tell_unfinished(supernet)
        evaluator = load_evaluator()
        searched, about = part_of(evaluator, space)
        goal = objective_of(objective, micronet_weight, INDICATORS[indicator].score)
        if exact:
            from oneshot_nas.cli._exact import search_exactly

            tell_unused(ctx, INDICATORS[indicator], arguments, staged=False)
            search_exactly(evaluator, searched, about, limits, run, arguments, json_)
            return
        if not INDICATORS[indicator].images:
            evaluator.check_says_something(searched)
        task = SearchTask(
            space=searched, limits=limits, algorithm=algorithm, objective=goal,
            budget=budget, population=population, seed=seed, top_k=top_k, mutation=mutation,
            against=tuple(name.strip() for name in against.split(",")), stages=parse_over(over, searched), base=fixed,
            about=about, grid=grid, screen=screening(arguments, searched, goal),
        )  # fmt: skip
        if targets is not None:
            from oneshot_nas.search.family import parse_targets

            task = task.for_targets(parse_targets(targets, task.space_of_stage(0, ()), limits))
        task.check()
        if not shared and not run.study.exists():
            task.check_first_batch()
        tell_unused(ctx, INDICATORS[indicator], arguments, staged=bool(task.stages))
        if task.stages and base is None:
            fixed_to = {name: ', '.join(map(str, sorted(set(values), key=str))) for name, values in task.start().choices.items()
                        if name not in task.stages[0]}
            print("; ".join(f"{name} is fixed at {values}" for name, values in fixed_to.items())
                  + "; --base ARCH.json fixes it otherwise", file=sys.stderr)
        history = start_history(task, url, study, one_machine=shared is None)
        save_record(run, arguments)
        load_evaluator = partial(load_same, load_evaluator, evaluator.about.get("weights"))
        ending = work(task, evaluator, load_evaluator, history, run, url, arguments)
        from oneshot_nas.cli._found import finish

        finish(task, history, ending, run, arguments, load_evaluator, json_)


def tell_unused(ctx: typer.Context, indicator: Indicator, arguments: dict[str, Any], staged: bool) -> None:
    """Say which options of the command line have no effect here; a `staged` search leaves some choices fixed."""
    algorithm, targets = arguments["algorithm"], arguments["targets"] is not None
    idle = {
        "grid": algorithm != "coarse-to-fine" and "it is for --algorithm coarse-to-fine",
        "top_k": (algorithm not in ("evolution", "exact") or targets) and "it is for evolution without --targets and for exact",
        "mutation": algorithm == "random" and "algorithm random has no parents",
        "children": not indicator.screened and "it is for --indicator predictor",
        "micronet_weight": arguments["objective"] != "micronet" and "it is for --objective micronet",
        "base": not staged and "it is for --over, which says what is searched; the rest is fixed",
        **dict.fromkeys(IMAGES, not indicator.images and f"indicator '{indicator.score}' looks at no images"),
        **(dict.fromkeys(CANDIDATES, "algorithm exact tries no candidates") if algorithm == "exact" else {}),
    }
    for name in ctx.params:
        if idle.get(name) and getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE":
            print(f"note: --{name.replace('_', '-')} has no effect: {idle[name]}", file=sys.stderr)


def load_same(load: Any, weights: str | None, **options: Any) -> Any:
    """The evaluator that `load` gives. Raises: UserError when the supernet's weights have another digest than `weights`."""
    from oneshot_nas.errors import UserError

    evaluator = load(**options)
    if evaluator.about.get("weights") != weights:
        raise UserError("the supernet has been trained on since this search began, so its scores would not compare; stop the "
                        "training, or search in another --out when it is done")
    return evaluator


def evaluators(arguments: dict[str, Any]) -> Any:
    """The function that loads the indicator's evaluator; ``seed=1, 2 ...`` asks for one that repeats the measurement."""
    chosen = INDICATORS[arguments["indicator"]]
    images = (arguments["calib_images"], arguments["val_images"]) if chosen.images else ()
    given = {"base_weights": arguments["base_weights"]} if arguments["base_weights"] is not None else {}
    return partial(chosen.load(), arguments["supernet"], *images, **given)


def part_of(evaluator: Any, path: str | None) -> tuple[Space, dict[str, Any]]:
    """The space to search, what a space file leaves of the evaluator's, and what identifies both. Raises: UserError."""
    about = identity(evaluator.about)
    if path is None:
        return evaluator.space, about
    from oneshot_nas.spacefile import narrow, space_json

    searched = narrow(evaluator.space, path)
    return searched, {**about, "allowed": space_json(searched)["allowed"]}


def objective_of(name: str, micronet_weight: float, score: str) -> Objective:
    """The objective of that name on a score. Raises: UserError for the MicroNet trade-off of something else than accuracy."""
    from dataclasses import replace

    from oneshot_nas.errors import UserError
    from oneshot_nas.search.task import OBJECTIVES

    if not math.isfinite(micronet_weight):
        raise UserError(f"--micronet-weight {micronet_weight} is no number to multiply with; 1 was the predecessor's")
    if name == "micronet":
        if score != "top1":
            raise UserError(f"objective micronet weighs accuracy against cost; indicator '{score}' gives none")
        return replace(OBJECTIVES[name], micronet_weight=micronet_weight)
    return replace(OBJECTIVES[name], name=score, score=score)


def screening(arguments: dict[str, Any], space: Space, objective: Objective) -> Screening | None:
    """How children are screened, None where the indicator does not. Raises: UserError for a predictor that does not fit."""
    if not INDICATORS[arguments["indicator"]].screened:
        return None
    from dataclasses import asdict

    from oneshot_nas.errors import UserError
    from oneshot_nas.indicators.predictor import Stored, check_space, fit, load
    from oneshot_nas.search.task import Screening

    path = arguments["predictor"]
    if path is None:
        return Screening(fit, {"predictor": "fitted"}, arguments["children"])
    stored = load(path)
    check_space(space, stored.space, f"predictor {path}")
    if stored.about.get("objective") != asdict(objective):
        raise UserError(f"predictor {path} predicts {stored.about.get('objective')}, this search maximises {asdict(objective)}; "
                        "fit one to a search for the same objective")
    return Screening(Stored(path, stored.about["arrays"]), {"predictor": stored.about["arrays"]}, arguments["children"])


def identity(about: dict[str, Any]) -> dict[str, Any]:
    """What tells two evaluators apart, on every machine: a digest of the weights where there is one, else their absolute path."""
    from pathlib import Path

    if "weights" in about:
        return {key: value for key, value in about.items() if key != "supernet"}
    return {key: str(Path(value).resolve()) if key == "supernet" else value for key, value in about.items()}


def work(task: SearchTask, evaluator: Any, load_evaluator: Any, history: History, run: RunFolder, url: str,
         arguments: dict[str, Any]) -> Ending:
    """Run the search, alone or with more processes, and write a line per candidate to log.txt."""
    from oneshot_nas.cli._found import line
    from oneshot_nas.search.loop import Workers, run_parallel, run_search
    from oneshot_nas.train.report import logging

    with logging(run.log, lambda text: None) as log:
        def told(candidate: Any) -> None:
            log(line(candidate))

        if arguments["workers"] == 1:
            return run_search(task, evaluator, history, told=told)
        others = Workers(arguments["workers"] - 1, url, arguments["study"], load_evaluator,
                         one_machine=arguments["storage"] is None)
        return run_parallel(task, evaluator, history, others, told)
