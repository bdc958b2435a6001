"""Prints JSON: milliseconds of search overhead per candidate (no evaluation) with a long history, and the time to open it.

Usage: python benchmarks/search_overhead.py [--history 5000] [--measure 200] [--algorithm evolution|random|nsga2]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from optuna.trial import TrialState, create_trial

from oneshot_nas.arch import Arch, get_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import Limits, sample_within
from oneshot_nas.search.history import History, start_history
from oneshot_nas.search.loop import run_search
from oneshot_nas.search.storage import sqlite_url
from oneshot_nas.search.task import SearchTask


def score(arch: Arch) -> dict[str, float]:
    """A score that costs nothing to find."""
    return {"top1": random.Random(arch.key).random()}


def fill(history: History, task: SearchTask, count: int) -> None:
    """Write `count` finished candidates, one commit each."""
    for index, arch in enumerate(sample_within(task.space, task.limits, np.random.default_rng(0), count)):
        found, scores = cost(arch, task.limits.rule), score(arch)
        attributes = {"index": index, "arch": arch.to_json(), "cost": asdict(found), "parents": [], "scores": scores}
        trial = create_trial(state=TrialState.COMPLETE, values=task.values(scores, found), user_attrs=attributes)
        history.storage.create_new_trial(history.study_id, trial)


def bare_milliseconds(history: History, task: SearchTask, tries: int = 50) -> float:
    """What Optuna itself takes for one trial: make it, set an attribute, finish it, read twice. Adds foreign trials."""
    values = task.values({"top1": 0.0}, cost(task.space.smallest()))
    start = time.perf_counter()
    for _ in range(tries):
        trial = history.storage.create_new_trial(history.study_id)
        history.storage.get_all_trials(history.study_id, deepcopy=False)
        history.storage.set_trial_user_attr(trial, "scores", {"top1": 0.0})
        history.storage.set_trial_state_values(trial, TrialState.COMPLETE, values)
        history.storage.get_all_trials(history.study_id, deepcopy=False)
    return (time.perf_counter() - start) / tries * 1000


def main() -> None:
    """Fill a history, open it anew, go on searching, print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=5000)
    parser.add_argument("--measure", type=int, default=200)
    parser.add_argument("--algorithm", default="evolution")
    arguments = parser.parse_args()
    space = get_space("spos_shufflenet")
    task = SearchTask(space, Limits(flops=(290e6, 330e6)), arguments.algorithm, budget=arguments.history)
    count = arguments.history - arguments.history % task.population
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder) / "study.db")
        fill(start_history(task, url, one_machine=True), task, count)
        start = time.perf_counter()
        history = start_history(task, url, one_machine=True)
        history.refresh()
        opened = time.perf_counter() - start
        start, cpu = time.perf_counter(), time.process_time()
        run_search(replace(task, budget=count + arguments.measure), score, history, progress=False)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        assert len(history.candidates) == count + arguments.measure
        floor = bare_milliseconds(history, task)
    print(json.dumps({
        "benchmark": "search_overhead",
        "algorithm": arguments.algorithm,
        "history": count,
        "measured": arguments.measure,
        "ms_per_candidate": round(wall / arguments.measure * 1000, 2),
        "cpu_ms_per_candidate": round(cpu / arguments.measure * 1000, 2),
        "open_seconds": round(opened, 2),
        "target_ms": 100,
        "floor_ms": round(floor, 2),
        "floor": "the same reads and writes by bare Optuna",
    }))


if __name__ == "__main__":
    main()
