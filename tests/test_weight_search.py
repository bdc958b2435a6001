"""Commands on indicators that read weights alone: search, exact search with regret, evaluate, and every wrong use."""

import json
import os
import subprocess
import sys
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import tiny
from mxnet import nd

from oneshot_nas.arch import read_arch_file
from oneshot_nas.cli.main import run
from oneshot_nas.config import RunFolder, dump_recipe, read_recipe
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.exact import front_downwards
from oneshot_nas.errors import WorkError
from oneshot_nas.files import read_json
from oneshot_nas.indicators.bn_gamma import load_bn_gamma
from oneshot_nas.shell import program
from oneshot_nas.spacefile import write_space
from oneshot_nas.train.loop import train

ALLOWED = [["k3e3", "k5e3", "k7e6"] if place % 4 == 0 else ["k3e3"] for place in range(21)]  # 3^6 architectures


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """The run folder of a BN-only supernet, trained for a moment; its gammas are then moved further apart."""
    folder = tmp_path_factory.mktemp("weights")
    own = {"space": "proxyless_gpu", "options": {"layout": "small", "input_size": 16}, "allowed": {"op": ALLOWED}, "epochs": 1,
           "trainable": "scoring-bn", "holdout": {"calibration": 8, "validation": 8}}
    train(tiny.recipe(tiny.write_data(folder / "data"), **own), folder / "run", lambda text: None)
    weights = next((folder / "run" / "checkpoint").glob("weights-*.params"))
    arrays = nd.load(str(weights))
    for number, name in enumerate(sorted(arrays)):
        if name.endswith("gamma"):
            arrays[name] = nd.array(np.random.default_rng(number).normal(size=arrays[name].shape))
    nd.save(str(weights), arrays)
    return folder / "run"


@pytest.fixture(scope="module")
def everything(supernet):
    """(bn-gamma, FLOPs, architecture) of all architectures, by the slow way."""
    indicator = load_bn_gamma(supernet)
    archs = [indicator.space.decode(row) for row in product(*(range(len(v)) for _, _, v in indicator.space.positions))]
    return [(indicator(arch)["bn-gamma"], cost(arch).flops, arch) for arch in archs]


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def search(supernet, *words, out="found"):
    return run(["search", "--supernet", str(supernet), "--out", out, "--indicator", "bn-gamma", *words])


def error_of(capsys):
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def limit(everything, share):
    """FLOPs that this share of all architectures stays within."""
    return sorted(flops for _, flops, _ in everything)[int(share * len(everything))]


def test_exact_search_finds_the_best_of_all(supernet, everything, capsys):
    most = limit(everything, 0.3)
    assert search(supernet, "--algorithm", "exact", "--flops", f":{most}", "--top-k", "7") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("best        bn-gamma ") and "proved" in captured.out
    assert f"next: {program()} train --recipe" in captured.err
    result = read_json("found/result.json", "search-result")
    inside = sorted(((score, flops) for score, flops, _ in everything if flops <= most), reverse=True)
    assert [entry["fitness"] for entry in result["top"]] == pytest.approx([score for score, _ in inside[:7]])
    best = read_arch_file("found/arch.json")
    assert cost(best).flops <= most and load_bn_gamma(supernet)(best)["bn-gamma"] == pytest.approx(inside[0][0])
    front, score_so_far = [], -1.0
    for flops, score in sorted((flops, -score) for score, flops in inside):
        if -score > score_so_far:
            front.append((flops, pytest.approx(-score)))
            score_so_far = -score
    assert [(entry["cost"]["flops"], entry["fitness"]) for entry in result["front"]] == front
    assert search(supernet, "--algorithm", "exact", "--flops", f":{most}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["best"] == result["best"]


def test_the_regret_of_an_evolution_is_told(supernet, everything, capsys):
    most = limit(everything, 0.5)
    words = ["--flops", f":{most}", "--budget", "12", "--population", "4"]
    assert search(supernet, *words, out="evolved") == 0
    evolved = read_json("evolved/result.json", "search-result")
    assert evolved["objective"] == "bn-gamma" and evolved["noise"] is None
    assert search(supernet, "--algorithm", "exact", "--flops", f":{most}", "--compare", "evolved") == 0
    assert "regret" in capsys.readouterr().out
    found = read_json("found/result.json", "search-result")["compared"]
    best = max(score for score, flops, _ in everything if flops <= most)
    assert found["regret"] == pytest.approx(best - evolved["best"]["fitness"]) and found["regret"] >= 0
    assert (found["index"], found["candidates"]) == (evolved["best"]["index"], 12)
    angle = ["search", "--supernet", str(supernet), "--out", "angled", "--indicator", "angle", *words]
    assert run(angle) == 2  # nothing but gammas has moved
    assert "indicator 'angle' is 0 for each of 256 random architectures, so it says nothing here" in error_of(capsys)
    arrays = nd.load(str(next((supernet / "checkpoint").glob("weights-*.params"))))
    nd.save("base.params", {name: array + nd.random.normal(shape=array.shape) for name, array in arrays.items()})
    assert run([*angle, "--base-weights", "base.params"]) == 0
    capsys.readouterr()
    assert search(supernet, "--algorithm", "exact", "--compare", "angled", out="other") == 2
    assert "was scored by something else" in error_of(capsys)
    part = everything[0][2]
    write_space("part.json", load_bn_gamma(supernet).space.freeze(part, []))  # another network than all the evolution tried
    if part.to_json() in [entry["arch"] for entry in map(json.loads, history_lines(capsys))]:
        pytest.fail("the evolution has met the one network of the part; take another one")
    assert search(supernet, "--algorithm", "exact", "--compare", "evolved", "--space", "part.json", out="other") == 2
    assert "holds no candidate of the searched space inside the limits" in error_of(capsys)
    least = f":{limit(everything, 0)}"
    assert search(supernet, "--algorithm", "exact", "--compare", "evolved", "--flops", least, out="other") == 2
    assert "holds no candidate of the searched space inside the limits" in error_of(capsys)


def test_a_shrunk_space_is_searched(supernet, everything, capsys):
    space = load_bn_gamma(supernet).space
    left = space.restrict({"op": [values[:2] for values in space.choices[0].values]})
    write_space("space.json", left)
    inside = [score for score, _, arch in everything if all(v != "k7e6" for v in arch.choices["op"])]
    assert search(supernet, "--algorithm", "exact", "--space", "space.json") == 0
    assert read_json("found/result.json", "search-result")["best"]["fitness"] == pytest.approx(max(inside))
    assert search(supernet, "--space", "space.json", "--budget", "64", "--population", "16", out="evolved") == 0
    assert read_json("evolved/result.json", "search-result")["best"]["fitness"] == pytest.approx(max(inside))
    capsys.readouterr()
    assert search(supernet, "--budget", "64", "--population", "16", out="evolved") == 2
    assert "belongs to another search" in error_of(capsys)
    write_space("space.json", space.restrict({"op": [values[:1] for values in space.choices[0].values]}))
    Path("space.json").write_text(Path("space.json").read_text().replace("k3e3", "k5e6", 1))
    assert search(supernet, "--space", "space.json", out="other") == 2
    assert "restriction of 'op'[0]" in error_of(capsys)


def history_lines(capsys):
    """The candidates of the evolution, as `history --json` prints them."""
    capsys.readouterr()
    assert run(["history", "evolved", "--json"]) == 0
    return capsys.readouterr().out.splitlines()


def test_evaluate_prints_the_indicator(supernet, everything, capsys):
    score, _, arch = everything[5]
    Path("archs.jsonl").write_text(json.dumps(arch.to_json()) + "\n")
    words = ["evaluate", "--supernet", str(supernet), "--arch", "archs.jsonl"]
    assert run([*words, "--indicator", "bn-gamma", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"arch": arch.to_json(), "bn-gamma": pytest.approx(score)}
    assert run([*words, "--indicator", "bn-gamma"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"bn-gamma {score:.6f}\n"
    assert captured.err == f"next: {program()} train --recipe {supernet}/config.yaml --arch archs.jsonl --out archs-retrain\n"
    assert run([*words, "--indicator", "angle", "--json"]) == 0  # frozen convolutions have not turned
    assert json.loads(capsys.readouterr().out) == {"arch": arch.to_json(), "angle": 0.0}
    assert run([*words, "--indicator", "accuracy", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"top1", "top5", "images"}


@pytest.mark.parametrize(("words", "message"), [
    (["--indicator", "accuracy"], "needs a score that is a sum over layers"),
    (["--indicator", "angle"], "is not a sum over layers"), (["--flops", ":1000"], "reachable is"),
    (["--over", "op"], "leave out --over"), (["--targets", "3"], "leave out --over"),
    (["--top-k", "0"], "top must be from 1"), (["--base-weights", "x"], "--base-weights goes with --indicator angle"),
    (["--compare", "nothing"], "no run folder nothing"), (["--space", "none.json"], "cannot read"),
    (["--algorithm", "evolution", "--compare", "x"], "--compare goes with --algorithm exact"),
    (["--supernet", "nowhere"], "no run folder nowhere"), (["--objective", "micronet"], "objective micronet"),
    (["--indicator", "angle", "--algorithm", "random", "--base-weights", "none"], "cannot read none"),
])
def test_wrong_use_is_one_line(words, message, supernet, capsys):
    assert search(supernet, "--algorithm", "exact", *words) == 2
    assert message in error_of(capsys)
    assert not RunFolder("found").result.exists()


@pytest.mark.parametrize(("words", "message"), [
    (["--indicator", "luck"], "unknown indicator 'luck'"), (["--indicator", "predictor"], "unknown indicator 'predictor'"),
    (["--base-weights", "x"], "--base-weights goes with"), (["--indicator", "angle", "--base-weights", "x"], "cannot read x"),
    (["--indicator", "bn-gamma", "--calib-images", "5"], "'bn-gamma' looks at no images: leave out --calib-images"),
    (["--indicator", "angle", "--method", "nonsense"], "'angle' looks at no images: leave out --calib-images"),
])
def test_wrong_use_of_evaluate_is_one_line(words, message, supernet, capsys, everything):
    Path("arch.json").write_text(json.dumps(everything[0][2].to_json()))
    assert run(["evaluate", "--supernet", str(supernet), "--arch", "arch.json", *words]) == 2
    assert message in error_of(capsys)


def test_a_run_without_its_first_weights_says_what_to_do(supernet, capsys, everything, tmp_path):
    (tmp_path / "arch.json").write_text(json.dumps(everything[0][2].to_json()))
    initial = RunFolder(supernet).initial
    content = initial.read_bytes()
    initial.unlink()
    try:
        assert run(["evaluate", "--supernet", str(supernet), "--arch", "arch.json", "--indicator", "angle"]) == 2
        assert "has no initial.params to measure angles from; give --base-weights" in error_of(capsys)
    finally:
        initial.write_bytes(content)


def test_a_front_that_cannot_be_proved_to_its_end_costs_no_result(supernet, capsys, monkeypatch):
    def two(*given):
        yield from islice(front_downwards(*given), 2)
        raise WorkError("no proof")

    monkeypatch.setattr("oneshot_nas.search.exact.front_downwards", two)
    assert search(supernet, "--algorithm", "exact") == 0
    result = read_json("found/result.json", "search-result")
    assert not result["front_complete"] and len(result["front"]) == 2
    assert result["front"][-1]["cost"] == result["best"]["cost"]
    assert "front       2 architectures that none beats in bn-gamma and flops; cheaper ones are not" in capsys.readouterr().out


def test_a_search_with_a_history_is_not_overwritten(supernet, capsys):
    assert search(supernet, "--budget", "4", "--population", "4") == 0
    capsys.readouterr()
    assert search(supernet, "--algorithm", "exact") == 2
    assert "holds a search with a history; give another --out" in error_of(capsys)


def test_an_exact_search_is_not_overwritten_and_its_pictures_come_from_the_result(supernet, capsys):
    assert search(supernet, "--algorithm", "exact") == 0
    capsys.readouterr()
    before = RunFolder("found").result.read_bytes()
    assert search(supernet, "--algorithm", "random", "--budget", "2", "--population", "2") == 2
    assert "holds an exact search; give another --out" in error_of(capsys) and RunFolder("found").result.read_bytes() == before
    assert search(supernet, "--algorithm", "exact", "--flops", ":1G") == 2
    assert "holds an exact search with another --flops (None); give another --out" in error_of(capsys)
    assert RunFolder("found").result.read_bytes() == before
    assert search(supernet, "--algorithm", "exact", "--top-k", "2", "--budget", "9", "--calib-images", "4") == 0
    told = capsys.readouterr().err
    assert "note: --budget has no effect: algorithm exact tries no candidates" in told
    assert "note: --calib-images has no effect: indicator 'bn-gamma' looks at no images" in told and "--top-k has" not in told
    idle = "--base found/arch.json --grid 9 --children 99 --top-k 3 --mutation 0.5 --micronet-weight 3"
    assert search(supernet, "--algorithm", "random", "--budget", "2", "--population", "2", *idle.split(), out="random") == 0
    told = capsys.readouterr().err
    for flag in ("base", "grid", "children", "top-k", "mutation", "micronet-weight"):
        assert f"note: --{flag} has no effect: " in told
    assert told.count("no effect") == 6
    for words in (["history", "found", "--json"], ["dashboard", "found"]):
        assert run(words) == 2 and "exact search, which keeps no candidates" in error_of(capsys)
    assert run(["plot", "found"]) == 0
    capsys.readouterr()
    assert {path.name for path in RunFolder("found").plots.iterdir()} == {"search.png", "architecture.png"}
    assert run(["plot", "found", "--compare", "found"]) == 2 and "leave out --compare" in error_of(capsys)


def test_the_recipe_of_a_bn_only_supernet_trains_all_of_its_winner(supernet):
    assert search(supernet, "--algorithm", "exact") == 0
    recipe = read_recipe(RunFolder(supernet).config, arch=read_arch_file("found/arch.json").to_json())
    assert recipe.trainable == "all" and read_recipe(RunFolder(supernet).config).trainable == "scoring-bn"


def test_bn_gamma_needs_no_forward_pass(supernet, tmp_path):
    """Not even a network is built: the module that would is not there."""
    code = ("import sys; from oneshot_nas.nets import supernet; supernet.Supernet.__init__ = None\n"
            "from oneshot_nas.cli.main import run\n"
            f"sys.exit(run(['search', '--supernet', {str(supernet)!r}, '--out', 'found', '--indicator', 'bn-gamma', "
            "'--algorithm', 'exact']))")
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_the_three_step_script_ends_with_a_trained_network(tmp_path):
    data = tiny.write_data(tmp_path / "data")
    own = {"space": "proxyless_gpu", "options": {"layout": "small", "input_size": 16}, "allowed": {"op": ALLOWED}, "epochs": 1}
    Path("supernet.yaml").write_text(dump_recipe(tiny.recipe(data, **own)))
    Path("retrain.yaml").write_text(dump_recipe(tiny.recipe(data, **own)))
    variables = {"DATA": str(data), "OUT": str(tmp_path / "runs"), "FLOPS": ":2.1M", "RULE": "macs", "PYTHON": sys.executable,
                 "SUPERNET_RECIPE": "supernet.yaml", "RETRAIN_RECIPE": "retrain.yaml"}
    script = Path(__file__).parents[1] / "scripts" / "bnnas.sh"
    done = subprocess.run(["sh", str(script), "--set", "epochs=1"], env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    best = read_arch_file("runs/search/arch.json")
    assert cost(best).flops <= 2.1e6 and read_arch_file("runs/net/arch.json") == best
    assert read_json("runs/net/result.json", "training-result")["epochs"] == 1
    for missing, message in (("", "DATA is unset"), ("nowhere", "DATA=nowhere is no folder")):
        done = subprocess.run(["sh", str(script)], env={**os.environ, "DATA": missing}, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr
