"""What ``oneshot-nas search --algorithm exact`` does: no candidates one by one, but the proved optimum of an additive score."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from oneshot_nas.arch import Space
from oneshot_nas.cli._found import network_command
from oneshot_nas.config import RunFolder
from oneshot_nas.costs.limits import Limits, human
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json, write_json
from oneshot_nas.search.exact import exact_result, regret
from oneshot_nas.search.record import open_run, read_record, record, save_record
from oneshot_nas.shell import command
from oneshot_nas.train.report import logging

DECIDE = ("supernet", "indicator", "flops", "params", "rule", "space")  # arguments that decide what an exact search finds


def search_exactly(indicator: Any, space: Space, about: dict[str, Any], limits: Limits, run: RunFolder, arguments: dict[str, Any],
                   json_: bool) -> None:
    """Write arch.json and result.json of the optimum and print it; `arguments` are those of the command.

    Raises: UserError for an indicator that is no sum, limits out of reach, or a folder of another search.
    """
    history = open_run(arguments["compare"]) if arguments["compare"] is not None else None
    supernet, out = arguments["supernet"], arguments["out"]
    commands = [network_command(supernet, str(run.arch), str(run.path)), command("plot", out)]
    check_same(run, arguments)
    start = time.perf_counter()
    scores = indicator.unit_scores(space)
    indicator.check_says_something(space)
    result = exact_result(space, scores, indicator.name, limits, arguments["top_k"], about, commands)
    result["seconds"] = time.perf_counter() - start
    if history is not None:
        result["compared"] = regret(space, result, history, limits)
    save_record(run, arguments)
    write_json(run.arch, "architecture", result["best"]["arch"])
    write_json(run.result, "search-result", result)
    with logging(run.log, (lambda text: None) if json_ else print) as log:
        for name, text in rows(result):
            log(f"{name:<11} {text}")
    if json_:
        print(json.dumps(read_json(run.result, "search-result")))
        return
    print("\n".join(f"next: {text}" for text in commands), file=sys.stderr)


def check_same(run: RunFolder, arguments: dict[str, Any]) -> None:
    """Raise UserError when the folder holds the result of an exact search with other arguments."""
    if not run.config.exists():
        return
    before, now = read_record(run)["arguments"], record(arguments)
    changed = [name for name in DECIDE if before.get(name) != now[name]]
    if changed:
        raise UserError(f"{run.path} holds an exact search with another "
                        + ", ".join(f"--{name.replace('_', '-')} ({before.get(name)})" for name in changed)
                        + "; give another --out")


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The result as a few lines."""
    best = result["best"]
    found = [("best", f"{result['objective']} {best['fitness']:.6f}, {human(best['cost']['flops'])} FLOPs, "
                      f"{human(best['cost']['params'])} params"),
             ("proof", f"{result['ended']}; {result['seconds']:.2f} s"),
             ("top", f"{len(result['top'])} best, the last with {result['top'][-1]['fitness']:.6f}"),
             ("front", f"{len(result['front'])} architectures that none beats in {' and '.join(result['front_of'])}"
                       + ("" if result["front_complete"] else "; cheaper ones are not proved, the limits are too narrow"))]
    if "compared" in result:
        other = result["compared"]
        found.append(("regret", f"{other['regret']:.6f}: the best of {other['candidates']} candidates in {other['where']} "
                                f"has {other['best']:.6f} (candidate {other['index']})"))
    return found
