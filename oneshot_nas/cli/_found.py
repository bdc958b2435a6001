"""The end of a search: its files and what is printed about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_nas.arch import Arch
from oneshot_nas.cli._supernet import tell_useless
from oneshot_nas.config import RunFolder, read_recipe
from oneshot_nas.costs.limits import human
from oneshot_nas.files import read_json, write_json, write_text
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.history import History
from oneshot_nas.search.loop import Ending
from oneshot_nas.search.result import measure_noise, ranking, result_content
from oneshot_nas.search.task import SearchTask
from oneshot_nas.shell import command

FAMILY = "family.jsonl"  # of the run folder: the architectures of a family, cheapest first


def finish(task: SearchTask, history: History, ending: Ending, run: RunFolder, arguments: dict[str, Any],
           load_evaluator: Callable[..., Any], json_: bool) -> None:
    """Write arch.json and result.json, measure the noise, which goes into the latter, and print the result."""
    supernet, out = arguments["supernet"], arguments["out"]
    family = run.path / FAMILY
    shipped = family if task.targets and elastic(supernet) else run.arch
    images = images_words(arguments["calib_images"])
    commands = [network_command(supernet, str(shipped), str(run.path), images), command("plot", out),
                command("history", out, "--json")]
    if task.targets:
        commands.insert(0, command("evaluate", "--supernet", supernet, "--arch", family, *images, "--json"))
    candidates = history.candidates
    result = result_content(task, candidates, ending.reason, None, commands)
    best = ranking(task, candidates)[0]
    if task.screen:
        from oneshot_nas.indicators.predictor import screening_tau

        tau = screening_tau(task, candidates)
        result["screen"] = {**task.screen.about, "children": task.screen.children, "held_out_tau": tau}
    write_json(run.arch, "architecture", best.arch.to_json())
    found = [json.dumps(member["best"]["arch"]) + "\n" for member in result.get("family", ()) if member["best"]]
    if found:
        write_text(run.path / FAMILY, "".join(found))
    write_json(run.result, "search-result", result)
    loaded: dict[int, Any] = {}

    def again(arch: Arch, repeat: int) -> Mapping[str, float]:
        if repeat not in loaded:
            loaded.clear()  # first: the images of two evaluators may not fit into memory
            loaded[repeat] = load_evaluator(seed=repeat)
        return loaded[repeat](arch)

    try:
        noise = measure_noise(task, candidates, again, repeats=arguments["repeats"])
    except Exception as error:  # the result is there all the same
        print(f"note: the noise was not measured: {error}", file=sys.stderr)
    else:
        result["noise"] = noise and {**noise, "halves": arguments["calib_images"] is None}
        write_json(run.result, "search-result", result)
    tell_useless(best.scores, supernet)
    if json_:
        print(json.dumps(read_json(run.result, "search-result")))
        return
    if not ending.complete:
        print(f"the search ended early: {ending.reason}", file=sys.stderr)
    print("\n".join(table(result, line(best))))
    print("\n".join(f"next: {text}" for text in commands), file=sys.stderr)


def elastic(supernet: str) -> bool:
    """Whether the networks of a supernet are good as they are: it was trained by the sandwich rule."""
    config = RunFolder(supernet).config
    return config.exists() and read_recipe(config).sampler.sandwich is not None


def images_words(calib_images: int | None) -> list[str]:
    """The option that sets a subnet's BatchNorm statistics on as many images as it was scored with; none where all were."""
    return [] if calib_images is None else ["--calib-images", str(calib_images)]


def network_command(supernet: str, arch: str, name: str, images: Sequence[str] = ()) -> str:
    """The command that makes a network of an architecture: training, or export where a network needs none of its own.

    `name` is the run folder that the network's own is called after, `images` are `images_words`.
    """
    if elastic(supernet):
        return command("export", "--supernet", supernet, "--arch", arch, *images, "--out", f"{name}/export")
    return command("train", "--recipe", str(RunFolder(supernet).config), "--arch", arch, "--out", f"{name}-retrain")


def run_name(arch: str) -> str:
    """What a network's run is called after: the folder of an ``arch.json``, otherwise the file without its ending."""
    path = Path(arch)
    if path.name == RunFolder(path.parent).arch.name and path.parent.name not in ("", ".."):
        return str(path.parent)
    return str(path.with_suffix("") if path.suffix in (".json", ".jsonl") else path)


def line(candidate: Candidate) -> str:
    """A candidate in words."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in candidate.scores.items()) or f"failed: {candidate.error}"
    return f"candidate {candidate.index}: {human(candidate.cost.flops)} FLOPs, {human(candidate.cost.params)} params, {scores}"


def member_line(member: dict[str, Any]) -> str:
    """One net of a family in words."""
    best, text = member["best"], f"up to {human(member['target'])}: "
    if best is None:
        return text + "no candidate"
    text += f"candidate {best['index']}, {human(best['cost']['flops'])} FLOPs, {best['fitness']:.4f}"
    return text if member["dominated_by"] is None else f"{text} (candidate {member['dominated_by']} is cheaper and no worse)"


def table(result: dict[str, Any], best: str) -> list[str]:
    """The result as a few lines."""
    failed = f", {result['failed']} failed" if result["failed"] else ""
    rows = [("best", best), ("candidates", f"{result['candidates']}{failed} in {result['seconds']:.0f} s of evaluation"),
            ("front", f"{len(result['front'])} candidates that none beats in {', '.join(result['front_of'])}")]
    if result.get("screen") and result["screen"]["held_out_tau"] is not None:
        rows.append(("predictor", f"Kendall's tau {result['screen']['held_out_tau']:.3f} on candidates held out from the fit"))
    rows += [("family", member_line(member)) for member in result.get("family", ())]
    noise = result["noise"]
    if noise and noise["std"] == 0 and not noise["halves"]:
        rows.append(("noise", f"0: the repeats gave the same {result['objective']}; they see other images only with "
                              "--calib-images below the number held out"))
    elif noise:
        ahead = f"; the best is {noise['lead']:.4f} ahead of the next" if noise["lead"] is not None else ""
        spread = f"standard deviation {noise['std']:.4f} of {result['objective']} over {noise['repeats']} repeats"
        if noise["halves"]:
            spread += ", each calibrated on another half of the images"
        rows.append(("noise", spread + ahead))
    return [f"{name:<11} {text}" for name, text in rows]
