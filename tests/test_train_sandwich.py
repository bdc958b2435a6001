"""Runs with a sandwich, averaged weights and the collapse guard: what they write, how they recover, and that resume is exact."""

import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from mxnet import nd
from test_train_resume import Killed, break_at, quiet, result

from oneshot_nas.config import parse_recipe
from oneshot_nas.costs.analytic import cost
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.sections import Guard
from oneshot_nas.shell import program
from oneshot_nas.train import checkpoint, guard, loop
from oneshot_nas.train.loop import train

GUARD = {"window": 6, "patience": 2, "restores": 2, "factor": 3}
CASES = {
    "everything": lambda data: tiny.sandwich(
        data, epochs=2, ema=0.9, guard=GUARD, contexts=2, optimizer={"name": "nag", "lr": 0.02, "clip": 1.0, "clip_norm": 5.0},
        sampler={"name": "bestup", "bins": 3, "candidates": 2, "sandwich": {"random": 1, "distil": {"kind": "alpha"}}}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(CASES["everything"](data), out, quiet)
    return result(out)


def broken_at(monkeypatch, steps, what=math.nan, real=loop.run_step):
    """Let the losses that the guard sees at the given calls of `run_step` be `what`, and the gradients with them."""
    calls: list[None] = []

    def step(*given, accept, **options):
        calls.append(None)
        wrong = len(calls) - 1 in steps
        return real(*given, accept=(lambda losses: accept([each * what for each in losses])) if wrong else accept, **options)

    monkeypatch.setattr(loop, "run_step", step)
    return calls


def test_a_run_of_everything_at_once_writes_averaged_weights_and_is_validated_with_them(data, uninterrupted):
    files, metrics, _ = uninterrupted
    assert {"average-0002.params", "weights-0002.params", "optimizer-0002.arrays"} <= set(files)
    assert files["average-0002.params"] != files["weights-0002.params"]
    assert {"val_largest_top1", "val_smallest_top1", "val_top1", "skipped"} <= set(metrics[-1])


def test_broken_at_seams_it_ends_as_uninterrupted(data, uninterrupted, tmp_path, monkeypatch):
    recipe = CASES["everything"](data)
    for seam in [(loop, "run_step", 6, False), (checkpoint, "save_arrays", 3, False), (checkpoint, "write_json", 1, False)]:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            break_at(patch, *seam)
            train(recipe, tmp_path, quiet)
    train(recipe, tmp_path, quiet)
    assert result(tmp_path) == uninterrupted


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_train_sandwich as test
from oneshot_nas.train.loop import train
train(test.CASES["everything"](Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_kill_9_changes_nothing(data, uninterrupted, tmp_path):
    command = [sys.executable, "-c", CHILD.format(tests=str(Path(__file__).parent)), str(data), str(tmp_path)]
    for lines in (3, 0):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            for _ in range(lines):
                process.stderr.readline()
            if lines:
                time.sleep(0.2)
                process.kill()
            errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert result(tmp_path) == uninterrupted


def test_the_average_in_closed_form_and_shown_only_for_a_while():
    from mxnet.gluon import nn

    from oneshot_nas.train.average import Average

    net = nn.Dense(1, in_units=1, use_bias=False)
    net.initialize("zeros")
    average, expected = Average(net, 0.6), 0.0
    for update in range(1, 8):
        net.weight.set_data(nd.array([[update]]))
        average.update(update)
        decay = min(0.6, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert average.arrays["weight"].asscalar() == pytest.approx(expected, rel=1e-6)
    with average.shown():
        assert net.weight.data().asscalar() == pytest.approx(expected, rel=1e-6)
    assert net.weight.data().asscalar() == 7


def test_the_average_of_float16_weights_takes_small_steps():
    from mxnet.gluon import nn

    from oneshot_nas.train.average import Average

    net = nn.Dense(1, in_units=1, use_bias=False)
    net.initialize("ones")
    net.cast("float16")
    average = Average(net, 0.9999)
    net.weight.set_data(nd.array([[2]], dtype="float16"))
    for _ in range(5000):
        average.update(10**6)
    assert average.arrays["weight"].asscalar() == pytest.approx(2 - 0.9999**5000, abs=1e-3)
    with average.shown():
        assert net.weight.data().dtype == np.float16 and net.weight.data().asscalar() == pytest.approx(1.39, abs=0.01)


def test_averaged_weights_are_what_is_validated_and_loaded(data, tmp_path, monkeypatch):
    from oneshot_nas.indicators import accuracy
    from oneshot_nas.train.runs import load_supernet

    seen, real = [], accuracy.Evaluator.__call__

    def call(self, arch):
        seen.append({name: p.data().asnumpy() for name, p in self.net._collect_params_with_prefix().items()})
        return real(self, arch)

    monkeypatch.setattr(accuracy.Evaluator, "__call__", call)
    train(tiny.sandwich(data, epochs=1, ema=0.9), tmp_path, quiet)
    saved = nd.load(str(tmp_path / "checkpoint/average-0001.params"))
    loaded = load_supernet(tmp_path).net._collect_params_with_prefix()
    for name, array in saved.items():
        assert np.array_equal(array.asnumpy(), seen[0][name]) and np.array_equal(array.asnumpy(), loaded[name].data().asnumpy())


# --- the guard ---


@pytest.mark.parametrize(("what", "words"), [(math.nan, "its loss is nan"), (math.inf, "its loss is inf"),
                                             (50.0, "is more than 3 times the median")])
def test_a_single_bad_step_is_skipped_and_told(data, what, words, tmp_path, monkeypatch):
    log: list[str] = []
    broken_at(monkeypatch, {3, 6}, what)
    last = train(tiny.sandwich(data, guard=GUARD), tmp_path, log.append)
    warnings = [line for line in log if line.startswith("warning: step skipped (1 in a row)")]
    assert len(warnings) == 2 and all(words in line for line in warnings)
    assert last["skipped"] == 2 and math.isfinite(last["loss"])
    assert json.loads((tmp_path / "checkpoint/latest.json").read_text())["state"]["restores"] == 0


def test_repeated_bad_steps_restore_the_last_checkpoint_and_the_run_goes_on(data, tmp_path, monkeypatch):
    log: list[str] = []
    calls = broken_at(monkeypatch, {5, 6})  # in the second epoch of four steps
    last = train(tiny.sandwich(data, guard=GUARD), tmp_path, log.append)
    assert any("back to the checkpoint after epoch 1, with learning rates times 0.5 (restore 1 of 2)" in line for line in log)
    assert len(calls) == 4 + 3 + 4 and last["epoch"] == 2 and last["skipped"] == 2
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert json.loads((tmp_path / "checkpoint/latest.json").read_text())["state"]["restores"] == 1


def test_a_collapse_in_the_first_epoch_goes_back_to_the_start(data, tmp_path, monkeypatch):
    log: list[str] = []
    broken_at(monkeypatch, {1, 2})
    train(tiny.sandwich(data, guard=GUARD), tmp_path, log.append)
    assert any("back to the checkpoint after epoch 0" in line for line in log)


def test_a_run_that_always_collapses_gives_up_in_words_and_resumes_to_the_same(data, tmp_path, monkeypatch):
    for _ in range(2):
        with monkeypatch.context() as patch:
            calls = broken_at(patch, set(range(2, 1000)))
            with pytest.raises(WorkError, match="collapsed again after 2 restores: 2 steps in a row were skipped.*start again"):
                train(tiny.sandwich(data, guard=GUARD), tmp_path, quiet)
    assert len(calls) == 4  # the third attempt, again


def test_a_restored_run_that_is_killed_ends_as_one_that_is_not(data, tmp_path, monkeypatch):
    recipe = tiny.sandwich(data, guard=GUARD)
    for name in ("whole", "killed"):
        with monkeypatch.context() as patch:
            broken_at(patch, {5, 6})
            if name == "whole":
                train(recipe, tmp_path / name, quiet)
                continue
            break_at(patch, checkpoint, "amend", 1, after=True)
            with pytest.raises(Killed):
                train(recipe, tmp_path / name, quiet)
    train(recipe, tmp_path / "killed", quiet)
    assert result(tmp_path / "whole") == result(tmp_path / "killed")


def test_gradients_that_are_no_numbers_are_found_though_the_loss_is_well(data, tmp_path, monkeypatch):
    real, log, calls = guard.fresh_gradients, [], []

    def spoiled(trainer):
        arrays = real(trainer)
        calls.append(None)
        if len(calls) == 3:
            arrays[0][5][:] = math.nan
        return arrays

    monkeypatch.setattr(guard, "fresh_gradients", spoiled)
    train(tiny.sandwich(data, guard=GUARD, epochs=1), tmp_path, log.append)
    assert sum("a gradient is not finite" in line for line in log) == 1
    assert all(np.isfinite(a.asnumpy()).all() for a in nd.load(str(checkpoint.latest_weights(tmp_path / "checkpoint"))).values())


@pytest.mark.parametrize("broken", [None, 0, 250])
def test_gradients_of_more_arrays_than_mxnet_takes_at_once_are_looked_at(broken, monkeypatch):
    """MXNet's operator overruns its memory with more than 200 arrays, and full-size spaces have 240 to 440."""
    arrays = [nd.ones((2,)) for _ in range(251)]
    if broken is not None:
        arrays[broken][:] = math.nan
    monkeypatch.setattr(guard, "fresh_gradients", lambda trainer: [arrays])
    sizes, real = [], nd.multi_all_finite
    monkeypatch.setattr(nd, "multi_all_finite", lambda *part, num_arrays: (sizes.append(len(part)), real(
        *part, num_arrays=num_arrays))[1])
    log = []
    accepted = guard.Watch(Guard(), None, log.append).accept([nd.ones((4,))])
    assert sizes == [200, 51] and accepted == (broken is None)
    assert ("a gradient is not finite" in "".join(log)) == (broken is not None)


def test_a_predictor_chooses_the_networks_of_an_attentive_step(data, tmp_path):
    from oneshot_nas.indicators.predictor import fit, save
    from oneshot_nas.search.candidate import Candidate
    from oneshot_nas.train.job import make_job

    recipe = tiny.sandwich(data)
    space = make_job(recipe, loop.open_source(recipe)).net.space
    archs = [space.sample(random.Random(seed)) for seed in range(60)]
    known = [Candidate(place, arch, cost(arch), {"top1": 1 - cost(arch).flops / 1e7}) for place, arch in enumerate(archs)]
    save(tmp_path / "small.npz", fit(space, known, lambda candidate: candidate.scores["top1"]), {})
    flops = {}
    for name in ("bestup", "worstup"):
        sampler = {"name": name, "bins": 1, "candidates": 8, "predictor": str(tmp_path / "small.npz")}
        recipe = tiny.sandwich(data, sampler=sampler)
        job = make_job(recipe, loop.open_source(recipe))
        chosen = [job.forwards(0, 0, step, ())[0].args[1] for step in range(6)]  # no images: the prediction alone decides
        flops[name] = sum(cost(arch).flops for arch in chosen)
    assert flops["bestup"] < flops["worstup"]  # the predictor likes small networks
    other = tiny.sandwich(data, sampler=sampler, options={"layout": "small", "input_size": 16, "resolutions": [16]})
    with pytest.raises(UserError, match="the predictor .* of 'attentive_mobilenet' with option|the predictor is of"):
        make_job(other, loop.open_source(other))


def test_a_skipped_step_moves_no_weight_and_repairs_statistics(data):
    from oneshot_nas.train.guard import heal_statistics
    from oneshot_nas.train.job import make_job

    job = make_job(tiny.sandwich(data), loop.open_source(tiny.sandwich(data)))
    parameter = job.net.owner("stem").parameter("bn.running_var")
    parameter.set_data(nd.array([math.nan, math.inf] + [2.0] * (parameter.shape[0] - 2)))
    heal_statistics(job.net)
    assert parameter.data().asnumpy().tolist() == [1, 1] + [2] * (parameter.shape[0] - 2)


def test_statistics_that_a_skipped_step_broke_are_whole_after_the_epoch(data, tmp_path, monkeypatch):
    jobs, calls = [], []

    def step(*given, real=loop.run_step, **options):
        calls.append(given)
        if len(calls) != 2:
            return real(*given, **options)
        (broken, *_) = (p for name, p in jobs[0].net.collect_params().items() if name.endswith("running_var"))
        broken.set_data(nd.full(broken.shape, math.nan))
        return [], []

    monkeypatch.setattr(loop, "make_job", lambda *given, real=loop.make_job: jobs.append(real(*given)) or jobs[-1])
    monkeypatch.setattr(loop, "run_step", step)
    train(tiny.gluoncv(data, epochs=1, guard={}), tmp_path, lambda text: None)
    assert len(calls) == 6
    assert all(np.isfinite(p.data().asnumpy()).all() for p in jobs[0].net.collect_params().values())
    assert json.loads((tmp_path / "checkpoint/latest.json").read_text())["updates"] == 5


# --- recipes, and what comes after ---


RECIPES = Path(__file__).parent.parent / "recipes"
SMALLER = ["options.layout=small", "options.input_size=16", "options.resolutions=[16]", "epochs=1", "batch_size=8",
           "input_threads=1", "holdout.calibration=8", "holdout.validation=8", "epoch_images=16", "allowed.depth=[1]",
           "allowed.kernel=[3]"]


def test_the_small_recipe_trains_and_a_network_of_it_is_tuned_on_from_the_command_line(data, tmp_path, capsys):
    from oneshot_nas.cli import train as cli
    from oneshot_nas.nets.supernet import Supernet
    from oneshot_nas.train.runs import load_supernet

    changes = [f"data={data}", *SMALLER]
    cli.command(str(RECIPES / "cifar10_bignas_supernet.yaml"), str(tmp_path / "supernet"), changes)
    run = load_supernet(tmp_path / "supernet")
    assert isinstance(run.net, Supernet) and run.recipe.guard is not None
    arch = run.space.largest()
    (tmp_path / "arch.json").write_text(json.dumps(arch.to_json()))
    tuning = [f"data={data}", "batch_size=8", "epochs=1", "optimizer.lr=1e-30", "optimizer.wd=0", "input_threads=1"]
    cli.command(str(RECIPES / "cifar10_finetune.yaml"), str(tmp_path / "tuned"), tuning, str(tmp_path / "arch.json"),
                str(tmp_path / "supernet"))
    assert f"next: {program()}" in capsys.readouterr().err
    tuned = nd.load(str(checkpoint.latest_weights(tmp_path / "tuned/checkpoint")))
    stored = run.net._collect_params_with_prefix()
    for name in tuned:
        if "running" not in name:
            assert np.allclose(tuned[name].asnumpy(), stored[name].data().asnumpy(), rtol=0, atol=1e-20), name
    again = json.loads((tmp_path / "tuned/metrics.jsonl").read_text())
    assert math.isfinite(again["loss"])


def test_start_supernet_has_the_recalibrated_statistics_and_refuses_what_does_not_fit(data, tmp_path):
    from oneshot_nas.indicators.accuracy import load_evaluator
    from oneshot_nas.train.job import make_job
    from oneshot_nas.train.start import begin

    train(tiny.sandwich(data, epochs=1), tmp_path / "supernet", quiet)
    evaluator = load_evaluator(tmp_path / "supernet")
    arch = evaluator.space.smallest()
    recipe = tiny.recipe(data, arch=arch.to_json(), start={"supernet": str(tmp_path / "supernet")})
    job = make_job(recipe, loop.open_source(recipe))
    begin(recipe.start, job, None, 1, quiet)
    images = evaluator.validation[0]
    assert np.allclose(job.net(images).asnumpy(), evaluator.network(arch)(images).asnumpy(), atol=1e-4)
    other = tiny.recipe(data, arch=arch.to_json(), mean=[1, 2, 3], start={"supernet": str(tmp_path / "supernet")})
    with pytest.raises(UserError, match="trained on images prepared as .*; give the same mean, std and crop_ratio"):
        train(other, tmp_path / "other", quiet)
    foreign = tiny.fixed(data, start={"supernet": str(tmp_path / "supernet")})
    with pytest.raises(UserError, match="the architecture is of space 'spos_shufflenet', expected 'attentive_mobilenet'"):
        train(foreign, tmp_path / "foreign", quiet)
    with pytest.raises(UserError, match="no run folder"):
        train(tiny.recipe(data, arch=arch.to_json(), start={"supernet": "nowhere"}), tmp_path / "none", quiet)


@pytest.mark.parametrize("name", ["attentivenas_supernet", "bignas_supernet", "cifar10_bignas_supernet"])
def test_the_recipes_say_what_their_sources_say(name):
    from oneshot_nas.config import read_recipe

    recipe = read_recipe(RECIPES / f"{name}.yaml")
    sandwich = recipe.sampler.sandwich
    assert sandwich and (sandwich.random, sandwich.smallest, sandwich.calm, sandwich.distil.kind) == (2, True, True, "soft")
    assert recipe.optimizer.no_wd and recipe.guard


# --- what goes wrong ---


@pytest.mark.parametrize(("change", "words"), [
    ({"sampler": {"sandwich": {"random": 0, "smallest": False}}}, "sandwich without smaller networks is empty"),
    ({"sampler": {"sandwich": {"randoms": 1}}}, "unknown key 'sampler.sandwich.randoms'; allowed are .*'random'"),
    ({"sampler": {"sandwich": {}, "average_blocks": True}}, "sandwich and average_blocks contradict"),
    ({"sampler": {"sandwich": {}, "warmup": "oneshot"}}, "sandwich and warmup contradict"),
    ({"sampler": {"sandwich": {"distil": {"kind": "alpha", "temperature": 2}}}}, "kind alpha has no temperature"),
    ({"sampler": {"sandwich": {"distil": {"alpha_min": 1}}}}, "alpha_min 1 must be below alpha_max 1"),
    ({"sampler": {"sandwich": {"distil": {"alpha_min": -3}}}}, "alpha_min -3.0 says nothing: kind soft has none"),
    ({"sampler": {"sandwich": {"distil": {"kind": "kl", "clip": 2}}}}, "clip 2.0 says nothing: kind kl has none"),
    ({"sampler": {"name": "bestup", "sandwich": {"random": 0}}}, "random 0 draws no networks, so sampler 'bestup' says nothing"),
    ({"sampler": {"name": "flops", "candidates": 9}}, "candidates 9 says nothing: sampler 'flops' has none; take bestup"),
    ({"sampler": {"name": "flops", "predictor": "p.npz"}}, "predictor p.npz says nothing: sampler 'flops' has none"),
    ({"sampler": {"bins": 9}}, "bins 9 says nothing: sampler 'uniform' has none"),
    ({"sampler": {"sandwich": {}}, "loss": {"teacher": "oneshot"}}, "leave out 'loss.teacher'"),
    ({"ema": 1}, "'ema' = '1': Input should be less than 1"),
    ({"guard": {"factor": 1}}, "'guard.factor'"),
    ({"bn_momentum": 1.5}, "'bn_momentum'"),
    ({"optimizer": {"clip_norm": 0}}, "'optimizer.clip_norm'"),
    ({"start": {"supernet": "runs/a"}}, "'start.supernet' is for a network with 'arch'"),
    ({"start": {}}, "exactly one of 'weights' .* and 'supernet'"),
])
def test_contradictory_recipes_are_refused_by_key(data, change, words):
    with pytest.raises(UserError, match=words):
        tiny.sandwich(data, **change)


def test_what_is_about_a_supernet_is_refused_for_a_network(data):
    with pytest.raises(UserError, match="'sampler' is for a supernet"):
        tiny.gluoncv(data, sampler={"name": "box"})
    arch, content = json.loads(tiny.fixed(data).model_dump_json())["arch"], {"data": str(data), "model": "oneshot"}
    with pytest.raises(UserError, match="--set sampler.bins is about a supernet; with an architecture its own"):
        parse_recipe(content, ["sampler.bins=3"], arch, "r.yaml")


@pytest.mark.parametrize(("change", "words"), [
    ({"space": "spos_shufflenet", "options": tiny.SPACE, "allowed": {}, "sampler": {"sandwich": {}}},
     r"values of \('block'\) in space 'spos_shufflenet' are not ordered"),
    ({"sampler": {"name": "flops", "flops": "1:2"}}, "no architecture of 'attentive_mobilenet' has FLOPs"),
    ({"sampler": {"name": "bestup", "params": ":1"}}, "no architecture of 'attentive_mobilenet' has params"),
    ({"trainable": "scoring-bn"}, "trainable 'scoring-bn' leaves nothing to train: no block of this space"),
])
def test_what_cannot_be_trained_is_said_before_the_first_step(data, change, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(tiny.sandwich(data, **change), tmp_path, quiet)
    assert not os.path.exists(tmp_path / "config.yaml")
