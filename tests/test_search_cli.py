"""The commands search, history and dashboard: files, JSON, resume, next commands, and one line for every wrong use."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import types
import urllib.request
from dataclasses import dataclass, field

import pytest
import tiny
import yaml

from oneshot_nas.arch import get_space, read_arch_file
from oneshot_nas.cli.main import run
from oneshot_nas.config import RunFolder, dump_recipe
from oneshot_nas.costs.analytic import cost
from oneshot_nas.files import read_json
from oneshot_nas.shell import program

SPACE = get_space("spos_shufflenet", classes=10, input_size=32, layout="small")


@dataclass
class Fake:
    """Stands for the accuracy of a supernet."""

    seed: int
    about: dict = field(default_factory=lambda: {"supernet": "runs/supernet", "epoch": 12})
    space = SPACE
    calls = 0
    fails_at = -1
    interrupted_at = -1

    def __call__(self, arch):
        Fake.calls += 1
        if Fake.calls == Fake.fails_at:
            raise RuntimeError("no accuracy today")
        if Fake.calls == Fake.interrupted_at:
            raise KeyboardInterrupt
        top1 = sum(arch.choices["scale"]) / 40 + self.seed / 1000
        return {"top1": top1, "top5": 1.0, "calibrate_seconds": 0.25, "validate_seconds": 0.5}


@pytest.fixture(autouse=True)
def accuracy(monkeypatch, tmp_path):
    def load_evaluator(supernet_run, calib_images=None, val_images=None, seed=0):
        return Fake(seed)

    module = types.ModuleType("oneshot_nas.indicators.accuracy")
    vars(module)["load_evaluator"] = load_evaluator
    monkeypatch.setitem(sys.modules, "oneshot_nas.indicators.accuracy", module)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in (("calls", 0), ("fails_at", -1), ("interrupted_at", -1)):
        monkeypatch.setattr(Fake, name, value)
    monkeypatch.chdir(tmp_path)


def search(*more, out="found", budget=12):
    words = ["search", "--supernet", "super", "--out", out, "--budget", str(budget), "--population", "4", "--flops", "4M:5M"]
    return run([*words, *more])


def error_of(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_search_writes_its_files_and_says_what_comes_next(tmp_path, capsys):
    assert search() == 0
    out, err = capsys.readouterr()
    folder = RunFolder("found")
    assert sorted(path.name for path in folder.path.iterdir() if not path.name.startswith((".", "study.db-"))) == [
        "arch.json", "config.yaml", "log.txt", "result.json", "study.db"]
    result = read_json(folder.result, "search-result")
    assert read_json(folder.arch, "architecture")["choices"] == result["best"]["arch"]["choices"]
    assert SPACE.check(read_arch_file("found/arch.json"))
    assert result["candidates"] == 12 and result["failed"] == 0 and result["limits"]["flops"] == [4e6, 5e6]
    assert result["noise"]["std"] == pytest.approx(0.001)  # values x, x + 0.001, x + 0.002
    assert result["next"] == [f"{program()} train --recipe super/config.yaml --arch found/arch.json --out found-retrain",
                              f"{program()} plot found", f"{program()} history found --json"]
    assert [line for line in err.splitlines() if line.startswith("next: ")] == [f"next: {text}" for text in result["next"]]
    assert out.startswith(f"best        candidate {result['best']['index']}: ") and "front" in out and "noise" in out
    assert len(folder.log.read_text().splitlines()) == 12


def next_words(err):
    """The words of the commands that stderr names."""
    return [shlex.split(line.removeprefix("next: "))[1:] for line in err.splitlines() if line.startswith("next: ")]


def test_next_commands_quote_what_has_spaces(capsys):
    assert search("--supernet", "my super/", out="my found/") == 0
    train, plot, history = next_words(capsys.readouterr().err)
    assert train == ["train", "--recipe", "my super/config.yaml", "--arch", "my found/arch.json", "--out", "my found-retrain"]
    assert run(plot) == run(history) == 0
    told = read_json("my found/result.json", "search-result")["next"]
    assert [shlex.split(text)[1:] for text in told] == [train, plot, history]


def test_networks_of_a_sandwich_trained_supernet_are_exported_at_once(tmp_path, capsys):
    (tmp_path / "super").mkdir()
    (tmp_path / "super" / "config.yaml").write_text(dump_recipe(tiny.sandwich(tmp_path / "data")))
    assert search() == 0
    words, _, _ = next_words(capsys.readouterr().err)
    assert words == ["export", "--supernet", "super", "--arch", "found/arch.json", "--out", "found/export"]
    assert search("--targets", "2", out="family") == 0
    evaluate, words, _, _ = next_words(capsys.readouterr().err)
    assert evaluate == ["evaluate", "--supernet", "super", "--arch", "family/family.jsonl", "--json"]
    assert words == ["export", "--supernet", "super", "--arch", "family/family.jsonl", "--out", "family/export"]


def test_the_noise_is_told_with_what_it_was_calibrated_on(monkeypatch, capsys):
    assert search() == 0
    assert "over 2 repeats, each calibrated on another half of the images; the best is" in capsys.readouterr().out
    assert read_json("found/result.json", "search-result")["noise"]["halves"] is True
    assert search("--calib-images", "4", out="few") == 0
    assert "over 2 repeats; the best is" in capsys.readouterr().out
    assert read_json("few/result.json", "search-result")["noise"]["halves"] is False
    monkeypatch.setattr(Fake, "__init__", lambda self, seed: setattr(self, "seed", 0) or setattr(self, "about", {"weights": "a"}))
    assert search(out="same") == 0
    assert "standard deviation 0.0000 of top1 over 2 repeats, each calibrated on another half" in capsys.readouterr().out
    assert search("--calib-images", "4", out="all") == 0
    assert "noise       0: the repeats gave the same top1; they see other images only with" in capsys.readouterr().out


def test_the_result_is_there_when_the_noise_cannot_be_measured(monkeypatch, capsys):
    monkeypatch.setattr("oneshot_nas.cli._found.measure_noise", lambda *_, **__: 1 // 0)
    assert search() == 0
    assert "note: the noise was not measured: integer division" in capsys.readouterr().err
    assert read_json("found/result.json", "search-result")["noise"] is None and RunFolder("found").arch.exists()
    found: list[bool] = []
    monkeypatch.setattr("oneshot_nas.cli._found.measure_noise", lambda *_, **__: found.append(RunFolder("other").result.exists()))
    assert search(out="other") == 0 and found == [True]


def test_the_record_repeats_the_search(tmp_path):
    assert search("--seed", "5", "--over", "block") == 0
    record = yaml.safe_load(RunFolder("found").config.read_text())
    assert (record["kind"], record["version"]) == ("search", 1)
    assert record["arguments"]["seed"] == 5 and record["arguments"]["over"] == "block"
    program, *words = shlex.split(record["command"])
    words[words.index(str(tmp_path / "found"))] = "again"
    assert program == "oneshot-nas" and run(words) == 0
    for name in ("found", "again"):
        assert read_json(RunFolder(name).arch, "architecture") == read_json(RunFolder("found").arch, "architecture")


def test_the_record_works_from_any_folder(tmp_path, monkeypatch):
    assert search("--base", "base.json", "--over", "scale") == 2  # there is no such file
    assert search() == 0
    record = yaml.safe_load(RunFolder("found").config.read_text())
    assert (record["arguments"]["supernet"], record["arguments"]["out"]) == (str(tmp_path / "super"), str(tmp_path / "found"))


def test_what_over_leaves_out_is_fixed_and_said(capsys):
    assert search("--over", "scale", "--flops", "1M:9M") == 0
    captured = capsys.readouterr()
    assert "block is fixed at shuffle3; --base ARCH.json fixes it otherwise" in captured.err
    assert set(read_arch_file("found/arch.json").choices["block"]) == {"shuffle3"}


def test_a_base_that_fixes_nothing_is_said(tmp_path, capsys):
    (tmp_path / "base.json").write_text(json.dumps(SPACE.smallest().to_json()))
    for over in ((), ("--over", "block,scale")):
        assert search("--base", "base.json", *over, out=f"search-{len(over)}") == 0
        assert "note: --base has no effect: it is for --over" in capsys.readouterr().err
    assert search("--base", "base.json", "--over", "scale", out="third") == 0
    assert "no effect" not in capsys.readouterr().err


def test_a_population_beyond_a_narrow_window_leaves_no_trace(tmp_path, capsys):
    flops = cost(SPACE.smallest()).flops
    limits = ("--flops", f"{flops}:{flops}")
    assert search("--population", "50", *limits) == 2
    told = capsys.readouterr().err
    count = int(re.search(r"a population of 50 is larger than the (\d+) architectures", told)[1])
    assert f"give --population {count} or less" in told and not (tmp_path / "search" / "study.db").exists()
    assert search("--population", str(count), *limits) == 0


def test_weights_that_change_while_a_search_runs_are_told(monkeypatch, capsys):
    def load(*words, seed=0):
        return Fake(seed, {"supernet": "runs/supernet", "weights": "old" if seed == 0 else "new"})

    monkeypatch.setitem(vars(sys.modules["oneshot_nas.indicators.accuracy"]), "load_evaluator", load)
    assert search() == 0
    told = capsys.readouterr().err
    assert "note: the noise was not measured: the supernet has been trained on since this search began" in told
    assert read_json("found/result.json", "search-result")["noise"] is None


def test_json_is_alone_on_stdout(capsys):
    assert search("--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "search-result" and result["version"] == 1
    assert run(["history", "found", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == list(range(12))
    assert {"index", "arch", "cost", "scores", "parents", "seconds"} <= set(lines[0])
    assert lines[0]["timings"] == {"calibrate_seconds": 0.25, "validate_seconds": 0.5}
    assert max(line["scores"]["top1"] for line in lines) == result["best"]["scores"]["top1"]
    assert run(["history", "found"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 13 and table[0].split() == ["index", "FLOPs", "params", "top1", "top5", "seconds", "parents"]


def test_an_interrupted_search_resumes(capsys):
    Fake.interrupted_at = 6
    assert search() == 130
    assert "same command resumes" in error_of(capsys)
    assert run(["history", "found", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert search("--repeats", "0") == 0
    assert Fake.calls == 12 + 1
    assert search("--repeats", "0", budget=14) == 0
    assert Fake.calls == 12 + 1 + 2


def test_a_failed_candidate_is_shown(capsys):
    Fake.fails_at = 3
    assert search() == 0
    assert "12, 1 failed" in capsys.readouterr().out
    assert run(["history", "found"]) == 0
    assert "failed: RuntimeError: no accuracy today" in capsys.readouterr().out.splitlines()[3]


@pytest.mark.parametrize(("words", "message"), [
    (["--predictor", "x.npz"], "--predictor goes with --indicator predictor"),
    (["--indicator", "luck"], "unknown indicator 'luck'"),
    (["--objective", "speed"], "unknown objective 'speed'"), (["--algorithm", "anneal"], "unknown search algorithm 'anneal'"),
    (["--flops", "1G:2G"], "reachable is"), (["--flops", "x"], "FLOPs limit 'x'"), (["--rule", "x"], "unknown cost rule"),
    (["--over", "width"], "no choice"), (["--base", "none.json"], "cannot read"), (["--base", ""], "cannot read"),
    (["--base", "-"], "--base - cannot be repeated"), (["--storage", ""], "not a database URL"),
    (["--objective", "micronet", "--micronet-weight", "inf"], "--micronet-weight inf is no number to multiply with"),
    (["--base-weights", ""], "--base-weights goes with --indicator angle"), (["--compare", ""], "--compare goes with"),
    (["--population", "0"], "population must be at least 1"), (["--budget", "0"], "budget must be at least 1"),
    (["--storage", "nonsense"], "not a database URL"), (["--against", "speed"], "Pareto front"),
    (["--workers", "0"], "--workers"), (["--algorithm", "coarse-to-fine"], "('block') of 'spos_shufflenet' are not"),
    (["--indicator", "predictor", "--predictor", "none.npz"], "cannot read predictor none.npz: No such file"),
    (["--indicator", "predictor", "--children", "3"], "3 children are no choice for a population of 4"),
    (["--targets", "0"], "no number of targets"), (["--targets", "x"], "neither a number of targets"),
    (["--targets", "4.5M,9M"], "FLOPs target 9M is outside the reachable range 4M:5M"),
    (["--targets", "4", "--algorithm", "nsga2"], "do not go with algorithm 'nsga2'"),
])
def test_wrong_use_is_one_line_and_leaves_no_study(words, message, capsys):
    assert search(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1
    assert message in captured.err
    assert not RunFolder("found").study.exists()


def test_another_search_in_the_same_folder_is_refused(capsys):
    assert search() == 0
    capsys.readouterr()
    assert search("--seed", "1") == 2
    assert "seed: 0 -> 1" in error_of(capsys)
    assert search("--storage", "sqlite:///other.db") == 2
    assert "holds a search whose history is study 'search'" in error_of(capsys)


def test_a_training_run_is_no_place_for_a_search(tmp_path, capsys):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "config.yaml").write_text("space: spos_shufflenet\n")
    assert search() == 2
    assert "holds a training run, not a search" in error_of(capsys)
    assert run(["history", "found"]) == 2
    assert run(["history", "missing"]) == 2
    assert "no run folder missing" in error_of(capsys)


def test_a_second_process_on_the_folder_is_refused(capsys):
    with RunFolder("found").lock():
        assert search() == 2
    assert "another process is working in found" in error_of(capsys)


def test_a_shared_storage_serves_two_folders(capsys):
    assert search("--storage", "sqlite:///shared.db", budget=6) == 0
    assert search("--storage", "sqlite:///shared.db", out="second") == 0
    assert Fake.calls == 12 + 2 * 6  # twelve candidates in all, and each time six repeats
    capsys.readouterr()
    for folder in ("found", "second"):
        assert run(["history", folder, "--json"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 12
    assert search("--storage", "sqlite:///shared.db", "--seed", "1", out="third") == 2
    assert search("--storage", "sqlite:///shared.db", "--seed", "1", "--study", "b", out="third") == 0


def test_passwords_are_not_written(tmp_path, capsys):
    from oneshot_nas.search.record import save_record

    run_folder = RunFolder("found")
    save_record(run_folder, {"supernet": "super", "storage": "postgresql://user:pa55@host/name", "base": None, "workers": 2})
    assert "pa55" not in run_folder.config.read_text()
    words = yaml.safe_load(run_folder.config.read_text())["command"]
    assert words == f"oneshot-nas search --supernet {tmp_path / 'super'} --storage 'postgresql://user:***@host/name' --workers 2"
    assert run(["history", "found"]) == 2
    assert "password is not recorded; give --storage" in error_of(capsys)


def test_help_has_an_example(capsys):
    for name in ("search", "history", "dashboard"):
        assert run([name, "--help"]) == 0
        assert "Example:" in capsys.readouterr().out


def test_the_dashboard_shows_the_search(capsys):
    assert search() == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["dashboard", "found", "--port", str(port)]) == 2
        assert f"cannot listen on 127.0.0.1:{port}" in error_of(capsys)
    process = subprocess.Popen([sys.executable, "-m", "oneshot_nas", "dashboard", "found", "--port", str(port)],
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr and f"http://127.0.0.1:{port}/dashboard/studies/1" in process.stderr.readline()
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
                    studies = json.load(answer)["study_summaries"]
                break
            except OSError:
                time.sleep(0.1)
        assert [study["study_name"] for study in studies] == ["search"]
    finally:
        process.kill()
        process.communicate()


def test_a_missing_dashboard_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert run(["dashboard", "found"]) == 2
    assert "pip install -c constraints.txt -e '.[dashboard]' in the checkout adds it" in error_of(capsys)
