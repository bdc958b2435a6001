"""The whole road through the command line on tiny data: supernet, evaluate, search, retrain, export, plot."""

import io
import json
import shlex
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from mxnet import nd

from oneshot_nas import progress
from oneshot_nas.arch import read_arch_file, read_archs
from oneshot_nas.cli._found import run_name
from oneshot_nas.cli.main import run
from oneshot_nas.config import Recipe, dump_recipe
from oneshot_nas.data.augment import make_augment
from oneshot_nas.data.loader import decode_images
from oneshot_nas.indicators.accuracy import _chosen, load_evaluator
from oneshot_nas.quickstart import table
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


@pytest.fixture
def several(road, tmp_path):
    """A file with the winner of the search, twice."""
    best = json.loads((road / "search" / "arch.json").read_text())
    (tmp_path / "archs.jsonl").write_text(2 * (json.dumps(best) + "\n"))
    return tmp_path / "archs.jsonl"


def test_evaluate_of_several_names_no_single_one_to_train(road, several, capsys):
    assert call("evaluate", "--supernet", road / "supernet", "--arch", several, "--json") == 0
    out, err = capsys.readouterr()
    told = read_arch_file(str(road / "search" / "arch.json")).to_json()
    assert [json.loads(line)["arch"] for line in out.splitlines()] == [told, told] and "next:" not in err


def test_evaluate_a_fixed_network_repeats_the_last_validation(road, capsys):
    last = json.loads((road / "retrain" / "metrics.jsonl").read_text().splitlines()[-1])
    assert call("evaluate", "--run", road / "retrain", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["top1"] == pytest.approx(last["val_top1"])
    assert told["arch"]["choices"] == json.loads((road / "retrain" / "arch.json").read_text())["choices"]


def test_long_evaluations_show_how_far_they_are(road, several, capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    folder = road / "supernet"
    for words, told in ((["--supernet", folder, "--arch", several], "evaluating: architecture 1 of 2"),
                        (["--supernet", folder, "--arch", several, "--split", "val"], "validating: batch 1 of 1"),
                        (["--run", road / "retrain"], "validating: batch 1 of 2")):
        assert call("evaluate", *words) == 0
        assert told in capsys.readouterr().err, words


@pytest.fixture
def zero_weights(monkeypatch):
    """Supernets are loaded with weights that are zero."""
    def load(folder):
        found = load_supernet(folder)
        for parameter in found.net.collect_params().values():
            parameter.set_data(nd.zeros_like(parameter.data()))
        return found

    monkeypatch.setattr("oneshot_nas.indicators.accuracy.load_supernet", load)


def test_weights_that_classify_nothing_are_told(road, capsys, tmp_path, zero_weights):
    folder = road / "supernet"
    assert call("evaluate", "--supernet", folder, "--arch", road / "search" / "arch.json") == 0
    out, err = capsys.readouterr()
    assert "top1 0.0000" in out
    assert "warning: not one image was classified rightly" in err and f"look at the training of {folder}" in err
    words = ["--algorithm", "random", "--budget", 2, "--repeats", 1]
    for form in ([], ["--json"]):
        assert call("search", "--supernet", folder, "--out", tmp_path / "s", *words, *form) == 0
        assert "warning: not one image was classified rightly" in capsys.readouterr().err


def test_sound_weights_are_not_warned_of(road, capsys):
    assert call("evaluate", "--supernet", road / "supernet", "--arch", road / "search" / "arch.json") == 0
    assert "warning" not in capsys.readouterr().err


def next_words(err):
    """The words of the commands that stderr names."""
    return [shlex.split(line.removeprefix("next: "))[1:] for line in err.splitlines() if line.startswith("next: ")]


@pytest.mark.parametrize("words", [[], ["--split", "val"], ["--json"]])
def test_evaluate_names_another_run_to_train_for_each_architecture(road, capsys, tmp_path, words):
    best = (road / "search" / "arch.json").read_text()
    (tmp_path / "my other.json").write_text(best)
    found = []
    for path in (road / "search" / "arch.json", tmp_path / "my other.json"):
        assert call("evaluate", "--supernet", road / "supernet", "--arch", path, *words) == 0
        found += next_words(capsys.readouterr().err)
    given = (road / "search" / "arch.json", road / "search-retrain"), (tmp_path / "my other.json", tmp_path / "my other-retrain")
    assert found == [["train", "--recipe", str(road / "supernet" / "config.yaml"), "--arch", str(arch), "--out", str(out)]
                     for arch, out in given]


@pytest.mark.parametrize(("arch", "name"), [
    ("runs/search/arch.json", "runs/search"), ("other.json", "other"), ("arch.json", "arch"), ("../arch.json", "../arch"),
    ("/arch.json", "/arch"), ("a.b/net.v2.jsonl", "a.b/net.v2"), ("net", "net"),
])
def test_a_network_is_called_after_its_architecture(arch, name):
    assert run_name(arch) == name


def test_evaluate_of_standard_input_names_nothing_to_train(road, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO((road / "search" / "arch.json").read_text()))
    assert call("evaluate", "--supernet", road / "supernet", "--arch", "-") == 0
    assert "next:" not in capsys.readouterr().err


def test_repeats_of_a_search_see_other_images_and_the_search_the_same(road):
    calibration = load_supernet(road / "supernet").holdout.calibration
    assert _chosen(calibration, None, "calibration", 0) == list(calibration)
    halves = [set(_chosen(calibration, None, "calibration", seed)) for seed in (1, 2)]
    assert [len(half) for half in halves] == [4, 4] and halves[0] != halves[1] and halves[0] | halves[1] < set(calibration)
    assert [_chosen((1, 2, 3, 4, 5), 2, "calibration", seed) for seed in range(2)] == [[1, 2], [3, 4]]
    few = [_chosen(range(1000), 512, "calibration", seed) for seed in range(4)]  # no second set without shared images
    assert all(len(set(one)) == 512 for one in few)
    shared = [len(set(one) & set(other)) for one, other in combinations(few, 2)]
    assert max(shared) < 300 and few[1] == _chosen(range(1000), 512, "calibration", 1)
    assert [len(batch) for batch in load_evaluator(road / "supernet", seed=1).calibration] == [4]
    result = json.loads((road / "search" / "result.json").read_text())
    assert result["noise"]["halves"] and result["about"]["calibration"] == 8 and result["about"]["seed"] == 0


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
        if source == "supernet":  # which weights, and what the statistics were estimated from
            about = json.loads((tmp_path / "network-0000.params.json").read_text())["statistics"]
            run = load_supernet(road / "supernet")
            assert about == {"weights": run.digest, "list": "holdout.calibration of the supernet.json", "seed": 0, "images": 8,
                             "augment": True, "method": "population"}
        for weights, told in (("real", result), ("randomised", result["randomised"])):
            figures = f"max abs diff {told['max_abs_diff']:.3g}, outputs' std {told['std']:.3g}"
            assert any(f"{weights} weights" in check and figures in check for check in result["checks"])
    if source == "run":
        assert call("export", *words, "--format", "onnx", "--out", tmp_path) == 0
        line = capsys.readouterr().out
        figures = [f"{result['max_abs_diff']:.1e}", f"{result['std']:.3g}", f"{result['randomised']['max_abs_diff']:.1e}",
                   f"{result['randomised']['std']:.3g}"]
        expected = "onnx    {}  max abs diff {} (outputs' std {}); with random weights {} (std {})\n"
        assert line == expected.format(tmp_path / "network.onnx", *figures)


def test_a_subnet_is_exported_with_the_statistics_it_was_judged_with(road, capsys, tmp_path):
    own = ["--supernet", road / "supernet", "--arch", road / "search" / "arch.json"]
    for place, words in enumerate(([], ["--calib-images", 3], ["--calib-images", 3, "--method", "cumulative"])):
        assert call("export", *own, *words, "--format", "symbol", "--out", tmp_path / str(place)) == 0
    found = [nd.load(str(tmp_path / str(place) / "network-0000.params")) for place in range(3)]
    for first, second in ((0, 1), (1, 2)):
        same = {name: bool((found[first][name] == found[second][name]).asnumpy().all()) for name in found[0]}
        assert not all(same.values()) and all(value for name, value in same.items() if "running" not in name)
    capsys.readouterr()
    assert call("export", "--run", road / "retrain", "--calib-images", 3, "--out", tmp_path / "x") == 2
    assert "a trained network keeps its statistics" in capsys.readouterr().err
    assert call("evaluate", *own, "--calib-images", 3, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["calibration"], scores["augment"], scores["method"]) == (3, True, "population")


def test_calibration_images_vary_as_in_training_unless_the_recipe_says_otherwise(road, tmp_path):
    """Weights fit the statistics of the images they saw: on CIFAR-10 those of plain images cost 5 points."""
    run = load_supernet(road / "supernet")
    positions = run.holdout.calibration
    plain, _ = decode_images(run.source(), positions, run.preprocessing)
    varied, _ = decode_images(run.source(), positions, run.preprocessing, augment=make_augment("digits"), seed=run.recipe.seed)
    assert not (plain == varied).all()
    other = tmp_path / "supernet"
    shutil.copytree(road / "supernet", other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["holdout"]["augment"] = False
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    for folder, expected in ((road / "supernet", varied), (other, plain)):
        evaluator = load_evaluator(folder)
        assert np.array_equal(np.concatenate([batch.asnumpy() for batch in evaluator.calibration]), expected)
        assert evaluator.about["augment"] == (folder != other)


def test_the_end_of_the_quickstart_reads_what_the_commands_write(road, tmp_path):
    for name in ("search", "retrain"):
        shutil.copytree(road / name, tmp_path / name)
    assert call("export", "--run", road / "retrain", "--format", "symbol", "--out", tmp_path / "export") == 0
    told = table(tmp_path)
    best = json.loads((road / "search" / "result.json").read_text())["best"]["scores"]["top1"]
    last = json.loads((road / "retrain" / "result.json").read_text())["last"]["val_top1"]
    assert f"{best:.2%} on held-out" in told and f"{last:.2%} on the validation set" in told
    assert "network-symbol.json" in told and "next:" in told


def test_config_yaml_is_the_whole_resolved_recipe_and_trains_the_same(road, tmp_path):
    for name in ("supernet", "retrain"):
        config = yaml.safe_load((road / name / "config.yaml").read_text())
        assert set(config) == {"kind", "version", *Recipe.model_fields}
        assert config["crop_ratio"] == 1.0 and len(config["mean"]) == len(config["std"]) == 3
        words = ["train", "--recipe", road / name / "config.yaml", "--set", "epochs=2", "--out", tmp_path / name]
        assert call(*words) == 0
        one, other = (json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (road, tmp_path))
        assert {**one, "timing": 0} == {**other, "timing": 0}
        assert (tmp_path / name / "config.yaml").read_text() == (road / name / "config.yaml").read_text()
    assert config["arch"]["options"]["classes"] == 4
    config = yaml.safe_load((road / "supernet" / "config.yaml").read_text())
    assert config["options"] == dict(load_supernet(road / "supernet").space.options)
    assert (config["holdout"]["calibration"], config["holdout"]["validation"]) == (8, 8)


def test_what_needs_no_validation_images_works_without_them(road, tmp_path, monkeypatch):
    """Export and a start from the supernet recalibrate only: they neither need nor decode the validation list."""
    folder = tmp_path / "supernet"
    shutil.copytree(road / "supernet", folder)
    about = json.loads((folder / "supernet.json").read_text())
    about["holdout"]["validation"] = []
    (folder / "supernet.json").write_text(json.dumps(about))
    arch = road / "search" / "arch.json"
    assert call("evaluate", "--supernet", folder, "--arch", arch) == 2
    assert call("evaluate", "--supernet", folder, "--arch", arch, "--split", "val") == 0
    assert call("export", "--supernet", folder, "--arch", arch, "--format", "symbol", "--out", tmp_path / "export") == 0
    assert call("train", "--recipe", road / "retrain.yaml", "--arch", arch, "--from-supernet", folder, "--set", "epochs=1",
                "--out", tmp_path / "tuned") == 0


def test_what_the_architecture_fixes_cannot_be_set_beside_it(road, capsys, tmp_path):
    words = ["train", "--recipe", road / "retrain.yaml", "--arch", road / "search" / "arch.json", "--out", tmp_path / "run"]
    for change in ("options.input_size=32", "options.se=true", "model=oneshot"):
        assert call(*words, "--set", change) == 2
        key = change.partition("=")[0]
        assert f"--set {key} would change the network, which the architecture fixes" in capsys.readouterr().err
    recipe = yaml.safe_load((road / "retrain.yaml").read_text()) | {"options": {"classes": 4}}
    del recipe["model"]
    recipe["arch"] = json.loads((road / "search" / "arch.json").read_text())
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(recipe))
    assert call("train", "--recipe", tmp_path / "both.yaml", "--out", tmp_path / "run") == 2
    assert "'options' are of a space or a model; an architecture has its own, inside 'arch'" in capsys.readouterr().err


def test_an_unfinished_or_broken_supernet_is_told(road, capsys, tmp_path):
    folder = tmp_path / "supernet"
    shutil.copytree(road / "supernet", folder)
    words = ["evaluate", "--supernet", folder, "--arch", road / "search" / "arch.json"]
    latest = json.loads((folder / "checkpoint" / "latest.json").read_text())
    for epoch, said in ((latest["epoch"], None), (0, "has not been trained yet, its weights are random")):
        (folder / "checkpoint" / "latest.json").write_text(json.dumps({**latest, "epoch": epoch}))
        assert call(*words) == 0
        err = capsys.readouterr().err
        assert "warning" not in err if said is None else f"warning: the supernet in {folder} {said}" in err
    weights = next((folder / "checkpoint").glob("weights-*.params"))
    arrays = nd.load(str(weights))
    arrays["stem.bn.gamma"][0] = float("nan")
    nd.save(str(weights), arrays)
    assert call(*words) == 2
    assert "holds numbers that are not finite (1 arrays: stem.bn.gamma): training diverged" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["file", "-"])
def test_several_architectures_are_exported_under_a_name_each(road, capsys, tmp_path, monkeypatch, source):
    first = json.loads((road / "search" / "arch.json").read_text())
    second = {**first, "choices": {**first["choices"], "scale": [1.8] * 20}}
    several = tmp_path / "archs.jsonl"
    several.write_text("".join(json.dumps(arch) + "\n" for arch in (first, second)))
    monkeypatch.setattr("sys.stdin", io.StringIO(several.read_text()))
    words = ["--supernet", road / "supernet", "--arch", several if source == "file" else "-", "--out", tmp_path / "out"]
    assert call("export", *words, "--format", "symbol", "--name", "net", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["files"] for result in results] == [
        [str(tmp_path / "out" / f"net-{number}-{end}") for end in ("symbol.json", "0000.params")] for number in (1, 2)]
    for arch, result in zip(read_archs(str(several)), results, strict=True):
        assert json.loads(Path(f"{result['files'][1]}.json").read_text())["arch"] == arch.to_json()


def test_commands_named_after_the_search_of_an_elastic_supernet_work(road, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tiny.sandwich(road / "data", epochs=1), "my supernet", lambda text: None)
    words = ["--budget", 4, "--population", 2, "--targets", 2]
    assert call("search", "--supernet", "my supernet", "--out", "my family", *words) == 0
    commands = next_words(capsys.readouterr().err)
    assert [command[0] for command in commands] == ["evaluate", "export", "plot", "history"]
    for command in commands:
        assert call(*command) == 0
    assert sorted(path.name for path in Path("my family/export").glob("*.onnx")) == ["network-1.onnx", "network-2.onnx"]
    capsys.readouterr()
    assert call("evaluate", "--supernet", "my supernet", "--arch", "my family/arch.json") == 0
    assert next_words(capsys.readouterr().err) == [["export", "--supernet", "my supernet", "--arch", "my family/arch.json",
                                                    "--out", "my family/export"]]
    assert call("evaluate", "--supernet", "my supernet", "--arch", "my family/arch.json", "--calib-images", 4) == 0
    assert next_words(capsys.readouterr().err) == [["export", "--supernet", "my supernet", "--arch", "my family/arch.json",
                                                    "--calib-images", "4", "--out", "my family/export"]]
    assert call("search", "--supernet", "my supernet", "--out", "few", "--calib-images", 4, *words) == 0
    assert [words.count("--calib-images") for words in next_words(capsys.readouterr().err)] == [1, 1, 0, 0]


def test_weights_alone_rank_elastic_networks_too(road, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tiny.sandwich(road / "data", epochs=1), "supernet", lambda text: None)
    few = ["--supernet", "supernet", "--budget", 4, "--population", 2]
    for indicator in ("angle", "bn-gamma"):
        assert call("search", *few, "--out", indicator, "--indicator", indicator) == 0, capsys.readouterr().err
        assert call("evaluate", "--supernet", "supernet", "--arch", f"{indicator}/arch.json", "--indicator", indicator) == 0
    capsys.readouterr()
    assert call("search", "--supernet", "supernet", "--out", "exact", "--indicator", "bn-gamma", "--algorithm", "exact",
                "--compare", "bn-gamma") == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    logged = [line.split(" ", 2)[2] for line in Path("exact/log.txt").read_text().splitlines()]
    assert "regret" in out and logged == out.splitlines()


def test_a_gluoncv_network_is_evaluated_and_exported(road, tmp_path, capsys):
    train(tiny.gluoncv(road / "data", epochs=1), tmp_path / "run", lambda text: None)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert call("evaluate", "--run", tmp_path / "run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["top1"] == pytest.approx(last["val_top1"]) and told["model"] == "cifar_resnet20_v1"
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
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--against", "latency"], "latency) is not there yet"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--bits", "8"], "(bits) is not there yet; see: "),
    (["sample", "spos_shufflenet", "--latency", ":5"], "(latency) is not there yet; see: oneshot-nas sample --help"),
    (["detection"], "(detection) is not there yet; there is arch, convert"),
    (["train", "--recipe", "{road}/supernet.yaml", "--set", "latency=5", "--out", "{road}/s2"], "latency) is not there yet"),
    (["train", "--recipe", "{road}/supernet.yaml", "--set", "data=", "--out", "{road}/s2"], "no data set given; add --set data="),
    (["train", "--recipe", "{road}/supernet.yaml", "--set", "data={road}/supernet.yaml", "--out", "{road}/s2"], "no .rec file"),
    (["train", "--recipe", "{road}/supernet.yaml", "--set", "epochs=99999999999999999999", "--out", "{road}/s2"], "1000000"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--algorithm", "latency"], "not there yet"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--rule", "latency"], "latency) is not there yet"),
    (["evaluate", "--supernet", "{road}/supernet", "--arch", "x", "--indicator", "latency"], "latency) is not there yet"),
    (["train", "--recipe", "{road}/supernet.yaml", "--set", "kvstore=dist_sync", "--out", "{road}/s2"], "(kvstore) is not there"),
    (["quantize"], "int8 quantisation (quantize) is not there yet"),
    (["search", "--supernet", "{road}/supernet", "--out", "{road}/s2", "--population", "1" + 24 * "0"], "is too large; give"),
    (["export", "--run", "{road}/retrain", "--name", "../evil", "--out", "{road}/x"], "'../evil' is no file name"),
    (["export", "--run", "{road}/retrain", "--name", "", "--out", "{road}/x"], "'' is no file name"),
    (["evaluate", "--run", "{road}/retrain", "--method", "nope"], "a trained network keeps its BatchNorm statistics"),
    (["evaluate", "--run", "{road}/retrain", "--calib-images", "5"], "leave out --calib-images"),
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
