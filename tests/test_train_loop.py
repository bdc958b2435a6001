"""The training loop and its parts: losses, steps, what a run writes, what it refuses, and what it warns about."""

import json
import math
import re
from functools import partial
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
import tiny
from mxnet import autograd, nd
from mxnet.gluon import nn

from oneshot_nas import progress
from oneshot_nas.config import Optimizer, parse_recipe, read_recipe
from oneshot_nas.data.source import open_source
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.indicators.accuracy import Evaluator
from oneshot_nas.sections import Progressive
from oneshot_nas.train import checkpoint, loop
from oneshot_nas.train.checkpoint import average_statistics
from oneshot_nas.train.job import make_job
from oneshot_nas.train.loop import train
from oneshot_nas.train.losses import CrossEntropy
from oneshot_nas.train.report import next_command, speed
from oneshot_nas.train.runs import load_fixed, load_supernet
from oneshot_nas.train.step import mix, run_step, targets, trainer_of
from oneshot_nas.train.zoo import check_output, zoo_network


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"))


def quiet(text):
    pass


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


# --- the parts of a step ---


def test_targets_are_smoothed_as_published():
    expected = np.array([[0.025, 0.925, 0.025, 0.025], [0.925, 0.025, 0.025, 0.025]])
    assert targets(nd.array([1, 0]), 4, 0.1).asnumpy() == pytest.approx(expected)
    assert targets(nd.array([2]), 3, 0.0).asnumpy().tolist() == [[0, 0, 1]]


def test_mixup_pairs_a_batch_with_its_reverse():
    images, target = nd.array([[1.0], [2.0], [4.0]]), nd.array([[1, 0], [0, 1], [0, 1]])
    mixed, both = mix(images, target, 0.75)
    assert mixed.asnumpy().ravel().tolist() == [0.75 + 1, 2, 3 + 0.25]
    assert both.asnumpy().tolist() == [[0.75, 0.25], [0, 1], [0.25, 0.75]]


def test_cross_entropy_and_distillation_in_closed_form():
    rng = np.random.default_rng(0)
    logits, teacher, target = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), softmax(rng.normal(size=(5, 7)))
    hard = -(target * np.log(softmax(logits))).sum(axis=1)
    assert CrossEntropy()(nd.array(logits), nd.array(target)).asnumpy() == pytest.approx(hard, rel=1e-5)
    soft = -(softmax(teacher / 3) * np.log(softmax(logits / 3))).sum(axis=1)
    found = CrossEntropy(3.0, 0.3)(nd.array(logits), nd.array(target), nd.array(teacher)).asnumpy()
    assert found == pytest.approx(0.7 * 9 * soft + 0.3 * hard, rel=1e-4)


def small_net(contexts):
    net = nn.HybridSequential(prefix="")
    net.add(nn.Conv2D(4, 3, in_channels=3), nn.BatchNorm(in_channels=4), nn.Flatten(), nn.Dense(3, in_units=4 * 36))
    mx.random.seed(1)
    net.initialize(ctx=contexts)
    return net


def steps_of(scale, optimizer, count=3):
    net = small_net([mx.cpu()])
    trainer = trainer_of(net.collect_params(), optimizer)
    rng = np.random.default_rng(0)
    for _ in range(count):
        shard = nd.array(rng.normal(size=(6, 3, 8, 8))), targets(nd.array(rng.integers(0, 3, 6)), 3, 0.1)
        run_step(net, [shard], CrossEntropy(), trainer, 6, scale=scale)
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


def test_the_state_of_float16_without_momentum_comes_back(tmp_path):
    """Its parts are None and the float32 weights."""
    def made():
        net = nn.Dense(1, in_units=2, use_bias=False)
        net.initialize("ones")
        net.cast("float16")
        return net, trainer_of(net.collect_params(), Optimizer(momentum=0.0), "float16")

    net, trainer = made()
    with autograd.record():
        loss = 3 * net.weight.data()
    loss.backward()
    trainer.step(3)
    saved = checkpoint.optimizer_arrays(net, trainer)
    assert set(saved) == {"weight:1"} and saved["weight:1"].dtype == np.float32
    nd.save(str(tmp_path / "state.params"), saved)
    other, again = made()
    again._init_kvstore()
    checkpoint.load_optimizer(other, again, tmp_path / "state.params", [mx.cpu()])
    assert np.array_equal(checkpoint.optimizer_arrays(other, again)["weight:1"].asnumpy(), saved["weight:1"].asnumpy())


def test_sizes_of_growing_images_are_multiples():
    growing = Progressive(size=30, epochs=5)
    assert [growing.size_of(epoch, 64) for epoch in range(6)] == [30, 36, 40, 48, 56, 64]


def test_the_loss_scale_of_float16_changes_nothing_but_the_range():
    plain, scaled = (steps_of(scale, Optimizer(lr=0.1)) for scale in (1.0, 128.0))
    assert all(np.array_equal(plain[name], scaled[name]) for name in plain)


@pytest.mark.parametrize("no_wd", [True, False])
def test_no_wd_spares_biases_gamma_and_beta(no_wd):
    net = small_net([mx.cpu()])
    trainer = trainer_of(net.collect_params(), Optimizer(lr=0.5, momentum=0, wd=0.1, no_wd=no_wd))
    before = {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}
    with autograd.record():
        loss = net(nd.zeros((2, 3, 8, 8))).sum() * 0  # no gradient, so that decay alone moves weights
    loss.backward()
    trainer.step(1)
    for name, parameter in net._collect_params_with_prefix().items():
        decayed = name.endswith("weight") or (not no_wd and name.endswith(("bias", "gamma", "beta")))
        if "running" not in name:
            assert parameter.data().asnumpy() == pytest.approx(before[name] * (0.95 if decayed else 1), rel=1e-6), name


@pytest.mark.parametrize("contexts", [1, 2])
def test_arrays_of_operators_that_were_not_sampled_stay_bit_by_bit(data, contexts, tmp_path):
    recipe = tiny.supernet(data, contexts=contexts, epochs=1, epoch_images=16, allowed={"scale": [0.6, 2.0]},
                           schedule={"mode": "constant"})
    job = make_job(recipe, loop.open_source(recipe))
    net = job.net
    before = {name: [array.asnumpy() for array in p.list_data()] for name, p in net._collect_params_with_prefix().items()}
    training = loop._Loop(recipe, loop.RunFolder(tmp_path), loop.open_source(recipe), job, quiet, recipe.epochs)
    used: set[str] = set()

    def forwards(seed, epoch, step, shards, real=job.forwards):
        chosen = real(seed, epoch, step, shards)
        assert job.space
        used.update(layer.weights for layer in job.space.plan(sampled(recipe, job, epoch, step)).layers)
        return chosen

    job.forwards = forwards
    training.prepare()
    training._epoch(0)
    for name, parameter in net._collect_params_with_prefix().items():
        same = all(np.array_equal(a, b.asnumpy()) for a, b in zip(before[name], parameter.list_data(), strict=True))
        if not any(name.startswith(f"{weights}.") for weights in used):
            assert same, name
        elif name.endswith("weight"):
            assert not same, name
    assert 0 < len(used) < 82 - 20


def sampled(recipe, job, epoch, step):
    from oneshot_nas.train.sampling import make_sampler

    return make_sampler(job.space, recipe.sampler, recipe.seed)(epoch, step)[0]


# --- what a run writes ---


def test_a_run_folder_has_its_files_and_they_say_what_they_are(data, tmp_path):
    log: list[str] = []
    last = train(tiny.gluoncv(data, log_every=2), tmp_path, log.append)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", "config.yaml", "log.txt", "metrics.jsonl", "checkpoint", "tensorboard", "result.json"}
    assert lines(tmp_path)[-1] == last and {"epoch", "loss", "train_top1", "lr", "val_top1", "val_top5", "timing"} == set(last)
    assert last["lr"] == pytest.approx(0, abs=1e-12)  # the last step reached the final learning rate
    about = json.loads((tmp_path / "checkpoint/weights-0002.params.json").read_text())
    assert (about["kind"], about["model"], about["classes"]) == ("network", "cifar_resnet20_v1", 4)
    assert about["preprocessing"]["crop_ratio"] == 1.0  # images are stored at the input size
    assert sum("step 2 of 6" in line for line in log) == 2 and sum("step 4 of 6" in line for line in log) == 2
    assert [line.partition(" ")[2].partition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == log
    assert read_recipe(tmp_path / "config.yaml").data == str(data)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kind"] == "training-result" and result["last"] == last and result["best"]["val_top1"] >= last["val_top1"]


def test_weights_are_a_plain_save_parameters_file(data, tmp_path):
    train(tiny.gluoncv(data, epochs=1, contexts=2), tmp_path, quiet)
    from gluoncv.model_zoo import get_model

    net = get_model("cifar_resnet20_v1", classes=4)
    net.load_parameters(str(checkpoint.latest_weights(tmp_path / "checkpoint")))
    assert net(nd.zeros((1, 3, 16, 16))).shape == (1, 4)


def test_tensorboard_scalars_can_be_read(data, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    train(tiny.gluoncv(data), tmp_path, quiet)
    (path,) = (tmp_path / "tensorboard").iterdir()
    raw, found = path.read_bytes(), {}
    while raw:
        size = int.from_bytes(raw[:8], "little")
        event = Event.FromString(raw[12 : 12 + size])
        found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
        raw = raw[16 + size :]
    for line in lines(tmp_path):
        for name in ("loss", "val_top1"):
            assert found[name, line["epoch"]] == pytest.approx(line[name])
    assert ("images_per_second", 2) in found


def test_paths_in_config_yaml_are_absolute_so_that_a_run_is_found_from_anywhere(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    train(tiny.recipe(Path(), model="cifar_resnet20_v1", options={"input_size": 16}, epochs=1), tmp_path / "run", quiet)
    assert read_recipe(tmp_path / "run/config.yaml").data == str(data)


@pytest.mark.parametrize("images, seconds, told",
                         [(5030, 10, "503 images/s"), (99, 10, "9.90 images/s"), (64, 101, "0.63 images/s")])
def test_slow_training_has_a_speed_too(images, seconds, told):
    assert speed(images, seconds) == told


def test_validation_shows_how_far_it_is(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    train(tiny.narrow_supernet(data), tmp_path / "supernet", quiet)
    assert "validating: network 1 of 3" in capsys.readouterr().err


def test_training_learns(data, tmp_path):
    recipe = tiny.gluoncv(data, epochs=12, augment={"kind": "none"}, validate_every=12)
    last = train(recipe, tmp_path, quiet)
    assert last["val_top1"] == 1.0 and last["train_top1"] > 0.9
    assert [line["epoch"] for line in lines(tmp_path) if "val_top1" in line] == [12]


def test_how_often_a_run_is_validated_decides_no_weight(data, tmp_path):
    for often in (1, 3):
        recipe = tiny.recipe(data, model="resnet18_v1b", options={"input_size": 16}, epochs=3, validate_every=often)
        train(recipe, tmp_path / str(often), quiet)
    often, seldom = ((tmp_path / run / "checkpoint/weights-0003.params").read_bytes() for run in "13")
    assert often == seldom


@pytest.mark.parametrize(("changes", "steps"), [
    ({}, 6), ({"epoch_images": 33}, 4), ({"epoch_images": 1000}, 6), ({"epoch_images": 8}, 1),
    ({"epoch_share": 1 / 3}, 2), ({"epoch_share": 1 / 7}, 1), ({"epoch_share": 0.5, "epoch_images": 33}, 2),
])
def test_an_epoch_may_be_cut_short(data, changes, steps, tmp_path, monkeypatch):
    calls = []

    def step(*given, real=loop.run_step, **options):
        calls.append(given)
        return real(*given, **options)

    monkeypatch.setattr(loop, "run_step", step)
    train(tiny.gluoncv(data, epochs=1, **changes), tmp_path, quiet)
    assert len(calls) == steps


def test_mean_std_and_crop_of_the_recipe_come_before_those_of_the_data(data, tmp_path):
    train(tiny.gluoncv(data, epochs=1, mean=[1, 2, 3], std=[4, 5, 6], crop_ratio=0.8), tmp_path, quiet)
    about = json.loads((tmp_path / "checkpoint/weights-0001.params.json").read_text())["preprocessing"]
    assert (about["mean"], about["std"], about["crop_ratio"]) == ([1, 2, 3], [4, 5, 6], 0.8)


SMALL_MOBILENET = partial(tiny.gluoncv, model="mobilenet0.25")


@pytest.mark.parametrize("kind", [tiny.supernet, tiny.fixed, SMALL_MOBILENET])
def test_depthwise_kernels_may_start_small_and_nothing_else_changes(kind, data):
    found = []
    for changes in ({}, {"depthwise_init": "fan_in"}):
        recipe = kind(data, **changes)
        net = make_job(recipe, loop.open_source(recipe)).net
        found.append({name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()})
    plain, small = found
    depthwise = {name for name, array in plain.items() if array.ndim == 4 and array.shape[1] == 1}
    assert depthwise and all((plain[name] == small[name]).all() for name in plain.keys() - depthwise)
    for kernel in {small[name].shape[2] for name in depthwise}:
        arrays = [small[name] for name in depthwise if small[name].shape[2] == kernel]
        assert np.concatenate([array.ravel() for array in arrays]).std() == pytest.approx(1 / kernel**2, rel=0.15)
        if kind is not SMALL_MOBILENET:
            assert np.concatenate([plain[name].ravel() for name in depthwise]).std() == pytest.approx(1, rel=0.15)


def test_a_recipe_in_bgr_turns_the_numbers_of_the_data_but_not_its_own(data, tmp_path):
    found = {}
    for name, changes in (("rgb", {}), ("bgr", {"channels": "BGR"}), ("own", {"channels": "BGR", "mean": [1, 2, 3]})):
        train(tiny.gluoncv(data, epochs=1, epoch_images=8, **changes), tmp_path / name, quiet)
        found[name] = json.loads((tmp_path / name / "checkpoint/weights-0001.params.json").read_text())["preprocessing"]
    rgb, bgr, own = found.values()
    assert (rgb["channels"], bgr["channels"], own["channels"]) == ("RGB", "BGR", "BGR")
    assert bgr["mean"] == rgb["mean"][::-1] and bgr["std"] == rgb["std"][::-1]
    assert own["mean"] == [1, 2, 3]


def test_the_hold_out_fits_small_data_unless_the_recipe_says_how_many(data, tmp_path):
    found = {}
    for name, holdout in (("own", {}), ("given", {"calibration": 5, "validation": 7})):
        train(tiny.narrow_supernet(data, epochs=1, holdout=holdout, epoch_images=8), tmp_path / name, quiet)
        held = json.loads((tmp_path / name / "supernet.json").read_text())["holdout"]
        found[name] = len(held["calibration"]), len(held["validation"])
    assert found == {"own": (2, 4), "given": (5, 7)}  # of 48 images in 4 classes


def test_data_too_small_for_a_search_is_refused_before_training(tmp_path):
    few = tiny.write_data(tmp_path / "few", train=5)  # of 4 classes: one image can be set aside
    with pytest.raises(UserError, match="5 training images are too few: 1 can be set aside .* needs at least 2; add images, or"):
        train(tiny.narrow_supernet(few, epochs=1, batch_size=1, holdout={}), tmp_path / "run", quiet)
    some = tiny.write_data(tmp_path / "some", train=6)
    train(tiny.narrow_supernet(some, epochs=1, batch_size=1, holdout={}), tmp_path / "run", quiet)
    held = json.loads((tmp_path / "run/supernet.json").read_text())["holdout"]
    assert (len(held["calibration"]), len(held["validation"])) == (1, 1)
    assert "--indicator bn-gamma" in next_command(tiny.supernet(few, holdout={"calibration": 0, "validation": 0}), "run")
    assert "--out run-search" in next_command(tiny.supernet(some), "run/")


@pytest.mark.parametrize(("sampler", "words"), [
    ({"first_channel_epoch": 0}, None), ({"first_channel_epoch": 1}, "only the largest scales are trained"),
    ({"warmup": "oneshot"}, "the smallest scales join in epoch 2 .*after the last of 1 epochs"), ({"warmup": None}, None),
])
def test_scales_that_are_never_trained_are_worth_a_warning(data, tmp_path, sampler, words):
    log: list[str] = []
    train(tiny.narrow_supernet(data, epochs=1, sampler={"least_scale": 1.6, **sampler}, epoch_images=8), tmp_path / "run",
          log.append)
    warnings = [line for line in log if line.startswith("warning: ") and "scales" in line]
    assert len(warnings) == (words is not None) and all(re.search(words, line) for line in warnings)


def test_scales_below_the_least_are_neither_probed_nor_searched(data, tmp_path, monkeypatch):
    seen = []
    real = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda self, arch: seen.append(arch) or real(self, arch))
    train(tiny.narrow_supernet(data, epochs=1, sampler={"least_scale": 1.8}, epoch_images=8), tmp_path, quiet)
    assert len(seen) == 3 and all(set(arch.choices["scale"]) <= {1.8, 2.0} for arch in seen)
    run = load_supernet(tmp_path)
    assert set(run.space.choice("scale").values) == {(1.8, 2.0)} and run.space.size == 2**20
    assert run.net(nd.ones((1, 3, 16, 16)), run.space.smallest()).shape == (1, 4)


def test_a_learning_rate_that_never_arrives_is_worth_a_warning(data, tmp_path):
    log: list[str] = []
    train(tiny.gluoncv(data, epochs=1, schedule={"mode": "cosine", "warmup_epochs": 5}), tmp_path, log.append)
    assert any("still warms up after the last of 1 epochs" in line and "never reaches 0.05" in line for line in log)


def test_another_recipe_is_told_by_what_differs(data, tmp_path):
    train(tiny.fixed(data, epochs=1), tmp_path / "run", quiet)
    other = tiny.fixed(data, epochs=1, optimizer={"name": "sgd", "lr": 0.05})
    arch = {**other.arch, "choices": {**other.arch["choices"], "scale": [1.0, *other.arch["choices"]["scale"][1:]]}}
    words = r"another recipe \(arch.choices.scale\[0\]: 0.6 -> 1.0; optimizer.name: 'nag' -> 'sgd'\)"
    with pytest.raises(UserError, match=words):
        train(other.model_copy(update={"arch": arch}), tmp_path / "run", quiet)


def test_a_teacher_teaches(data, tmp_path):
    train(tiny.gluoncv(data, epochs=1), tmp_path / "teacher", quiet)
    weights = str(checkpoint.latest_weights(tmp_path / "teacher/checkpoint"))
    loss = {"teacher": "cifar_resnet20_v1", "teacher_params": weights, "temperature": 4, "hard_weight": 0.3}
    with_teacher = train(tiny.gluoncv(data, epochs=1, loss=loss), tmp_path / "a", quiet)
    without = train(tiny.gluoncv(data, epochs=1), tmp_path / "b", quiet)
    assert with_teacher["loss"] > without["loss"] + 1  # T^2 times a cross entropy
    with pytest.raises(UserError, match="needs weights for 4 classes: give them as loss.teacher_params"):
        train(tiny.gluoncv(data, loss={**loss, "teacher_params": None}), tmp_path / "c", quiet)


def test_start_weights_are_what_training_begins_with(data, tmp_path):
    train(tiny.gluoncv(data, epochs=1), tmp_path / "first", quiet)
    start = {"weights": str(checkpoint.latest_weights(tmp_path / "first/checkpoint"))}
    train(tiny.gluoncv(data, epochs=1, start=start, optimizer={"lr": 1e-30, "wd": 0}), tmp_path / "second", quiet)
    for name, array in nd.load(start["weights"]).items():
        if "running" not in name:
            found = nd.load(str(checkpoint.latest_weights(tmp_path / "second/checkpoint")))[name]
            assert np.array_equal(array.asnumpy(), found.asnumpy())


@pytest.mark.parametrize("make", [tiny.gluoncv, tiny.narrow_supernet])
def test_finished_weights_become_a_run_like_any_other(make, data, tmp_path):
    trained = train(make(data, seed=1), tmp_path / "elsewhere", quiet)
    weights = checkpoint.latest_weights(tmp_path / "elsewhere/checkpoint")
    recipe = make(data, seed=1, start={"weights": str(weights), "epoch": 2})
    figures = {name: value for name, value in trained.items() if name.startswith("val_")}
    for _ in range(2):  # again: nothing is done twice
        assert train(recipe, tmp_path / "run", quiet) == {"epoch": 2, **figures}
        assert len(lines(tmp_path / "run")) == 1
    found = nd.load(str(checkpoint.latest_weights(tmp_path / "run/checkpoint")))
    assert all(np.array_equal(array.asnumpy(), found[name].asnumpy()) for name, array in nd.load(str(weights)).items())
    if make is tiny.gluoncv:
        assert load_fixed(tmp_path / "run").preprocessing == load_fixed(tmp_path / "elsewhere").preprocessing
    else:
        ours, theirs = load_supernet(tmp_path / "run"), load_supernet(tmp_path / "elsewhere")
        assert (ours.holdout, ours.about["space"]) == (theirs.holdout, theirs.about["space"])


def test_weights_for_images_of_another_kind_are_told(data, tmp_path):
    train(tiny.gluoncv(data, epochs=1), tmp_path / "first", quiet)
    start = {"weights": str(checkpoint.latest_weights(tmp_path / "first/checkpoint")), "epoch": 1}
    log: list[str] = []
    train(tiny.gluoncv(data, epochs=1, start=start), tmp_path / "same", log.append)
    assert not [line for line in log if line.startswith("warning: ")]
    train(tiny.gluoncv(data, epochs=1, start=start, channels="BGR"), tmp_path / "other", log.append)
    assert [line.count("'channels'") for line in log if line.startswith(f"warning: {start['weights']} belongs to")] == [2]


# --- what goes wrong ---


def test_a_loss_that_is_no_number_ends_the_run_and_names_epoch_and_step(data, tmp_path):
    train(tiny.gluoncv(data, epochs=1), tmp_path / "good", quiet)
    start = {"weights": str(checkpoint.latest_weights(tmp_path / "good/checkpoint"))}
    recipe = tiny.gluoncv(data, start=start, optimizer={"lr": 1e30}, schedule={"mode": "constant"})
    with pytest.raises(WorkError, match="the loss became nan in epoch 1, step 6; what was saved before is kept in .*; start"):
        train(recipe, tmp_path / "bad", quiet)
    assert not (tmp_path / "bad/checkpoint").exists()


def test_a_weight_that_is_no_number_is_found_though_relu_hides_it_from_the_loss(data, tmp_path, monkeypatch):
    real = checkpoint.average_statistics

    def spoil(net, contexts):
        real(net, contexts)
        if len(lines(tmp_path)) == 1:
            net.collect_params()[next(iter(net.collect_params()))].data()[0, 0, 0, 0] = math.nan

    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.setattr(checkpoint, "average_statistics", spoil)
    with pytest.raises(WorkError, match="'features.0.weight' and 0 other arrays are not finite after epoch 2, step 6"):
        train(tiny.gluoncv(data, epochs=3), tmp_path, quiet)
    assert json.loads((tmp_path / "checkpoint/latest.json").read_text())["epoch"] == 1


@pytest.mark.parametrize(("size", "warned"), [(16, False), (31, False), (32, True)])
@pytest.mark.parametrize(("given", "mend"), [(False, "--set options.input_size=N"), (True, "arch FILE --option input_size=16")])
def test_images_enlarged_to_twice_their_size_are_worth_a_warning(data, size, warned, given, mend):
    log: list[str] = []
    loop._warn_of_enlarging(open_source(tiny.fixed(data)), size, given, log.append)
    start = f"warning: images of 16x16 pixels are enlarged to the {size}x{size}"
    assert [line.startswith(start) and mend in line for line in log] == [True] * warned


@pytest.mark.parametrize(("every", "told"), [(1, "state saved after epoch 1, the same command resumes"),
                                             (9, "no epoch has been saved yet, the same command begins anew")])
def test_ctrl_c_says_what_is_kept(data, tmp_path, monkeypatch, every, told):
    real = loop._Loop._epoch

    def struck(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(self, epoch)

    monkeypatch.setattr(loop._Loop, "_epoch", struck)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(tiny.gluoncv(data, epochs=3, save_every=every), tmp_path, quiet)
    assert str(stop.value) == told


def test_a_resumed_run_may_leave_out_what_the_data_decided_but_nothing_else(data, tmp_path):
    train(tiny.gluoncv(data, epochs=2), tmp_path, quiet, until=1)
    with pytest.raises(UserError, match="another recipe .ema: None -> 0.9"):
        train(tiny.gluoncv(data, epochs=2, ema=0.9), tmp_path, quiet)
    with pytest.raises(UserError, match=r"another recipe .mean: \(123"):
        train(tiny.gluoncv(data, epochs=2, mean=[1, 2, 3]), tmp_path, quiet)
    assert train(tiny.gluoncv(data, epochs=2), tmp_path, quiet)["epoch"] == 2


def test_hidden_files_of_others_beside_a_checkpoint_are_left_alone(data, tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / ".gitignore").write_text("*")
    (folder / ".weights-0001.params.1.tmp").write_text("of a killed process")
    train(tiny.gluoncv(data, epochs=1), tmp_path, quiet)
    assert {path.name for path in folder.iterdir() if path.name[0] == "."} == {".ipynb_checkpoints", ".gitignore"}


def test_averages_and_the_guard_work_for_networks_whose_shapes_only_data_decide(data, tmp_path):
    last = train(tiny.gluoncv(data, epochs=1, ema=0.9, guard={}), tmp_path / "run", quiet)
    assert math.isfinite(last["loss"]) and last["skipped"] == 0
    average = checkpoint.load_average(tmp_path / "run/checkpoint")
    net = load_fixed(tmp_path / "run").net
    assert average and set(average) == set(net._collect_params_with_prefix())


def test_a_supernet_is_not_resumed_on_data_in_another_order(data, tmp_path):
    """Its held-out images would be trained on."""
    moved = tiny.write_data(tmp_path / "data")
    recipe = tiny.narrow_supernet(moved)
    train(recipe, tmp_path / "run", quiet, until=1)
    tiny.write_data(moved, random_labels=True)
    with pytest.raises(UserError, match="run cannot be resumed: the hold-out is of a training set in another order"):
        train(recipe, tmp_path / "run", quiet)
    with pytest.raises(UserError, match="in another order.*config.yaml says where the data of this supernet is"):
        load_supernet(tmp_path / "run").source()
    tiny.write_data(moved)
    assert train(recipe, tmp_path / "run", quiet)["epoch"] == 2


def test_images_grow_over_the_first_epochs_and_keep_their_mean(data, tmp_path, monkeypatch):
    real, seen = loop.run_step, []

    def spy(forward, shards, *args, **options):
        seen.append((shards[0][0].shape, float(shards[0][0].mean().asscalar())))
        return real(forward, shards, *args, **options)

    monkeypatch.setattr(loop, "run_step", spy)
    for name, growing in (("full", None), ("growing", {"size": 8, "epochs": 3})):
        train(tiny.fixed(data, epochs=4, progressive=growing), tmp_path / name, quiet)
    shapes, means = zip(*seen, strict=True)
    assert shapes[:24] == ((8, 3, 16, 16),) * 24  # 6 steps an epoch
    assert shapes[24:] == ((8, 3, 8, 8),) * 12 + ((8, 3, 12, 12),) * 6 + ((8, 3, 16, 16),) * 6  # 8, 10 -> 8, 13 -> 12, 16
    assert means[24:] == pytest.approx(means[:24], abs=0.05)  # the same images in the same order


def test_training_that_stays_at_chance_is_worth_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHANCE_STEPS", 12)
    noise = tiny.write_data(tmp_path / "noise", train=96, random_labels=True)
    log: list[str] = []
    train(tiny.gluoncv(noise, epochs=2, optimizer={"lr": 1e-9}), tmp_path / "run", log.append)
    warnings = [line for line in log if line.startswith("warning: ")]
    assert warnings and "training accuracy is 0." in warnings[0] and "chance is 0.2500; lower the lr" in warnings[0]


def test_supernets_are_not_trained_in_float16(data):
    with pytest.raises(UserError, match="float16 is for a fixed network"):
        tiny.supernet(data, dtype="float16", device="gpu")


@pytest.mark.parametrize(("change", "words"), [
    ({"optimiser": {}}, "unknown key 'optimiser'; allowed are"),
    ({"records": {"train": "a.rec", "vall": "b.rec"}}, r"unknown key 'records.vall'; allowed are train, train_idx"),
    ({"start": {"weight": "a"}}, "start.weight"),
    ({"allowed": {"scale": 0.8}}, "'allowed.scale' = '0.8': a list is needed"),
    ({"holdout": 0}, "'holdout' = '0': a section of keys is needed"),
    ({"epochs": 0}, "'epochs' = '0': Input should be greater than or equal to 1"),
    ({"epochs": True}, "'epochs' = 'True': a number is needed, not true or false"),
    ({"ema": True}, "'ema' = 'True': a number is needed"), ({"optimizer": {"lr": True}}, "'optimizer.lr' = 'True': a number"),
    ({"records": {"train": "a.rec", "val": "b.rec"}}, "'data' and 'records' both name the images; give one"),
    ({"holdout": {"validation": 8}}, "'holdout' is for a supernet; a fixed network is trained on all training images"),
    ({"epoch_images": 4}, "'epoch_images' 4 are less than one step's 'batch_size' 8"),
    ({"optimizer": {"lr": float("nan")}}, "'optimizer.lr' = 'nan'"),
    ({"seed": 2**31}, "'seed'"),
    ({"batch_size": 9, "contexts": 2}, "cannot be shared evenly by 2 contexts"),
    ({"dtype": "float16"}, "needs device gpu"), ({"dtype": "int8"}, r"int8 quantisation \(int8\) is not there yet"),
    ({"start": {"weights": "a", "epoch": 3}}, "'start.epoch' 3 is beyond the recipe's 2 epochs; 2 takes finished"),
    ({"epoch_share": 0}, "'epoch_share'"),
    ({"sampler": {"name": "warmup"}}, "'sampler.name' = 'warmup'"),
    ({"allowed": {"block": ["shuffle3"]}}, "'allowed' narrows the space of a supernet"),
    ({"progressive": {"size": 8, "epochs": 2}}, "'progressive.epochs' 2 leaves none of 2 epochs to full-size images"),
    ({"progressive": {"size": 4, "epochs": 1}}, "'progressive.size' = '4'"),
    ({"schedule": {"mode": "step"}}, "mode step needs decay_epochs"),
    ({"schedule": {"mode": "cosine", "decay_epochs": [30]}}, r"decay_epochs \(30.0,\) says nothing: .*; take mode step"),
    ({"schedule": {"power": 3}}, "power 3.0 says nothing: mode linear has none; take mode poly"),
    ({"schedule": {"decay": 0.5}}, "decay 0.5 says nothing: .*take mode step or exponential"),
    ({"schedule": {"mode": "constant", "final_lr": 0.1}}, "final_lr 0.1 says nothing: mode constant has none"),
    ({"schedule": {"warmup_lr": 0.1}}, "warmup_lr 0.1 says nothing: there is no warm-up"),
    ({"loss": {"teacher_params": "x"}}, "teacher_params x says nothing: there is no teacher"),
    ({"loss": {"mixup_off_epochs": 3}}, "mixup_off_epochs 3 says nothing: there is no mixup"),
    ({"options": {"classes": "ten"}}, "'options.classes' = 'ten': a whole number above 0 is needed"),
    ({"options": {"classes": 0}}, "'options.classes' = 0: a whole number above 0"),
    ({"options": {"input_size": "big"}}, "'options.input_size' = 'big': a whole number above 0"),
])
def test_an_impossible_recipe_is_refused_with_the_key(data, change, words):
    with pytest.raises(UserError, match=words):
        tiny.gluoncv(data, **change)


@pytest.mark.parametrize(("change", "words"), [
    ({"device": "gpu"}, "1 GPU asked for, MXNet sees 0; train on the CPU"),
    ({"options": {"classes": 3}}, "3 classes were asked for"),
    ({"batch_size": 64}, "48 training images do not fill one batch of 64"),
    ({"data": "nowhere"}, "no data set at "),
    ({"data": None}, "no data set given"),
    ({"model": "resnet18_v9"}, "no model 'resnet18_v9' in our zoo or GluonCV's; did you mean .*'resnet18_v1'"),
    ({"progressive": {"size": 16, "epochs": 1}}, "progressive.size 16 must be below the input size, 16 pixels"),
    ({"model": "vgg11", "options": {"input_size": 64}, "progressive": {"size": 32, "epochs": 1}},
     "weights of model 'vgg11' depend on the size of its images"),
    ({"model": "attentive_a0", "progressive": {"size": 8, "epochs": 1}}, "resizes its images itself; leave 'progressive' out"),
    ({"model": "inceptionv3"}, r"cannot take images of 16x16 pixels \(kernel size .*\); give another input size, 299"),
    ({"model": "simple_pose_resnet18_v1b"}, "GluonCV cannot build 'simple_pose_resnet18_v1b' as a classifier"),
    ({"model": "ssd_512_resnet50_v1_voc"}, "detection and segmentation networks .ssd_512_resnet50_v1_voc. is not there yet"),
    ({"options": {"layout": "small"}}, "is GluonCV's and has no option 'layout'"),
    ({"options": {"last_gamma": True}, "model": "mobilenetv2_0.25"}, r"with the options \('last_gamma'\): .*unexpected keyword"),
    ({"model": "oneshot", "options": {"input_size": 16, "last_gamma": True}}, "unknown option .*last_gamma"),
    ({"model": None, "space": "spos_shufflenet", "options": tiny.SPACE, "sampler": {"name": "box", "flops": "1:2"}}, "reachable"),
])
def test_what_cannot_be_trained_is_said_before_the_first_step(data, change, words, tmp_path):
    content = tiny.gluoncv(data).model_dump(exclude_none=True) | change
    content = {key: value for key, value in content.items() if value is not None}
    with pytest.raises(UserError, match=words):
        train(parse_recipe(content, (), None, "of a test"), tmp_path, quiet)
    assert not (tmp_path / "config.yaml").exists()


def test_labels_beyond_the_classes_asked_for_are_named_and_more_classes_are_fine(data, tmp_path):
    records = {"train": str(data / "train.rec"), "val": str(data / "val.rec")}
    content = tiny.gluoncv(data, epochs=1).model_dump(exclude_none=True) | {"data": None, "records": records}
    few = parse_recipe({**content, "options": {"input_size": 16, "classes": 3}}, (), None, "of a test")
    with pytest.raises(UserError, match="record 3 .* has label 3, beyond the 3 classes"):
        train(few, tmp_path / "few", quiet)
    many = parse_recipe({**content, "options": {"input_size": 16, "classes": 6}}, (), None, "of a test")
    train(many, tmp_path / "many", quiet)
    assert json.loads((tmp_path / "many/checkpoint/weights-0001.params.json").read_text())["classes"] == 6


@pytest.mark.parametrize("options", [{"use_gn": True, "last_gamma": True}, {"last_gamma": True}])
def test_options_of_gluoncv_models(options):
    net, arch, size = zoo_network("resnet50_v1b", 3, {"input_size": 32, **options}, [mx.cpu()])
    assert (arch, size) == (None, 32) and net(nd.ones((2, 3, 32, 32))).shape == (2, 3)
    gammas = [p.data().asnumpy() for name, p in net._collect_params_with_prefix().items() if name.endswith("bn3.gamma")]
    assert len(gammas) == 16 and not any(gamma.any() for gamma in gammas)



def test_pretrained_weights_are_copied_where_they_fit(monkeypatch):
    import gluoncv.model_zoo as theirs

    real, asked = theirs.get_model, []

    def download(name, **options):
        asked.append(options)
        if not options.pop("pretrained", False):
            return real(name, **options)
        net = real(name, classes=10)
        net.initialize(mx.init.One())
        net(nd.zeros((1, 3, 16, 16)))
        return net

    monkeypatch.setattr(theirs, "get_model", download)
    net, _, _ = zoo_network("cifar_resnet20_v1", 3, {"input_size": 16, "pretrained": True}, [mx.cpu(0), mx.cpu(1)])
    assert net(nd.ones((1, 3, 16, 16), mx.cpu(1))).shape == (1, 3)
    weights = {name: p.data(mx.cpu(1)).asnumpy() for name, p in net._collect_params_with_prefix().items()}
    assert all((weights[name] == 1).all() for name in weights if name.endswith("weight") and "features" in name)
    assert weights["output.weight"].shape == (3, 64) and not (weights["output.weight"] == 1).any()

    def offline(name, **options):
        if "pretrained" in options:
            raise ConnectionError("no network")
        return real(name, **options)

    monkeypatch.setattr(theirs, "get_model", offline)
    with pytest.raises(UserError, match="needs weights that cannot be downloaded here .*put them into ~/.mxnet/models"):
        zoo_network("cifar_resnet20_v1", 10, {"input_size": 16, "pretrained": True}, [mx.cpu()])


def test_an_option_that_gluoncv_would_forget_is_refused():
    with pytest.raises(UserError, match="no option 'use_se'"):  # GluonCV takes it, and forgets it
        zoo_network("resnext50_32x4d", 3, {"use_se": True}, [mx.cpu()])


@pytest.mark.parametrize("name", ["hrnet_w18_small_v1_c", "resnet18_v1b_0.89", "resnet50_v1b_gn", "nasnet_4_1056"])
def test_gluoncv_models_whose_heads_are_their_own_train_on_other_classes(name):
    """The first takes num_classes, the second declares 1,000, the third's norm cannot be hybridized, the last has two outputs."""
    net, arch, size = zoo_network(name, 7, {"input_size": 96}, [mx.cpu()])
    net.hybridize()
    assert arch is None and net(nd.zeros((2, 3, size, size))).shape == (2, 7)


def test_a_model_of_two_outputs_is_refused():
    class Two(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            return x, x

    with pytest.raises(UserError, match="has 2 outputs; what can be trained here has one"):
        check_output(Two(), "two", 3, 16)


def test_every_device_gets_the_mean_of_the_running_statistics():
    net = nn.BatchNorm(in_channels=2)
    net.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    for value, array in enumerate(net.running_mean.list_data(), 1):
        array[:] = value
    average_statistics(net, [mx.cpu(0), mx.cpu(1)])
    assert [array.asnumpy().tolist() for array in net.running_mean.list_data()] == [[1.5, 1.5], [1.5, 1.5]]


def test_a_run_on_two_devices_leaves_them_with_the_same_statistics(data, tmp_path, monkeypatch):
    seen = []

    def watched(net, contexts):
        average_statistics(net, contexts)
        seen.append([[array.asnumpy() for array in parameter.list_data()] for parameter in net.collect_params().values()])

    monkeypatch.setattr("oneshot_nas.train.checkpoint.average_statistics", watched)
    train(tiny.gluoncv(data, epochs=1, contexts=2), tmp_path, quiet)
    assert all(np.array_equal(first, second) for first, second in seen[-1])
