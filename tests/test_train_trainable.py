"""Training of some parameters only: what moves, what stays bit by bit, what is counted, and that statistics go on moving."""

import random
from functools import partial

import mxnet as mx
import numpy as np
import pytest
import tiny
from mxnet import autograd, nd

from oneshot_nas.arch import get_space
from oneshot_nas.blocks import compiled
from oneshot_nas.errors import UserError
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.sections import Optimizer
from oneshot_nas.train import checkpoint, loop
from oneshot_nas.train.job import make_job
from oneshot_nas.train.loop import train
from oneshot_nas.train.losses import CrossEntropy
from oneshot_nas.train.step import run_step, targets, trainer_of
from oneshot_nas.train.trainable import Count, freeze


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"))


def forward(net, arch, images):
    return net(images, arch)


def before_and_after(recipe, folder, say=lambda text: None):
    first = {name: parameter.data().asnumpy()
             for name, parameter in make_job(recipe, loop.open_source(recipe)).net._collect_params_with_prefix().items()}
    train(recipe, folder, say)
    last = {name: array.asnumpy() for name, array in nd.load(str(checkpoint.latest_weights(folder / "checkpoint"))).items()}
    return first, last


@pytest.mark.parametrize(("which", "contexts"), [("bn", 1), ("scoring-bn", 3)])
def test_frozen_weights_stay_bit_by_bit_and_statistics_move(which, contexts, data, tmp_path):
    log = []
    recipe = tiny.narrow_supernet(data, epochs=1, trainable=which, contexts=contexts, batch_size=6)
    first, last = before_and_after(recipe, tmp_path, log.append)
    moving = {name for name in first if name.endswith((".gamma", ".beta")) and (which == "bn" or ".shuffle3.bn3." in name)}
    assert len(moving) == (2 * 20 if which == "scoring-bn" else len(moving)) > 0
    for name, value in first.items():
        moved = not np.array_equal(value, last[name])
        assert moved == (name in moving or "running" in name), name
    numbers = sum(first[name].size for name in moving)
    whole = sum(value.size for name, value in first.items() if "running" not in name)
    assert any(f"{numbers:,} of {whole:,} parameters are trained" in line for line in log)
    arrays = nd.load(str(tmp_path / "checkpoint/optimizer-0001.arrays"))
    assert {name.rpartition(":")[0] for name in arrays} <= moving


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["spos_shufflenet", "proxyless_gpu"])
def test_statistics_are_those_of_full_training_when_nothing_moves(name, plain, monkeypatch):
    """A backward pass ends at the first scoring BatchNorm: before it, statistics move in the forward pass or it goes on."""
    monkeypatch.setattr("oneshot_nas.blocks.compiled.usable", lambda parameters: not plain and compiled.available())
    space = get_space(name, layout="small", input_size=32, classes=4)
    images, wanted = nd.array(np.random.RandomState(0).rand(8, 3, 32, 32)), targets(nd.arange(8) % 4, 4, 0.1)
    ends, nodes = {}, {}
    for which in ("all", "scoring-bn"):
        mx.random.seed(0)
        net = Supernet(space)
        net.initialize()
        if which != "all":
            freeze(net, which)
        trainer = trainer_of(net.collect_params(), Optimizer(lr=1e-30, wd=0.0))
        for seed in (0, 1):
            arch = space.sample(random.Random(seed))
            run_step(partial(forward, net, arch), [(images, wanted)], CrossEntropy(), trainer, 8)
        net.flush()
        ends[which] = {key: p.data().asnumpy() for key, p in net._collect_params_with_prefix().items() if "running" in key}
        with autograd.record():
            nodes[which] = len(autograd.get_symbol(net(images, arch)).get_internals())
    for key, value in ends["all"].items():
        assert ends["scoring-bn"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    moved = [key for key, value in ends["all"].items() if value.any() and not (value == 1).all()]
    assert {"stem.bn.running_mean", "stem.bn.running_var"} <= set(moved)
    shorter = name == "proxyless_gpu" and not plain and compiled.available()
    assert (nodes["scoring-bn"] < nodes["all"]) == shorter  # the first blocks are off the tape


def test_a_fixed_network_trains_its_batch_norms(data, tmp_path):
    for make in (tiny.fixed, tiny.gluoncv):
        log: list[str] = []
        train(make(data, epochs=1, trainable="bn"), tmp_path / make.__name__, log.append)
        assert any(" parameters are trained" in line and " 0 of" not in line for line in log)


def test_counts_of_the_space_of_bn_nas():
    """BN-NAS trains 33,216 of 27,684,320 numbers (reference sheet, section 2.2)."""
    net = Supernet(get_space("proxyless_gpu"))
    net.initialize()
    assert freeze(net, "scoring-bn") == Count(33_216, 27_684_320 - 33_216)
    assert len([p for p in net.collect_params().values() if p.grad_req == "write"]) == 2 * 126


def test_nothing_left_to_train_is_an_error(data):
    net = Supernet(get_space("attentive_mobilenet", layout="small", input_size=32, classes=10))
    with pytest.raises(UserError, match="'scoring-bn' leaves nothing to train: no block of this space is one candidate"):
        freeze(net, "scoring-bn")
    with pytest.raises(UserError, match="trainable 'scoring-bn' is for a supernet"):
        tiny.fixed(data, trainable="scoring-bn")
    with pytest.raises(UserError, match="'trainable' = 'gamma'"):
        tiny.supernet(data, trainable="gamma")
