"""Several processes on one study, one of them killed with kill -9: every candidate exactly once, as of a single worker."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import optuna
import pytest
from optuna.storages import InMemoryStorage

from oneshot_nas.arch import get_space
from oneshot_nas.costs.limits import Limits
from oneshot_nas.search.history import History, read_history
from oneshot_nas.search.loop import _held_interrupts, run_search
from oneshot_nas.search.storage import claim_study, sqlite_url
from oneshot_nas.search.task import SearchTask

SCRIPT = """
import functools, os, sys, time
from pathlib import Path
from oneshot_nas.arch import get_space
from oneshot_nas.costs.limits import Limits
from oneshot_nas.interrupts import kept_interrupts
from oneshot_nas.search.history import start_history
from oneshot_nas.search.loop import Workers, run_parallel, run_search
from oneshot_nas.search.storage import sqlite_url
from oneshot_nas.search.task import SearchTask

def task():
    space = get_space("spos_shufflenet", classes=10, input_size=32, layout="small")
    return SearchTask(space, Limits(flops=(4e6, 5e6)), population=12, budget=30, top_k=3)

def make_evaluate(folder, company=False):
    log = Path(folder) / "log.txt"

    def evaluate(arch):
        with open(log, "a") as handle:
            handle.write(f"{os.getpid()}\\n")
        while company and len(set(log.read_text().split())) == 1:
            time.sleep(0.02)  # the spawned workers are not there yet
        time.sleep(30 if (Path(folder) / f"hang-{os.getpid()}").exists() else 0.03)
        return {"top1": sum(arch.choices["scale"]) / 40}
    return evaluate

if __name__ == "__mp_main__" and (Path(__file__).parent / "slow").exists():
    (Path(__file__).parent / f"imports-{os.getpid()}").touch()
    time.sleep(1)

if __name__ == "__main__":
    folder, workers = sys.argv[1], int(sys.argv[2])
    url = sqlite_url(Path(folder) / "study.db")
    history = start_history(task(), url)
    if workers == 1:
        run_search(task(), make_evaluate(folder), history, progress=False)
    else:
        others = Workers(workers - 1, url, "search", functools.partial(make_evaluate, folder))
        try:
            with kept_interrupts():  # as the command line has it: Ctrl-C may strike in a finaliser
                run_parallel(task(), make_evaluate(folder, company=True), history, others)
        except KeyboardInterrupt:
            sys.exit(130)
"""


def expected():
    space = get_space("spos_shufflenet", classes=10, input_size=32, layout="small")
    task = SearchTask(space, Limits(flops=(4e6, 5e6)), population=12, budget=30, top_k=3)
    storage = InMemoryStorage()
    number = claim_study(storage, "search", "memory", task.fingerprint(), task.directions())
    history = History(storage, number, space, {}, "memory")
    run_search(task, lambda arch: {"top1": sum(arch.choices["scale"]) / 40}, history, progress=False)
    return [(c.index, c.arch, c.cost, c.scores, c.parents) for c in history.candidates]


def start(folder, workers=1):
    script = folder / "worker.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, str(script), str(folder), str(workers)], stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def working(folder):
    """Evaluations so far by process."""
    log = folder / "log.txt"
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def check(folder, killed):
    url = sqlite_url(folder / "study.db")
    found = read_history(url).candidates
    assert [(c.index, c.arch, c.cost, c.scores, c.parents) for c in found] == expected()
    assert len({c.arch for c in found}) == 30
    complete = [t for t in optuna.load_study(study_name="search", storage=url).trials if t.state.name == "COMPLETE"]
    assert sorted(t.user_attrs["index"] for t in complete) == list(range(30))  # in the study itself, too, each exactly once
    assert len({c.worker for c in found}) >= 2
    assert killed in working(folder)
    assert sum(working(folder).values()) == 31  # only the killed worker's candidate was evaluated again


def test_three_invocations_share_a_study_and_one_is_killed(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    wait_for(lambda: working(tmp_path))
    victim = next(process for process in processes if process.pid in working(tmp_path))
    (tmp_path / f"hang-{victim.pid}").touch()
    before = working(tmp_path)[victim.pid]
    wait_for(lambda: working(tmp_path)[victim.pid] > before)  # it now holds a candidate that it will not finish
    victim.kill()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if process is victim else 0), errors
    check(tmp_path, victim.pid)


def caught_worker(folder, parent):
    """The process of a worker of `parent` that holds a candidate and will not finish it."""
    wait_for(lambda: set(working(folder)) - {parent.pid})
    victim = next(pid for pid in working(folder) if pid != parent.pid)
    (folder / f"hang-{victim}").touch()
    before = working(folder)[victim]
    wait_for(lambda: working(folder)[victim] > before)
    return victim


def test_a_spawned_worker_that_is_killed_is_replaced_by_the_others(tmp_path):
    parent = start(tmp_path, workers=3)
    victim = caught_worker(tmp_path, parent)
    os.kill(victim, signal.SIGKILL)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 0, errors
    check(tmp_path, victim)


def test_ctrl_c_while_the_workers_import_is_silent(tmp_path):
    (tmp_path / "slow").touch()
    parent = start(tmp_path, workers=3)
    wait_for(lambda: len(list(tmp_path.glob("imports-*"))) == 2)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=60)  # the workers are gone, too, once nobody can write there any more
    assert (parent.returncode, errors) == (130, "")


def test_a_worker_that_works_can_be_interrupted(tmp_path):
    parent = start(tmp_path, workers=2)
    victim = caught_worker(tmp_path, parent)
    os.kill(victim, signal.SIGINT)
    _, errors = parent.communicate(timeout=120)
    assert (parent.returncode, errors) == (0, "")
    check(tmp_path, victim)


def test_workers_end_with_a_parent_that_is_killed_while_they_import(tmp_path):
    (tmp_path / "slow").touch()
    parent = start(tmp_path, workers=3)
    wait_for(lambda: len(list(tmp_path.glob("imports-*"))) == 2)
    parent.kill()
    parent.communicate(timeout=120)  # ends when the last worker has closed stderr


def test_ctrl_c_while_workers_are_started_is_kept():
    before = signal.getsignal(signal.SIGINT)
    done = []
    with pytest.raises(KeyboardInterrupt), _held_interrupts():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append("all started")
    assert done and signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
