"""The history: what is stored in Optuna, who may claim what, whose study it is, and files that are no history."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from oneshot_nas.arch import get_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.search import storage as storages
from oneshot_nas.search.history import History, read_history, start_history, worker_alive, worker_name
from oneshot_nas.search.loop import run_search
from oneshot_nas.search.pareto import pareto_front
from oneshot_nas.search.record import locate
from oneshot_nas.search.searchers import Proposal
from oneshot_nas.search.storage import ATTRIBUTE, absolute_url, claim_study, masked, shown, sqlite_url
from oneshot_nas.search.task import SearchTask

SPACE = get_space("spos_shufflenet", classes=10, input_size=32, layout="small")
TASK = SearchTask(SPACE, population=4, budget=8)


def evaluate(arch):
    return {"top1": sum(arch.choices["scale"]) / 40, "top5": 1.0, "calibrate_seconds": 0.5}


@pytest.fixture
def url(tmp_path):
    return sqlite_url(tmp_path / "study.db")


def two_in_memory(**settings):
    """Two workers' views of one study."""
    storage = InMemoryStorage()
    number = claim_study(storage, "search", "memory", TASK.fingerprint(), TASK.directions())
    return [History(storage, number, SPACE, {}, "memory", **settings) for _ in range(2)]


def proposals():
    return [(p, cost(p.arch)) for p in TASK.propose([], 0)]


def test_a_candidate_is_one_trial_with_the_architecture_as_one_attribute(url):
    history = start_history(TASK, url, one_machine=True)
    run_search(TASK, evaluate, history, progress=False)
    trials = optuna.load_study(study_name="search", storage=url).trials
    assert len(trials) == 8
    for candidate, trial in zip(history.candidates, trials, strict=True):
        assert trial.params == {}
        assert trial.state == TrialState.COMPLETE
        assert trial.value == candidate.scores["top1"]
        assert set(trial.user_attrs) == {"index", "arch", "cost", "parents", "worker", "scores"}
        assert trial.user_attrs["arch"] == candidate.arch.to_json()
        assert candidate.timings == {"calibrate_seconds": 0.5}
        assert set(candidate.scores) == {"top1", "top5"}
        assert candidate.seconds > 0
    content = json.loads(json.dumps(history.candidates[5].to_json()))
    assert set(content) == {"index", "arch", "cost", "scores", "parents", "seconds", "timings", "worker"}


def test_nsga2_tells_optuna_its_pareto_front(url):
    task = replace(TASK, algorithm="nsga2", budget=40)
    history = start_history(task, url, one_machine=True)
    run_search(task, evaluate, history, progress=False)
    study = optuna.load_study(study_name="search", storage=url)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    front = {c.index for c in pareto_front(history.candidates, task.objective.fitness)}
    assert {trial.user_attrs["index"] for trial in study.best_trials} == front


def test_a_history_read_later_is_the_same_and_reading_changes_nothing(url, tmp_path):
    history = start_history(TASK, url)
    run_search(TASK, evaluate, history, progress=False)
    before = (tmp_path / "study.db").read_bytes()
    again = read_history(url)
    assert again.candidates == history.candidates
    assert again.about == json.loads(json.dumps(TASK.fingerprint()))
    assert (tmp_path / "study.db").read_bytes() == before
    assert os.listdir(tmp_path) == ["study.db"]


def test_the_write_ahead_log_of_one_machine_keeps_the_same_history(url):
    histories = [start_history(TASK, place, one_machine=True) for place in (url, url.replace("study.db", "b.db"))]
    for history in histories:
        run_search(TASK, evaluate, history, progress=False)
    histories[1] = read_history(url.replace("study.db", "b.db"))
    found = [[(c.arch, c.scores) for c in history.candidates] for history in histories]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["with space", "per%20cent", "question?", "hash#", "brace{x}", "ünï", "a&mode=ro"])
def test_any_folder_name_works(tmp_path, name):
    (tmp_path / name).mkdir()
    url = sqlite_url(tmp_path / name / "study.db")
    task = replace(TASK, budget=1)
    run_search(task, evaluate, start_history(task, url, one_machine=True), progress=False)
    assert len(read_history(url).candidates) == 1
    assert (tmp_path / name / "study.db").is_file()


def test_who_may_only_read_a_folder_sees_what_the_write_ahead_log_holds(url, tmp_path, monkeypatch):
    history = start_history(TASK, url, one_machine=True)
    run_search(TASK, evaluate, history, progress=False)
    assert (tmp_path / "study.db-wal").stat().st_size
    real = os.access
    monkeypatch.setattr(storages.os, "access", lambda path, mode: real(path, mode) and Path(path) != tmp_path)
    seen = read_history(url)
    assert [candidate.arch for candidate in seen.candidates] == [candidate.arch for candidate in history.candidates]
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("study.db", "study.db-wal"):
        shutil.copy(tmp_path / name, archive / name)
    monkeypatch.setattr(storages.os, "access", lambda path, mode: real(path, mode) and Path(path) != archive)
    with pytest.raises(UserError, match="study.db-wal in a folder that may not be written; copy both files to another folder"):
        read_history(sqlite_url(archive / "study.db"))


def test_the_first_claim_wins_and_the_other_is_withdrawn():
    a, b = two_in_memory()
    (proposal, found), *_ = proposals()
    a.refresh(), b.refresh()
    assert a.free(range(4)) == b.free(range(4)) == 0  # both believe it is free
    claim = a.claim(0, proposal, found)
    assert claim is not None
    assert b.claim(0, proposal, found) is None
    assert b.free(range(4)) == 1
    assert a.finish(claim, {"top1": 0.5}, [0.5])
    b.refresh()
    assert [c.scores for c in b.candidates] == [{"top1": 0.5}]
    assert b.free(range(1)) is None
    assert b.claim(0, proposal, found) is None  # too late


def test_a_silent_claim_is_taken_over_and_its_late_result_does_not_count():
    a, b = two_in_memory(stale_seconds=0.05)
    (proposal, found), *_ = proposals()
    lost = a.claim(0, proposal, found)
    b.refresh()
    assert b.free(range(1)) is None  # first seen now
    time.sleep(0.06)
    assert b.free(range(1)) == 0
    won = b.claim(0, proposal, found)
    assert won is not None
    assert not a.finish(lost, {"top1": 0.1}, [0.1])
    assert b.finish(won, {"top1": 0.2}, [0.2])
    a.refresh()
    assert [c.scores for c in a.candidates] == [{"top1": 0.2}]


def test_a_renewed_claim_is_not_taken_over():
    a, b = two_in_memory(stale_seconds=0.5, beat_seconds=0.02)
    (proposal, found), *_ = proposals()
    claim = a.claim(0, proposal, found)
    with a.renewed(claim):
        for _ in range(10):
            time.sleep(0.1)
            b.refresh()
            assert b.free(range(1)) is None
    assert a.finish(claim, {"top1": 0.1}, [0.1])


def test_of_two_results_for_one_index_readers_take_the_first_trial():
    a, b = two_in_memory(stale_seconds=0)
    (proposal, _), *_ = proposals()
    storage, study = a.storage, a.study_id
    first, second = (storage.create_new_trial(study, optuna.trial.create_trial(
        state=TrialState.RUNNING,
        user_attrs={"index": 0, "arch": proposal.arch.to_json(), "cost": {"flops": 1, "params": 1}, "parents": [], "worker": ""},
    )) for _ in range(2))
    assert a.finish(second, {"top1": 0.2}, [0.2])
    a.refresh()
    assert a.prefix[0].scores == {"top1": 0.2}
    assert a.finish(first, {"top1": 0.1}, [0.1])
    a.refresh(), b.refresh()
    assert a.prefix[0] == b.prefix[0] == a.candidates[0]
    assert len(a.candidates) == 1 and a.candidates[0].scores == {"top1": 0.1}


def test_candidates_have_our_own_index_whatever_trials_the_study_holds():
    a, b = two_in_memory()
    all_proposals = proposals()
    a.storage.create_new_trial(a.study_id)  # somebody's enqueued trial
    for index in (2, 0, 1):
        claim = a.claim(index, *all_proposals[index])
        a.finish(claim, {"top1": index / 10}, [index / 10])
        b.refresh()
        assert [c.index for c in b.news()] == [index]
    assert [c.index for c in b.prefix] == [c.index for c in b.candidates] == [0, 1, 2]
    assert [c.arch for c in b.candidates] == [p.arch for p, _ in all_proposals[:3]]


def test_failures_are_candidates_without_scores():
    a, b = two_in_memory()
    (proposal, found), *_ = proposals()
    a.fail(a.claim(0, proposal, found), "MXNetError: no")
    b.refresh()
    assert not b.prefix[0].ok and b.prefix[0].error == "MXNetError: no"
    assert b.prefix[0].to_json()["error"] == "MXNetError: no"


def test_workers_know_who_is_alive():
    assert worker_alive(worker_name()) is True
    place, number, start = worker_name().split("-")
    assert worker_alive(f"{place}-{number}-{int(start) + 1}") is False  # the number was used again
    assert worker_alive(f"elsewhere-{number}-{start}") is None
    code = "from oneshot_nas.search.history import worker_name as w; print(w(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        name = child.stdout.readline().strip()
        assert worker_alive(name) is True
        child.kill()
        end = time.monotonic() + 20
        while worker_alive(name):
            assert time.monotonic() < end
        assert Path(f"/proc/{child.pid}").exists()  # a zombie: dead, but not yet collected
    assert worker_alive(name) is False


@pytest.mark.parametrize(("changes", "message"), [
    ({"seed": 1}, "seed: 0 -> 1"), ({"population": 5}, "population: 4 -> 5"),
    ({"algorithm": "random"}, "algorithm: evolution -> random"),
    ({"about": {"epoch": 3}}, "about.epoch: None -> 3"), ({"algorithm": "nsga2"}, "algorithm: evolution -> nsga2"),
    ({"space": get_space("spos_shufflenet", classes=7, input_size=32, layout="small")}, "options.classes: 10 -> 7"),
])
def test_a_study_of_another_search_is_refused(url, changes, message):
    start_history(TASK, url)
    with pytest.raises(UserError, match=f"belongs to another search .*{message}.*another --out or --study"):
        start_history(replace(TASK, **changes), url)
    start_history(replace(TASK, **changes), url, study="other")
    start_history(replace(TASK, budget=100), url)  # a longer search is the same search


def test_many_differences_are_counted():
    from oneshot_nas.search.storage import differences

    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}) == "b.c: 2 -> 3"
    assert differences({}, {str(i): i for i in range(9)}).endswith("and 4 more")


def test_a_study_that_died_before_its_fingerprint_is_adopted(url):
    optuna.create_study(study_name="search", storage=url, direction="maximize")
    assert list(start_history(TASK, url).candidates) == list(read_history(url).candidates) == []
    with pytest.raises(UserError, match="belongs to another search"):  # it has the fingerprint now
        start_history(replace(TASK, seed=TASK.seed + 1), url)


def test_a_foreign_study_is_refused(url):
    study = optuna.create_study(study_name="search", storage=url, direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    for opening in (lambda: start_history(TASK, url), lambda: read_history(url)):
        with pytest.raises(UserError, match="was not made by oneshot-nas search"):
            opening()
    with pytest.raises(UserError, match="holds no study 'other'; it holds \\['search'\\]"):
        read_history(url, "other")


def test_files_that_are_no_history(tmp_path):
    path, url = tmp_path / "study.db", sqlite_url(tmp_path / "study.db")
    with pytest.raises(UserError, match="there is no search history at"):
        read_history(url)
    assert not path.exists()
    path.write_bytes(b"not a database at all, but long enough to be one" * 100)
    for opening in (lambda: start_history(TASK, url), lambda: read_history(url)):
        with pytest.raises(UserError, match="is not a search history: file is not a database"):
            opening()
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("create table songs (name text)")
    database.close()
    for opening in (lambda: start_history(TASK, url), lambda: read_history(url)):
        with pytest.raises(UserError, match="not a search history \\(no Optuna study in it\\)"):
            opening()
    with pytest.raises(UserError, match="its folder does not exist"):
        start_history(TASK, sqlite_url(tmp_path / "missing" / "study.db"))


def test_a_truncated_history_is_one_clear_error(url, tmp_path):
    run_search(TASK, evaluate, start_history(TASK, url), progress=False)
    content = (tmp_path / "study.db").read_bytes()
    (tmp_path / "study.db").write_bytes(content[: len(content) // 2])
    for opening in (lambda: read_history(url), lambda: start_history(TASK, url)):
        with pytest.raises((UserError, WorkError), match="study.db"):
            opening()


def test_a_study_changed_by_hand_is_one_clear_error(url, tmp_path):
    run_search(TASK, evaluate, start_history(TASK, url, one_machine=True), progress=False)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("update trial_user_attributes set value_json = '{}' where key = 'arch'")
    database.close()
    with pytest.raises(UserError, match="trial 0 in .*study.db is not a candidate"):
        read_history(url)


def test_an_unknown_schema_is_refused(url, tmp_path):
    start_history(TASK, url)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("update alembic_version set version_num = 'v99.0.0'")
    database.close()
    with pytest.raises(UserError, match="cannot use .*study.db as a search history"):
        start_history(TASK, url)


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_url("sqlite:///study.db") == f"sqlite:///{tmp_path}/study.db"
    assert shown("sqlite:////a/b.db") == "/a/b.db"
    secret = "postgresql://user:pa55@host/name"
    assert "pa55" not in masked(secret) and masked(secret) == shown(secret) == "postgresql://user:***@host/name"
    assert shown("sqlite+pysqlite:////a/b.db") == "/a/b.db"
    for bad, message in (("nonsense", "not a database URL"), ("sqlite://", "memory only"), ("sqlite:///:memory:", "memory only")):
        with pytest.raises(UserError, match=message):
            absolute_url(bad)
    with pytest.raises(UserError, match="no run folder"):
        locate(tmp_path / "missing")


def test_a_missing_driver_is_named():
    with pytest.raises(UserError, match="mysql"):
        start_history(TASK, "mysql+mysqlconnector_missing://user@host/name")


def test_a_full_or_broken_database_is_a_work_error(url, monkeypatch):
    history = start_history(TASK, url, one_machine=True)
    proposal = Proposal(SPACE.smallest())
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("drop table trial_user_attributes")
    database.close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Optuna tries five times
    with pytest.raises(WorkError, match="what was saved before is kept"):
        history.claim(0, proposal, cost(proposal.arch))


def test_a_disk_that_is_full_from_the_start_is_a_work_error(url, monkeypatch):
    import oneshot_nas.search.storage as storage

    def connect(*given, real=storage._connect):
        connection = real(*given)
        connection.execute("pragma max_page_count=4")
        return connection

    monkeypatch.setattr(storage, "_connect", connect)
    with pytest.raises(WorkError, match="disk is full"):
        start_history(TASK, url)


def test_the_attribute_name_is_an_interface():
    assert ATTRIBUTE == "oneshot_nas"


def test_two_processes_that_make_the_tables_at_once(url, monkeypatch):
    import sqlalchemy.exc

    import oneshot_nas.search.storage as storage

    made, calls = storage.RDBStorage, []

    def raced(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise sqlalchemy.exc.IntegrityError("insert", {}, Exception("UNIQUE constraint failed: alembic_version.version_num"))
        return made(*args, **kwargs)

    monkeypatch.setattr(storage, "RDBStorage", raced)
    start_history(TASK, url, one_machine=True)
    assert len(calls) == 2
