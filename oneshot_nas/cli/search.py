"""`oneshot-nas search`: looks for the best architectures of a trained supernet, resumes, and shares the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from oneshot_nas.config import RunFolder
    from oneshot_nas.search.history import History
    from oneshot_nas.search.loop import Ending
    from oneshot_nas.search.task import SearchTask

INDICATORS = ("accuracy", "bn-gamma", "angle", "predictor")


def command(
    supernet: Annotated[str, typer.Option(help="Run folder of the trained supernet.", metavar="RUN")],
    out: Annotated[str, typer.Option(help="Run folder of the search; the same command again resumes in it.", metavar="RUN2")],
    algorithm: Annotated[str, typer.Option(help="evolution, random, or nsga2 (accuracy against --against).")] = "evolution",
    budget: Annotated[int, typer.Option(help="Candidates in all; a larger one later prolongs the search.")] = 1000,
    population: Annotated[int, typer.Option(help="Candidates of one generation.")] = 50,
    flops: Annotated[str | None, typer.Option(help="FLOPs limits, such as 290M:330M or :330M.", metavar="LO:HI")] = None,
    params: Annotated[str | None, typer.Option(help="Parameter limits, such as :4M.", metavar="LO:HI")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same search.")] = 0,
    rule: Annotated[str, typer.Option(help="How FLOPs are counted.")] = "macs",
    objective: Annotated[str, typer.Option(help="top1, or micronet: top1 - weight * MicroNet score.")] = "top1",
    micronet_weight: Annotated[float, typer.Option(min=0, help="Weight of objective micronet; the predecessor's was 1.")] = 0.1,
    over: Annotated[str | None, typer.Option(
        help="Choices to search: block,scale jointly (default), block or scale alone, block+scale one after the other.")] = None,
    base: Annotated[str | None, typer.Option(help="Architecture that fixes what --over leaves out.", metavar="ARCH.json")] = None,
    top_k: Annotated[int, typer.Option(help="Parents of evolution.")] = 10,
    mutation: Annotated[float, typer.Option(help="Probability that a mutation redraws a decision.")] = 0.1,
    against: Annotated[str, typer.Option(help="Costs of nsga2 and of the Pareto front.")] = "flops,params",
    indicator: Annotated[str, typer.Option(help="What scores a candidate; accuracy so far.")] = "accuracy",
    calib_images: Annotated[int | None, typer.Option(help="Held-out images for BatchNorm statistics (default: all).")] = None,
    val_images: Annotated[int | None, typer.Option(help="Held-out images that are classified (default: all).")] = None,
    repeats: Annotated[int, typer.Option(min=0, help="Evaluate the best three so often again, calibrated anew.")] = 2,
    storage: Annotated[str | None, typer.Option(help="Database of a shared history (default: in RUN2).", metavar="URL")] = None,
    study: Annotated[str, typer.Option(help="Name of the history in the storage.", metavar="NAME")] = "search",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes on this machine that share the history.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
) -> None:
    """Search over a trained supernet: evolution, random or nsga2, inside limits on FLOPs and parameters.

    A search that was interrupted or killed goes on with the same command, to the same result. With --storage URL several
    machines share one search, each with an --out of its own.

    Example:  oneshot-nas search --supernet runs/supernet --out runs/search --budget 200 --flops 290M:330M
    """
    arguments = {name: value for name, value in locals().items() if name != "json_"}
    from oneshot_nas.arch import read_arch_file, show
    from oneshot_nas.config import RunFolder
    from oneshot_nas.costs.analytic import check_rule
    from oneshot_nas.costs.limits import ANY, Limits, parse_range
    from oneshot_nas.errors import UserError
    from oneshot_nas.search.storage import absolute_url, sqlite_url
    from oneshot_nas.search.task import OBJECTIVES, Objective, SearchTask, parse_over
    from oneshot_nas.threads import configure_threads

    if indicator not in INDICATORS:
        raise UserError(f"unknown indicator '{indicator}'; there are {show(INDICATORS)}")
    if indicator != "accuracy":
        raise UserError(f"indicator '{indicator}' is not there yet; use --indicator accuracy")
    if objective not in OBJECTIVES:
        raise UserError(f"unknown objective '{objective}'; there are {show(OBJECTIVES)}")
    limits = Limits(parse_range(flops, "FLOPs") if flops is not None else ANY,
                    parse_range(params, "params") if params is not None else ANY, check_rule(rule))
    fixed = read_arch_file(base) if base else None
    run = RunFolder(out)
    shared = absolute_url(storage) if storage else None
    url = shared or sqlite_url(run.study)
    configure_threads(workers)
    from oneshot_nas.indicators.accuracy import load_evaluator

    with run.lock():
        from oneshot_nas.search.history import start_history
        from oneshot_nas.search.record import check_folder, save_record

        check_folder(run, shared, study)
        evaluator = load_evaluator(supernet, calib_images, val_images)
        task = SearchTask(
            space=evaluator.space, limits=limits, algorithm=algorithm,
            objective=Objective(objective, micronet_weight=micronet_weight if objective == "micronet" else 0.0),
            budget=budget, population=population, seed=seed, top_k=top_k, mutation=mutation,
            against=tuple(name.strip() for name in against.split(",")), stages=parse_over(over, evaluator.space), base=fixed,
            about=identity(evaluator.about),
        )  # fmt: skip
        task.check()
        history = start_history(task, url, study, one_machine=shared is None)
        save_record(run, arguments)
        ending = work(task, evaluator, history, run, url, arguments)
        finish(task, history, ending, run, arguments, json_)


def identity(about: dict[str, Any]) -> dict[str, Any]:
    """What tells two evaluators apart, on every machine: a digest of the weights where there is one, else their absolute path."""
    from pathlib import Path

    if "weights" in about:
        return {key: value for key, value in about.items() if key != "supernet"}
    return {key: str(Path(value).resolve()) if key == "supernet" else value for key, value in about.items()}


def work(task: SearchTask, evaluator: Any, history: History, run: RunFolder, url: str, arguments: dict[str, Any]) -> Ending:
    """Run the search, alone or with more processes, and write a line per candidate to log.txt."""
    import functools
    import time

    from oneshot_nas.search.loop import Workers, run_parallel, run_search

    with open(run.log, "a", encoding="utf-8") as log:
        def told(candidate: Any) -> None:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line(candidate)}\n")
            log.flush()

        if arguments["workers"] == 1:
            return run_search(task, evaluator, history, told=told)
        from oneshot_nas.indicators.accuracy import load_evaluator

        make = functools.partial(load_evaluator, arguments["supernet"], arguments["calib_images"], arguments["val_images"])
        others = Workers(arguments["workers"] - 1, url, arguments["study"], make, one_machine=arguments["storage"] is None)
        return run_parallel(task, evaluator, history, others, told)


def finish(task: SearchTask, history: History, ending: Ending, run: RunFolder, arguments: dict[str, Any], json_: bool) -> None:
    """Measure the noise, write arch.json and result.json, and print the result."""
    import functools
    import json
    import shlex
    import sys

    from oneshot_nas.files import read_json, write_json
    from oneshot_nas.indicators.accuracy import load_evaluator
    from oneshot_nas.search.result import measure_noise, ranking, result_content

    supernet, out = arguments["supernet"], arguments["out"]
    following = [
        ["train", "--recipe", f"{supernet}/config.yaml", "--arch", f"{out}/arch.json", "--out", f"{out}-retrain"],
        ["plot", out],
        ["history", out, "--json"],
    ]
    commands = [shlex.join(["oneshot-nas", *words]) for words in following]
    images = arguments["calib_images"], arguments["val_images"]
    load = functools.lru_cache(maxsize=1)(functools.partial(load_evaluator, supernet, *images))
    candidates = history.candidates
    result = result_content(task, candidates, ending.reason, None, commands)  # before the noise: it may find nothing usable
    result["noise"] = measure_noise(task, candidates, lambda arch, repeat: load(seed=repeat)(arch), repeats=arguments["repeats"])
    best = ranking(task, candidates)[0]
    write_json(run.arch, "architecture", best.arch.to_json())
    write_json(run.result, "search-result", result)
    if json_:
        print(json.dumps(read_json(run.result, "search-result")))
        return
    if not ending.complete:
        print(f"the search ended early: {ending.reason}", file=sys.stderr)
    print("\n".join(table(result, line(best))))
    print("\n".join(f"next: {text}" for text in commands), file=sys.stderr)


def line(candidate: Any) -> str:
    """A candidate in words."""
    from oneshot_nas.costs.limits import human

    scores = ", ".join(f"{name} {value:.4f}" for name, value in candidate.scores.items()) or f"failed: {candidate.error}"
    return f"candidate {candidate.index}: {human(candidate.cost.flops)} FLOPs, {human(candidate.cost.params)} params, {scores}"


def table(result: dict[str, Any], best: str) -> list[str]:
    """The result as a few lines."""
    failed = f", {result['failed']} failed" if result["failed"] else ""
    rows = [("best", best), ("candidates", f"{result['candidates']}{failed} in {result['seconds']:.0f} s of evaluation"),
            ("front", f"{len(result['front'])} candidates that none beats in {', '.join(result['front_of'])}")]
    noise = result["noise"]
    if noise and noise["std"] == 0:
        rows.append(("noise", "0: the repeats saw the same images; --calib-images below the number held out makes them differ"))
    elif noise:
        ahead = f"; the best is {noise['lead']:.4f} ahead of the next" if noise["lead"] is not None else ""
        spread = f"standard deviation {noise['std']:.4f} of {result['objective']} over {noise['repeats']} repeats"
        rows.append(("noise", spread + ahead))
    return [f"{name:<11} {text}" for name, text in rows]
