"""The loop: same history after any crash, failures, interrupts, budget and end; and it needs no MXNet."""

import math
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from optuna.storages import InMemoryStorage

from oneshot_nas.arch import get_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import Limits
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.search.history import History, read_history
from oneshot_nas.search.loop import MAX_FAILURES, Stopped, run_search
from oneshot_nas.search.result import measure_noise, ranking, result_content
from oneshot_nas.search.searchers import SEARCHERS
from oneshot_nas.search.storage import claim_study, sqlite_url
from oneshot_nas.search.task import OBJECTIVES, SearchTask

SPACE = get_space("spos_shufflenet", classes=10, input_size=32, layout="small")
TASK = SearchTask(SPACE, Limits(flops=(4e6, 5e6)), population=4, budget=10, top_k=3)
WRITES = ("create_new_trial", "set_trial_user_attr", "set_trial_state_values")


def evaluate(arch):
    return {"top1": sum(arch.choices["scale"]) / 40, "calibrate_seconds": random.random()}


def open_history(storage, task=TASK, **settings):
    number = claim_study(storage, "search", "memory", task.fingerprint(), task.directions())
    return History(storage, number, task.space, {}, "memory", **settings)


def search(task=TASK, evaluate=evaluate, storage=None, **settings):
    history = open_history(storage or InMemoryStorage(), task, stale_seconds=0)
    ending = run_search(task, evaluate, history, progress=False, **settings)
    return history.candidates, ending


def lasting(candidates):
    """What must be equal between two runs: all but times and workers."""
    return [(c.index, c.arch, c.cost, c.scores, c.parents, c.error) for c in candidates]


class Killed(BaseException):
    """Stands for kill -9: whatever runs after it can no longer write."""


class Dying:
    """A storage whose process is killed before or after its n-th write."""

    def __init__(self, storage, writes, after):
        self.storage, self.left, self.after = storage, writes, after

    def __getattr__(self, name):
        method = getattr(self.storage, name)
        if name not in WRITES:
            return method

        def write(*args, **kwargs):
            self.left -= 1
            if self.left > 0:
                return method(*args, **kwargs)
            if self.left == 0 and self.after:
                method(*args, **kwargs)
            raise Killed

        return write


def sometimes_failing(arch):
    scores = evaluate(arch)
    if arch.choices["block"][0] == "xception":
        raise RuntimeError("xception at the start")
    return scores


@pytest.mark.parametrize("algorithm", sorted(set(SEARCHERS) - {"coarse-to-fine"}))
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_changes_nothing(algorithm, after):
    task = replace(TASK, algorithm=algorithm, budget=8)
    whole, _ = search(task, sometimes_failing)
    assert any(not c.ok for c in whole)
    for writes in range(1, 3 * task.budget + 1):
        storage = InMemoryStorage()
        history = open_history(storage, task, stale_seconds=0)
        history.storage = Dying(storage, writes, after)
        try:
            run_search(task, sometimes_failing, history, progress=False)
        except Killed:
            assert len(read_all(storage, task)) <= writes // 3 + 1
        resumed, _ = search(task, sometimes_failing, storage)
        assert lasting(resumed) == lasting(whole)


def read_all(storage, task=TASK):
    history = open_history(storage, task)
    history.refresh()
    return history.candidates


KILLED = """
import sys, time
from oneshot_nas.arch import get_space
from oneshot_nas.costs.limits import Limits
from oneshot_nas.search.history import start_history
from oneshot_nas.search.loop import run_search
from oneshot_nas.search.storage import sqlite_url
from oneshot_nas.search.task import SearchTask

space = get_space("spos_shufflenet", classes=10, input_size=32, layout="small")
task = SearchTask(space, Limits(flops=(4e6, 5e6)), population=8, budget=32, top_k=3)
history = start_history(task, sqlite_url(sys.argv[1]), one_machine=True)
print("ready", flush=True)

def evaluate(arch):
    time.sleep(0.004)
    return {"top1": sum(arch.choices["scale"]) / 40}

run_search(task, evaluate, history, progress=False)
print("done", flush=True)
"""


def test_kill_9_and_restart_gives_the_history_of_an_uninterrupted_search(tmp_path):
    task = SearchTask(SPACE, Limits(flops=(4e6, 5e6)), population=8, budget=32, top_k=3)
    whole, _ = search(task, lambda arch: {"top1": sum(arch.choices["scale"]) / 40})
    delays = iter([0.03, 0.29, 0.41, *[60.0] * 9])
    kills = 0
    while True:
        words = [sys.executable, "-c", KILLED, str(tmp_path / "study.db")]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout and process.stdout.readline() == "ready\n"
        try:
            process.wait(next(delays))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        said = process.stdout.read()
        process.stdout.close()
        if process.wait() == 0:
            assert said == "done\n"
            break
    assert kills >= 2
    found = read_history(sqlite_url(tmp_path / "study.db")).candidates
    assert lasting(found) == lasting(whole)


def test_the_budget_is_counted_over_restarts_and_can_be_raised():
    storage = InMemoryStorage()
    candidates, ending = search(storage=storage)
    assert len(candidates) == 10 and ending.complete and "10 candidates" in ending.reason

    def never(arch):
        raise AssertionError("evaluated again")

    assert lasting(search(evaluate=never, storage=storage)[0]) == lasting(candidates)
    longer, _ = search(replace(TASK, budget=23), storage=storage)
    assert lasting(longer) == lasting(search(replace(TASK, budget=23))[0])
    assert lasting(longer[:10]) == lasting(candidates)


def test_every_candidate_is_told_once_and_progress_is_silent_without_a_terminal(capsys):
    told: list = []
    history = open_history(InMemoryStorage())
    run_search(TASK, evaluate, history, told=told.append)
    assert told == history.candidates
    assert capsys.readouterr().err == ""


def test_the_end_of_a_space():
    space = SPACE.restrict({name: [(v,) for v in values[:18]] + [c[:2] for c in SPACE.choice(name).values[18:]]
                            for name, values in SPACE.smallest().choices.items()})
    candidates, ending = search(SearchTask(space, population=5, budget=100))
    assert len(candidates) == 16 and not ending.complete
    assert ending.reason == "all 16 architectures inside the limits have been evaluated"
    with pytest.raises(UserError, match="population of 20 is larger than the 16"):
        search(SearchTask(space, population=20, budget=100))


def test_a_large_space_that_runs_dry(monkeypatch):
    import oneshot_nas.search.batch as batch

    monkeypatch.setattr(batch, "COUNTABLE", 1)
    monkeypatch.setattr(batch, "ROUNDS", 10)
    batch.countable.cache_clear()
    space = SPACE.restrict({name: [(v,) for v in values[:18]] + [c[:2] for c in SPACE.choice(name).values[18:]]
                            for name, values in SPACE.smallest().choices.items()})
    candidates, ending = search(SearchTask(space, population=5, budget=100))
    assert len(candidates) == 16 and "no further architecture" in ending.reason
    with pytest.raises(UserError, match="population of 20 is larger than the 16"):
        search(SearchTask(space, population=20, budget=100))
    batch.countable.cache_clear()


def test_failures_are_recorded_and_skipped():
    candidates, _ = search(evaluate=sometimes_failing)
    failed = [c for c in candidates if not c.ok]
    assert len(candidates) == 10 and 0 < len(failed) < 10
    assert {c.error for c in failed} == {"RuntimeError: xception at the start"}
    assert any(c.parents for c in candidates)
    assert all(not set(c.parents) & {f.index for f in failed} for c in candidates)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_failure(value):
    calls = []

    def once(arch):
        calls.append(arch)
        return {"top1": value if len(calls) == 2 else 0.5}

    candidates, _ = search(evaluate=once)
    assert candidates[1].error == f"ArithmeticError: score 'top1' is {value}"


def test_failures_in_a_row_stop_the_search_and_it_goes_on_later():
    storage = InMemoryStorage()

    def broken(arch):
        raise MemoryError("no memory")

    with pytest.raises(WorkError, match=f"{MAX_FAILURES} candidates in a row failed, .*candidate 4. with: MemoryError: no mem"):
        search(evaluate=broken, storage=storage)
    candidates, _ = search(storage=storage)
    assert [c.ok for c in candidates] == [False] * 5 + [True] * 5


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError("bad supernet"), SystemExit])
def test_interrupts_and_wrong_use_free_the_candidate(stop):
    storage, calls = InMemoryStorage(), []

    def interrupted(arch):
        calls.append(arch)
        if len(calls) == 4:
            raise stop
        return evaluate(arch)

    with pytest.raises(stop if isinstance(stop, type) else UserError):
        search(evaluate=interrupted, storage=storage)
    assert len(read_all(storage)) == 3
    history = open_history(storage, stale_seconds=1e9)  # nothing has to time out
    run_search(TASK, evaluate, history, progress=False, patience=0)
    assert lasting(history.candidates) == lasting(search()[0])


def test_a_missing_score_is_wrong_use():
    with pytest.raises(UserError, match="needs the score 'top1'"):
        search(evaluate=lambda arch: {"angle": 1.0})


def test_waiting_for_others_is_bounded():
    storage = InMemoryStorage()
    a, b = open_history(storage, stale_seconds=1e9), open_history(storage, stale_seconds=1e9)
    proposals = TASK.propose([], 0)
    for index, proposal in enumerate(proposals):
        a.claim(index, proposal, cost(proposal.arch))
    start = time.monotonic()
    with pytest.raises(WorkError, match="no news for 0 s while waiting for candidate 0 by .*; candidate 1"):
        run_search(TASK, evaluate, b, progress=False, patience=0.1)
    assert time.monotonic() - start < 30


def test_a_worker_that_is_no_longer_wanted_stops_between_candidates():
    storage, answers = InMemoryStorage(), iter([True, True, False])
    with pytest.raises(Stopped):
        search(storage=storage, wanted=lambda: next(answers))
    assert len(read_all(storage)) == 2


def test_a_history_of_other_proposals_is_refused():
    storage = InMemoryStorage()
    history = open_history(storage)
    other = replace(TASK, seed=9).propose([], 0)[0]
    history.finish(history.claim(0, other, cost(other.arch)), {"top1": 1}, [1])
    with pytest.raises(UserError, match="candidate 0 in memory is not the one this search proposes"):
        search(storage=storage)


def test_micronet_scores_are_in_the_history():
    task = replace(TASK, objective=OBJECTIVES["micronet"], budget=4)
    candidates, _ = search(task)
    assert all(set(c.scores) == {"top1", "micronet"} for c in candidates)


def test_noise_is_the_pooled_spread_of_the_best():
    candidates, _ = search()
    asked = []

    def reevaluate(arch, repeat):
        asked.append(repeat)
        return {"top1": evaluate(arch)["top1"] + (0.01 if repeat == 1 else -0.01)}

    noise = measure_noise(TASK, candidates, reevaluate, top=3, repeats=2)
    assert noise is not None
    assert asked == [1, 1, 1, 2, 2, 2]
    assert noise["std"] == pytest.approx(0.01)
    best = ranking(TASK, candidates)
    assert [entry["index"] for entry in noise["candidates"]] == [c.index for c in best[:3]]
    assert noise["lead"] == pytest.approx(best[0].scores["top1"] - best[1].scores["top1"])
    assert measure_noise(TASK, candidates, reevaluate, repeats=0) is None


def test_result_names_best_front_and_failures():
    candidates, ending = search(evaluate=sometimes_failing)
    result = result_content(TASK, candidates, ending.reason, None, ["next"])
    assert result["best"]["index"] == ranking(TASK, candidates)[0].index
    assert result["best"]["index"] in {entry["index"] for entry in result["front"]}
    assert result["failed"] == sum(not c.ok for c in candidates)
    assert result["limits"] == {"flops": [4e6, 5e6], "params": [None, None], "rule": "macs"}
    with pytest.raises(WorkError, match="none of 1 candidates could be evaluated; the first error was: RuntimeError"):
        result_content(TASK, [c for c in candidates if not c.ok][:1], "", None, [])


def test_search_over_a_cheap_indicator_needs_no_mxnet():
    modules = ", ".join(f"oneshot_nas.{name}" for name in ("search.loop", "search.record", "search.result", "indicators.ranking"))
    code = f"import sys, {modules}; sys.exit('mxnet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
