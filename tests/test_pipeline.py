"""The whole road through the command line on tiny data: supernet, evaluate, search, retrain, export, plot."""

import json

import numpy as np
import pytest
import tiny
import yaml
from mxnet import nd

from oneshot_nas.arch import read_arch_file
from oneshot_nas.cli.main import run
from oneshot_nas.config import dump_recipe
from oneshot_nas.data.loader import decode_images
from oneshot_nas.indicators.accuracy import load_evaluator
from oneshot_nas.train.loop import train
from oneshot_nas.train.runs import load_supernet


def call(*words):
    """Exit code of a command."""
    return run(list(map(str, words)))


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A folder in which supernet, search and retrain have run."""
    folder = tmp_path_factory.mktemp("road")
    data = tiny.write_data(folder / "data", train=96)
    (folder / "supernet.yaml").write_text(dump_recipe(tiny.narrow_supernet(data)))
    retrain = yaml.safe_load(dump_recipe(tiny.recipe(data, model="oneshot")))
    (folder / "retrain.yaml").write_text(yaml.safe_dump(retrain))
    assert call("train", "--recipe", folder / "supernet.yaml", "--out", folder / "supernet") == 0
    assert call("search", "--supernet", folder / "supernet", "--out", folder / "search", "--budget", 4, "--population", 2) == 0
    assert call("train", "--recipe", folder / "retrain.yaml", "--arch", folder / "search" / "arch.json", "--out",
                folder / "retrain") == 0
    return folder


def test_the_supernet_run_says_what_it_is(road):
    about = json.loads((road / "supernet" / "supernet.json").read_text())
    assert about["kind"] == "supernet" and about["space"] == "spos_shufflenet" and about["options"]["classes"] == tiny.CLASSES
    holdout = about["holdout"]
    assert len(holdout["calibration"]) == len(holdout["validation"]) == 8
    assert not set(holdout["calibration"]) & set(holdout["validation"])
    assert about["preprocessing"]["input_size"] == tiny.SIZE


def test_the_winner_is_inside_the_space_the_supernet_was_trained_in(road):
    arch = json.loads((road / "search" / "arch.json").read_text())
    assert set(arch["choices"]["block"]) == {"shuffle3"}


def test_evaluate_repeats_the_score_of_the_search(road, capsys):
    best = json.loads((road / "search" / "result.json").read_text())["best"]
    assert call("evaluate", "--supernet", road / "supernet", "--arch", road / "search" / "arch.json", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["top1"] == best["scores"]["top1"] and scores["images"] == 8


def test_a_final_figure_is_measured_on_every_image_of_the_validation_set(road, capsys):
    folder, best = road / "supernet", road / "search" / "arch.json"
    assert call("evaluate", "--supernet", folder, "--arch", best, "--split", "val", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    evaluator = load_evaluator(folder)
    supernet = load_supernet(folder)
    images, labels = decode_images(supernet.source(), range(16), supernet.preprocessing, part="val")
    logits = evaluator.network(read_arch_file(str(best)))(nd.array(images)).asnumpy()
    assert scores["images"] == 16 and scores["top1"] == np.mean(logits.argmax(axis=1) == labels)


def test_evaluate_of_several_names_no_single_one_to_train(road, capsys, tmp_path):
    best = (road / "search" / "arch.json").read_text()
    several = tmp_path / "archs.jsonl"
    several.write_text(2 * (json.dumps(json.loads(best)) + "\n"))
    assert call("evaluate", "--supernet", road / "supernet", "--arch", several, "--json") == 0
    out, err = capsys.readouterr()
    told = read_arch_file(str(road / "search" / "arch.json")).to_json()
    assert [json.loads(line)["arch"] for line in out.splitlines()] == [told, told] and "next:" not in err


def test_evaluate_a_fixed_network_repeats_the_last_validation(road, capsys):
    last = json.loads((road / "retrain" / "metrics.jsonl").read_text().splitlines()[-1])
    assert call("evaluate", "--run", road / "retrain", "--json") == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(last["val_top1"])


@pytest.mark.parametrize("source", ["run", "supernet"])
def test_export_is_read_back_and_compared(road, capsys, tmp_path, source):
    words = {"run": ["--run", road / "retrain"],
             "supernet": ["--supernet", road / "supernet", "--arch", road / "search" / "arch.json"]}[source]
    assert call("export", *words, "--format", "symbol,onnx", "--out", tmp_path, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["format"] for result in results] == ["symbol", "onnx"]
    for result in results:
        assert result["max_abs_diff"] < 1e-4 * result["std"]
        assert all((tmp_path / file.split("/")[-1]).is_file() for file in result["files"])


def test_a_gluoncv_network_is_evaluated_and_exported(road, tmp_path, capsys):
    train(tiny.gluoncv(road / "data", epochs=1), tmp_path / "run", lambda text: None)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert call("evaluate", "--run", tmp_path / "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(last["val_top1"])
    assert call("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--json") == 0
    assert [each["format"] for each in json.loads(capsys.readouterr().out)] == ["symbol", "onnx"]
    assert call("export", "--run", tmp_path / "run", "--out", tmp_path / "out", "--resize", "outside") == 2


def test_what_cannot_start_leaves_no_folder(road, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    for out in ("new", "mine"):
        assert call("train", "--recipe", road / "supernet/config.yaml", "--set", "data=nowhere", "--out", tmp_path / out) == 2
        assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and (tmp_path / "mine").exists()


def test_plots_of_every_run(road):
    for name in ("supernet", "search", "retrain"):
        assert call("plot", road / name) == 0
        assert list((road / name / "plots").glob("*.png"))


@pytest.mark.parametrize(("words", "message"), [
    (["evaluate", "--supernet", "{road}/retrain", "--arch", "{road}/search/arch.json"], "supernet"),
    (["evaluate", "--run", "{road}/supernet"], "not the run of a trained fixed network"),
    (["evaluate", "--run", "{road}/nothing"], "no run folder"),
    (["evaluate"], "either --supernet RUN"),
    (["evaluate", "--supernet", "{road}/supernet", "--arch", "{road}/search/arch.json", "--val-images", "9999"], "kept 8 aside"),
    (["evaluate", "--supernet", "{road}/supernet", "--arch", "{road}/search/arch.json", "--split", "train"],
     "none of held-out, val"),
    (["evaluate", "--supernet", "{road}/supernet", "--arch", "{road}/search/arch.json", "--split", "val", "--val-images", "4"],
     "leave out --val-images"),
    (["export", "--run", "{road}/retrain", "--format", "int8", "--out", "{road}/x"], "not there yet"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--latency", ":3"], "latency) is not there yet"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--objective", "latency"], "not there yet"),
    (["train", "--recipe", "{road}/search/config.yaml", "--out", "{road}/x"], "is of kind 'search', expected 'recipe'"),
    (["export", "--run", "{road}/retrain", "--out", "{road}/retrain/arch.json/x"], "a part of it is a file"),
    (["export", "--run", "{road}/retrain", "--format", "jpeg", "--out", "{road}/x"], "unknown format"),
    (["export", "--out", "{road}/x"], "either --run RUN"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--flops", ":1"], "reachable"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--indicator", "loss"], "unknown indicator"),
])
def test_wrong_use_is_one_line_and_exit_2(road, capsys, words, message):
    capsys.readouterr()
    assert call(*(word.format(road=road) for word in words)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1


def test_an_architecture_of_another_space_is_named(road, capsys, tmp_path):
    arch = json.loads((road / "search" / "arch.json").read_text())
    arch["options"]["layout"] = "oneshot"
    (tmp_path / "arch.json").write_text(json.dumps(arch))
    assert call("evaluate", "--supernet", road / "supernet", "--arch", tmp_path / "arch.json") == 2
    assert "'layout' = 'oneshot'" in capsys.readouterr().err


def test_data_that_moved_is_told_with_the_file_that_names_it(road, capsys):
    (road / "data").rename(road / "elsewhere")
    try:
        assert call("evaluate", "--supernet", road / "supernet", "--arch", road / "search" / "arch.json") == 2
    finally:
        (road / "elsewhere").rename(road / "data")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{road / 'supernet' / 'config.yaml'} says where the data" in error
