"""The search history: every candidate, kept in an Optuna study that many workers may share.

One candidate is one Optuna trial. Architecture, cost, parents, scores and our own index are one user attribute each; the
objective's values are told to Optuna, so that optuna-dashboard shows history and Pareto front.

Workers coordinate through the study alone, which has no locks. A worker claims an index by creating a running trial for it;
of several claims the lowest trial number wins (Optuna numbers trials in the order in which they are committed), and
the others are withdrawn. While it works a worker renews its claim; a claim whose process is gone, or that was not renewed
for `stale_seconds` by the observer's own clock, is withdrawn by whoever needs the index. A result counts only while
its claim stands, and one index never counts twice: readers, too, take the lowest finished trial number.
"""

from __future__ import annotations

import hashlib
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from oneshot_nas.arch import Space, get_space
from oneshot_nas.costs.analytic import Cost
from oneshot_nas.errors import UserError
from oneshot_nas.search.batch import Proposal
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.storage import STUDY, claim_study, find_study, open_storage, shown, storage_errors
from oneshot_nas.search.task import SearchTask

STALE_SECONDS = 60.0
BEAT_SECONDS = 15.0
TOTAL = "total_seconds"


class History:
    """The candidates of one study. `refresh` reads what is new; reading costs nothing for what is known."""

    def __init__(self, storage: BaseStorage, study_id: int, space: Space, about: Mapping[str, Any], where: str,
                 stale_seconds: float = STALE_SECONDS, beat_seconds: float = BEAT_SECONDS) -> None:
        self.space, self.about, self.where = space, about, where
        self.storage, self.study_id = storage, study_id
        self._stale_seconds, self._beat_seconds = stale_seconds, beat_seconds
        self._settled: dict[int, tuple[int, Candidate]] = {}  # index -> (trial number, candidate)
        self._prefix: list[Candidate] = []  # candidates 0, 1, 2 ... without a gap
        self._claims: dict[int, list[FrozenTrial]] = {}  # index -> running trials, lowest number first
        self._done: set[int] = set()  # numbers of finished trials after the first unfinished one
        self._start = 0  # position of the first unfinished trial
        self._news: list[Candidate] = []
        self._beats: dict[int, tuple[Any, float]] = {}  # trial number -> (last beat, when it was first seen)

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates that were evaluated or failed, in the order of their index."""
        return [self._settled[index][1] for index in sorted(self._settled)]

    @property
    def prefix(self) -> Sequence[Candidate]:
        """The candidates up to the first index that is still open; do not change it."""
        return self._prefix

    def get(self, index: int) -> Candidate | None:
        """The candidate of that index, None while it is open."""
        return self._settled[index][1] if index in self._settled else None

    def news(self) -> list[Candidate]:
        """The candidates that became known since the last call."""
        news, self._news = self._news, []
        return news

    def refresh(self) -> None:
        """Read what other workers and we have written. Raises: WorkError, UserError for a study changed by hand."""
        with storage_errors(self.where):
            trials = self.storage.get_all_trials(self.study_id, deepcopy=False)
        self._claims = {}
        for trial in islice(trials, self._start, None):
            if trial.number in self._done:
                continue
            if trial.state.is_finished():
                self._done.add(trial.number)
                self._settle(trial)
            elif "index" in trial.user_attrs:
                self._claims.setdefault(trial.user_attrs["index"], []).append(trial)
        while self._start < len(trials) and trials[self._start].number in self._done:
            self._done.remove(trials[self._start].number)
            self._start += 1

    def _settle(self, trial: FrozenTrial) -> None:
        if "index" not in trial.user_attrs or (trial.state != TrialState.COMPLETE and "error" not in trial.user_attrs):
            return  # not ours, or a claim that was withdrawn
        candidate = read_candidate(trial, self.space, self.where)
        index = candidate.index
        if index not in self._settled:
            self._news.append(candidate)
        elif self._settled[index][0] < trial.number:
            return
        self._settled[index] = trial.number, candidate
        if index < len(self._prefix):
            self._prefix[index] = candidate
        while len(self._prefix) in self._settled:
            self._prefix.append(self._settled[len(self._prefix)][1])

    def free(self, indices: range) -> int | None:
        """The first index that nobody has settled or is working on; claims of dead workers are withdrawn on the way."""
        for index in indices:
            if index in self._settled:
                continue
            alive = [trial for trial in self._claims.get(index, ()) if not self._withdraw_dead(trial)]
            if not alive:
                return index
        return None

    def claim(self, index: int, proposal: Proposal, cost: Cost) -> int | None:
        """Return the id of our claim on `index`, None when another worker was first."""
        attributes = {"index": index, "arch": proposal.arch.to_json(), "cost": asdict(cost), "parents": list(proposal.parents),
                      "worker": worker_name()}
        template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        with storage_errors(self.where):
            trial_id = self.storage.create_new_trial(self.study_id, template_trial=template)
        self.refresh()
        first = self._claims.get(index)
        if index not in self._settled and first and first[0]._trial_id == trial_id:
            return trial_id
        self.withdraw(trial_id)
        return None

    def finish(self, claim: int, scores: Mapping[str, float], values: Sequence[float]) -> bool:
        """Store the result of a claim, timings included; False when it was withdrawn meanwhile: then it does not count."""
        with storage_errors(self.where):
            try:
                self.storage.set_trial_user_attr(claim, "scores", dict(scores))
                return self.storage.set_trial_state_values(claim, TrialState.COMPLETE, values)
            except UpdateFinishedTrialError:
                return False

    def fail(self, claim: int, error: str) -> None:
        """Record that the candidate of a claim could not be evaluated."""
        with storage_errors(self.where), suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(claim, "error", error)
            self.storage.set_trial_state_values(claim, TrialState.FAIL)

    def withdraw(self, claim: int) -> None:
        """Give up a claim without a result: its index is free again."""
        with storage_errors(self.where), suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(claim, TrialState.FAIL)

    @contextmanager
    def renewed(self, claim: int) -> Iterator[None]:
        """Keep renewing a claim in the background while the block runs."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            while not stop.wait(self._beat_seconds):
                count += 1
                with suppress(Exception):  # a busy database: try again later; a withdrawn claim: `finish` finds out
                    self.storage.set_trial_user_attr(claim, "beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def working(self) -> list[str]:
        """Who is working on what, in words."""
        return [f"candidate {index} by {trial.user_attrs.get('worker')}"
                for index, claims in sorted(self._claims.items()) for trial in claims]

    def _withdraw_dead(self, trial: FrozenTrial) -> bool:
        beat, now = trial.user_attrs.get("beat"), time.monotonic()
        known, since = self._beats.setdefault(trial.number, (beat, now))
        if known != beat:
            self._beats[trial.number] = beat, now
            return False
        alive = worker_alive(str(trial.user_attrs.get("worker")))
        if alive is not False and now - since < self._stale_seconds:
            return False
        self.withdraw(trial._trial_id)
        return True


def read_candidate(trial: FrozenTrial, space: Space, where: str) -> Candidate:
    """The candidate that a finished trial holds. Raises: UserError when the trial was changed by hand."""
    found = trial.user_attrs
    try:
        scores, timings = split_timings(found.get("scores", {}))
        return Candidate(
            index=int(found["index"]),
            arch=space.arch(found["arch"]["choices"]),
            cost=Cost(**found["cost"]),
            scores=scores,
            parents=tuple(found["parents"]),
            seconds=timings.pop(TOTAL, 0.0),
            timings=timings,
            error=found.get("error"),
            worker=str(found.get("worker", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"trial {trial.number} in {where} is not a candidate of '{space.name}': {error}") from None


def split_timings(given: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Scores, and the timings among them: the numbers whose name ends in ``_seconds``."""
    timings = {name: float(value) for name, value in given.items() if name.endswith("_seconds")}
    return {name: float(value) for name, value in given.items() if name not in timings}, timings


def start_history(task: SearchTask, url: str, study: str = STUDY, one_machine: bool = False,
                  stale_seconds: float = STALE_SECONDS, beat_seconds: float = BEAT_SECONDS) -> History:
    """The history of `task` in the storage at `url`, made when it is not there; `one_machine`: see `open_storage`.

    Raises: UserError when the study belongs to another search (the differences are named) or is no study.
    """
    where, about = shown(url), task.fingerprint()
    storage = open_storage(url, create=True, one_machine=one_machine)
    return History(storage, claim_study(storage, study, where, about, task.directions()), task.space, about, where,
                   stale_seconds, beat_seconds)


def read_history(url: str, study: str = STUDY) -> History:
    """An existing history, read and never changed; `about` says what was searched. Raises: UserError."""
    where = shown(url)
    storage = open_storage(url)
    number, about = find_study(storage, study, where)
    history = History(storage, number, get_space(about["space"], **about["options"]), about, where)
    history.refresh()
    return history


def worker_name() -> str:
    """This process as text: where it runs, its number and its start, so that a reused number is no disguise."""
    return f"{_place()}-{os.getpid()}-{_process_start(os.getpid())}"


def worker_alive(name: str) -> bool | None:
    """Whether the process of that name runs; None when it is elsewhere or cannot be told."""
    place, _, rest = name.partition("-")
    number, _, start = rest.partition("-")
    if place != _place() or not Path("/proc/self/stat").exists() or not number.isdigit():
        return None
    return _process_start(int(number)) == start


def _process_start(number: int) -> str:
    """Start of a process in clock ticks since boot, '' when there is none or it is a zombie (Linux)."""
    try:
        state, *fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _place() -> str:
    """Eight digits for this machine, boot and process namespace: process numbers mean something only within one."""
    parts = [platform.node()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]
