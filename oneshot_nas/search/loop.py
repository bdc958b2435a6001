"""The search loop: propose a batch, evaluate its candidates, until the budget is used. Resumable and shared by workers.

A batch (generation) is proposed from the candidates before it, so every worker proposes the same one by itself, and a
half-finished batch is proposed again after a crash. Before the next batch workers wait for the last candidates of this one.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from oneshot_nas.arch import Arch
from oneshot_nas.costs.analytic import Cost, cost
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.interrupts import kept_interrupts
from oneshot_nas.memory import keep_freed_memory
from oneshot_nas.progress import track
from oneshot_nas.search.batch import Proposal, countable
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.history import TOTAL, History, split_timings, start_history
from oneshot_nas.search.task import SearchTask

Evaluate = Callable[[Arch], Mapping[str, float]]
MAX_FAILURES = 5  # candidates in a row
PATIENCE_SECONDS = 3600.0  # without any news from other workers
POLL_SECONDS = (0.02, 1.0)
EXIT_SECONDS = 30.0


@dataclass(frozen=True)
class Ending:
    """Why a search ended: `complete` when the budget is used, otherwise `reason` says what ran out."""

    complete: bool
    reason: str


class Stopped(Exception):
    """The worker was asked to stop between two candidates."""


def run_search(
    task: SearchTask,
    evaluate: Evaluate,
    history: History,
    *,
    told: Callable[[Candidate], None] = lambda candidate: None,
    wanted: Callable[[], bool] = lambda: True,
    progress: bool = True,
    patience: float = PATIENCE_SECONDS,
) -> Ending:
    """Evaluate candidates until the study holds `task.budget` of them or no new one is left; return why it ended.

    `evaluate(arch)` gives named scores; names that end in ``_seconds`` are kept as timings. `told` is called for every
    candidate that becomes known, other workers' included. `wanted` is asked before every candidate. Any exception in
    `evaluate` is recorded as that candidate's failure and the search goes on, except UserError and interrupts, which
    free the candidate and are raised.

    Raises: UserError (limits, population, a study of other proposals), WorkError (`MAX_FAILURES` failures in a row, the
    storage, no news for `patience` seconds), `Stopped`. The history keeps all that was finished.
    """
    task.check()
    history.refresh()
    history.news()
    steps = _work(task, evaluate, history, wanted, patience)
    if progress:
        steps = track(steps, "search", total=max(0, task.budget - len(history.candidates)), unit="candidate")
    for candidate in steps:
        told(candidate)
    return _ending(task, history)


def _work(task: SearchTask, evaluate: Evaluate, history: History, wanted: Callable[[], bool],
          patience: float) -> Iterator[Candidate]:
    """Yield candidates as they become known, evaluating those that nobody works on, until none is left to do."""
    first, batch = -1, []  # type: int, list[Proposal]
    failures, last_news, pause = 0, time.monotonic(), POLL_SECONDS[0]
    while True:
        history.refresh()
        for candidate in history.news():
            last_news, pause = time.monotonic(), POLL_SECONDS[0]
            yield candidate
        known = len(history.prefix)
        if known >= task.budget:
            return
        if first != known - known % task.population:
            first = known - known % task.population
            batch = _batch(task, history, first)
        end = min(first + len(batch), task.budget)
        if known >= end:  # a short batch: nothing new is left
            return
        if not wanted():
            raise Stopped
        index = history.free(range(known, end))
        if index is None:  # others work on the last candidates of this batch
            if time.monotonic() - last_news > patience:
                raise WorkError(f"no news for {patience:.0f} s while waiting for {'; '.join(history.working()[:3])}; "
                                "stop those workers and run the same command again")
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS[1])
            continue
        proposal = batch[index - first]
        found = cost(proposal.arch, task.limits.rule)
        claim = history.claim(index, proposal, found)
        if claim is None:  # another worker was first
            continue
        error = _evaluate(task, evaluate, history, claim, proposal.arch, found)
        failures = failures + 1 if error else 0
        if failures >= MAX_FAILURES:
            raise WorkError(f"{failures} candidates in a row failed, the last one (candidate {index}) with: {error}; "
                            "they are recorded as failed, the same command goes on with the next one")


def _batch(task: SearchTask, history: History, first: int) -> list[Proposal]:
    """The batch that starts at `first`. Raises: UserError when the history holds other candidates in its place."""
    batch = task.propose(history.prefix, first)
    if first == 0 and len(batch) < task.population:
        task.too_large(len(batch))
    for index in range(first, first + task.population):
        known = history.get(index)
        if known is not None and (index - first >= len(batch) or batch[index - first].arch != known.arch):
            raise UserError(f"candidate {index} in {history.where} is not the one this search proposes: the history was made by "
                            "another version or changed by hand; start a new one with another --out or --study")
    return batch


def _evaluate(task: SearchTask, evaluate: Evaluate, history: History, claim: int, arch: Arch, found: Cost) -> str | None:
    """Evaluate a claimed candidate and store the result; return its error, if any."""
    start = time.perf_counter()
    try:
        with history.renewed(claim):
            given = {**evaluate(arch), **task.objective.extra(task.space, arch)}
        seconds = time.perf_counter() - start
        scores, timings = split_timings(given)
        bad = [name for name, value in scores.items() if not math.isfinite(value)]
        if bad:
            raise ArithmeticError(f"score '{bad[0]}' is {scores[bad[0]]}")
        values = task.values(scores, found)
    except UserError:
        history.withdraw(claim)
        raise
    except Exception as problem:  # whatever went wrong belongs to this candidate
        error = " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
        history.fail(claim, error)
        return error
    except BaseException:
        history.withdraw(claim)
        raise
    history.finish(claim, {**scores, **timings, TOTAL: seconds}, values)
    return None


def _ending(task: SearchTask, history: History) -> Ending:
    if len(history.prefix) >= task.budget:
        return Ending(True, f"the budget of {task.budget} candidates is used")
    listed = None if task.stages else countable(task.space, task.limits)
    if listed is not None:
        return Ending(False, f"all {len(listed)} architectures inside the limits have been evaluated")
    return Ending(False, f"no further architecture inside the limits ({task.limits}) was found after {len(history.prefix)}")


@dataclass(frozen=True)
class Workers:
    """Processes that work on a study beside this one: `count`, where the study is, and how each makes its evaluator."""

    count: int
    url: str
    study: str
    make_evaluate: Callable[[], Evaluate]
    one_machine: bool = False

    def processes(self, task: SearchTask) -> list[BaseProcess]:
        """The processes, not yet started; they end with the search, or when this process is gone."""
        context = multiprocessing.get_context("spawn")
        names = [f"worker {number}" for number in range(2, self.count + 2)]
        return [context.Process(target=_worker, args=(self, task), name=name) for name in names]


def run_parallel(task: SearchTask, evaluate: Evaluate, history: History, workers: Workers,
                 told: Callable[[Candidate], None] = lambda candidate: None) -> Ending:
    """`run_search` with `workers.count` more processes on the same study; a worker that dies is replaced by the others.

    `workers.make_evaluate` and `task` must be picklable. A worker's own failure is one line on stderr and ends it alone.
    """
    task.check()
    processes = workers.processes(task)
    try:
        with _held_interrupts():
            for process in processes:
                process.start()
        ending = run_search(task, evaluate, history, told=told)
        for process in processes:
            process.join(EXIT_SECONDS)
        return ending
    finally:
        started = [process for process in processes if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


@contextmanager
def _held_interrupts() -> Iterator[None]:
    """Within it, Ctrl-C waits for the end, and processes are started with SIGINT blocked: they wait for it too (`_worker`).

    A process that Ctrl-C strikes while it starts up prints where it was.
    """
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and would unblock SIGINT then
    struck: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    ours = callable(before) and threading.current_thread() is threading.main_thread()  # else it is ignored, or never raised here
    if ours:
        signal.signal(signal.SIGINT, lambda number, frame: struck.append(number))  # other threads' signals come to it as well
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
        if struck:
            signal.raise_signal(signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _worker(workers: Workers, task: SearchTask) -> None:
    """What a spawned process does. Exit code 0, 1 (its own failure) or 130 (interrupted).

    Ctrl-C waits until all is imported and loaded; before that the parent ends the process.
    """
    keep_freed_memory()  # unlike the threads' variables, a process does not inherit it
    parent = multiprocessing.parent_process()
    name = multiprocessing.current_process().name
    try:
        with kept_interrupts():
            history = start_history(task, workers.url, workers.study, workers.one_machine)
            evaluate = workers.make_evaluate()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            run_search(task, evaluate, history, progress=False, wanted=lambda: parent is None or parent.is_alive())
    except Stopped:
        pass
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, WorkError) as error:
        print(f"{name} ends: {error}", file=sys.stderr)
        sys.exit(1)
