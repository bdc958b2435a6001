"""The supernet in training: what a step may touch, on one and two devices, and where running statistics go."""

import random

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon, nd

from oneshot_nas.arch import get_space
from oneshot_nas.blocks import block as block_module
from oneshot_nas.blocks import tracer
from oneshot_nas.errors import UserError
from oneshot_nas.nets import supernet as supernet_module
from oneshot_nas.nets.inherit import inherit
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.ops import ShuffleUnit
from oneshot_nas.primitives import Dropout
from oneshot_nas.train.step import make_trainer

SPACE = get_space("spos_shufflenet", layout="small", stem_stride=2, last_channels=64, input_size=32, classes=10)
LR, MOMENTUM, WD = 0.1, 0.9, 0.01


def uniform(block, scale, space=SPACE):
    return space.arch({"block": [block] * 20, "scale": [scale] * 20})


def images(batch=8):
    rng = np.random.default_rng(0)
    return nd.array(rng.normal(size=(batch, 3, 32, 32))), nd.array(rng.integers(0, 10, batch))


def made(contexts=None, space=SPACE):
    mx.random.seed(0)
    net = Supernet(space)
    net.initialize(ctx=contexts or [mx.cpu()])
    rng = np.random.default_rng(0)
    for name, parameter in sorted(net.collect_params().items()):
        if name.endswith("beta"):  # mostly open activations, so that training mode is well conditioned
            parameter.set_data(nd.array(rng.normal(1.5, 0.3, parameter.shape)))
        elif name.endswith("gamma"):
            parameter.set_data(nd.array(rng.uniform(0.5, 1.0, parameter.shape)))
    return net


def snapshot(net):
    """Every parameter on every device, by plan name."""
    net.flush()
    return {
        name: [array.asnumpy() for array in parameter.list_data()]
        for name, parameter in net._collect_params_with_prefix().items()
    }


def step(net, trainer, arch, contexts):
    x, labels = images()
    with autograd.record():
        losses = [
            gluon.loss.SoftmaxCrossEntropyLoss()(net(part, arch), label)
            for part, label in zip(
                gluon.utils.split_and_load(x, contexts), gluon.utils.split_and_load(labels, contexts), strict=True
            )
        ]
    autograd.backward(losses)
    trainer.step(len(x), ignore_stale_grad=True)


def trained(net, **settings):
    return make_trainer(net.collect_params(), "sgd", {"learning_rate": LR, "momentum": MOMENTUM, "wd": WD, **settings})


def used(name, block):
    """Whether a parameter takes part when every layer is `block`."""
    return name.startswith(("stem.", "head.")) or f".{block}." in name


@pytest.mark.parametrize("contexts", [[mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]], ids=["one", "two"])
def test_operators_that_were_not_sampled_stay_bit_identical(contexts):
    """Also after they have momentum: the third step must not move what the second one trained."""
    net = made(contexts)
    trainer = trained(net)
    trainable = {name for name, parameter in net._collect_params_with_prefix().items() if parameter.grad_req != "null"}
    for block, scale in (("shuffle3", 1.0), ("xception", 2.0), ("shuffle3", 0.6)):
        before = snapshot(net)
        step(net, trainer, uniform(block, scale), contexts)
        for name, arrays in snapshot(net).items():
            same = [np.array_equal(new, old) for new, old in zip(arrays, before[name], strict=True)]
            assert all(same) if not used(name, block) else not any(same), f"{name} after a step of {block}"
            assert name not in trainable or all(np.array_equal(array, arrays[0]) for array in arrays), (
                f"{name} differs between devices"
            )


def test_the_default_trainer_would_move_them_on_two_devices():
    """Why every trainer is made by `make_trainer`."""
    contexts = [mx.cpu(0), mx.cpu(1)]
    net = made(contexts)
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": LR, "wd": WD})
    before = snapshot(net)
    step(net, trainer, uniform("shuffle3", 1.0), contexts)
    name = "stage1.block2.shuffle5.pw1.weight"
    assert not np.array_equal(snapshot(net)[name][0], before[name][0])


def test_rows_outside_the_slice_decay_and_coast():
    """Decided: within a sampled operator rows outside the slice have gradient 0; momentum and weight decay go on for them."""
    net = made()
    trainer = trained(net)
    name, width = "stage2.block2.shuffle3.pw1.weight", 32 * 6 // 10
    step(net, trainer, uniform("shuffle3", 2.0), [mx.cpu()])
    one = snapshot(net)[name][0]
    momentum = (
        trainer._updaters[0]
        .states[[p.name for p in trainer._params].index(net._collect_params_with_prefix()[name].name)]
        .asnumpy()
    )
    step(net, trainer, uniform("shuffle3", 0.6), [mx.cpu()])
    two = snapshot(net)[name][0]
    coasting = one + MOMENTUM * momentum - LR * WD * one
    assert np.allclose(two[width:], coasting[width:], rtol=1e-5, atol=1e-7)
    assert not np.allclose(two[:width], coasting[:width], rtol=1e-5, atol=1e-7)


def test_without_momentum_and_decay_rows_outside_the_slice_stay():
    net = made()
    trainer = trained(net, momentum=0.0, wd=0.0)
    before = snapshot(net)
    step(net, trainer, uniform("shuffle5", 0.6), [mx.cpu()])
    after, width = snapshot(net), 32 * 6 // 10
    for name in ("stage2.block2.shuffle5.pw1.weight", "stage2.block2.shuffle5.dw.weight", "stage2.block2.shuffle5.bn2.gamma"):
        assert np.array_equal(after[name][0][width:], before[name][0][width:]), name
        assert not np.array_equal(after[name][0][:width], before[name][0][:width]), name
    columns = "stage2.block2.shuffle5.pw2.weight"
    assert np.array_equal(after[columns][0][:, width:], before[columns][0][:, width:])


@pytest.mark.parametrize("contexts", [[mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]], ids=["one", "two"])
def test_running_statistics_flow_home(contexts):
    """After training steps the supernet has, in the used slice, the statistics that the inherited network gets."""
    net = made(contexts)
    arch, (x, _) = SPACE.sample(random.Random(0)), images()
    fixed = inherit(net, arch)
    before = snapshot(net)
    for _ in range(2):
        with autograd.record():
            losses = [
                (forward(part) ** 2).sum()
                for forward in (lambda part: net(part, arch), fixed)
                for part in gluon.utils.split_and_load(x, contexts)
            ]
        autograd.backward(losses)
    after = snapshot(net)
    for layer, (_, block) in zip(SPACE.plan(arch).layers, fixed.blocks(), strict=True):
        for name, (width,) in layer.op.statistics().items():
            for got, wanted in zip(after[f"{layer.weights}.{name}"], block.parameter(name).list_data(), strict=True):
                assert np.allclose(got[:width], wanted.asnumpy(), rtol=1e-3, atol=1e-4), f"{layer.name}.{name}"
    for layer, (_, block) in zip(SPACE.plan(arch).layers, inherit(net, arch).blocks(), strict=True):
        for name, (width,) in layer.op.statistics().items():  # on every device those of that device
            for got, wanted in zip(block.parameter(name).list_data(), after[f"{layer.weights}.{name}"], strict=True):
                assert np.array_equal(got.asnumpy(), wanted[:width]), f"{layer.name}.{name}"
    changed = {name for name in after if not np.array_equal(after[name][0], before[name][0])}
    assert changed == {f"{layer.weights}.{name}" for layer in SPACE.plan(arch).layers for name in layer.op.statistics()}


def test_running_statistics_flow_home_after_the_arrays_were_replaced():
    net, arch, (x, _) = made(), SPACE.sample(random.Random(0)), images()
    found = []
    for _ in range(2):
        with autograd.record():
            loss = net(x, arch).sum()
        loss.backward()
        found.append(snapshot(net))
        for name, parameter in net._collect_params_with_prefix().items():
            if "running" in name:
                parameter.initialize(force_reinit=True)  # other arrays, at their first values
    for name, arrays in found[0].items():
        assert np.array_equal(arrays[0], found[1][name][0]), name
    assert not np.array_equal(found[0]["stem.bn.running_mean"][0], snapshot(net)["stem.bn.running_mean"][0])


def test_statistics_of_a_view_stay_its_own():
    net, (x, _) = made(), images()
    before, view = snapshot(net), net.view(uniform("shuffle3", 2.0))
    with autograd.record():
        loss = view(x).sum()
    loss.backward()
    assert float(view.blocks()[0][1].parameter("bn.running_mean").data().abs().sum().asscalar()) > 0
    assert all(np.array_equal(arrays[0], before[name][0]) for name, arrays in snapshot(net).items())


def test_padded_widths_change_neither_outputs_nor_gradients(monkeypatch):
    arch, (x, _) = SPACE.sample(random.Random(1)), images(16)
    results = []
    for pad in (8, 1):
        monkeypatch.setattr(block_module, "PAD", pad)
        net = made()
        for mode in (autograd.train_mode, autograd.predict_mode):
            with mode():
                results.append(net(x, arch).asnumpy())
        with autograd.record():
            loss = (net(x, arch) ** 2).sum()
        loss.backward()
        results.append(
            {
                name: parameter.grad().asnumpy()
                for name, parameter in net._collect_params_with_prefix().items()
                if parameter.grad_req != "null"
            }
        )
    for padded, plain in zip(results[:2], results[3:5], strict=True):
        assert np.abs(padded - plain).max() < 1e-4 * plain.std()
    scale = max(np.abs(gradient).max() for gradient in results[5].values())
    for name, plain in results[5].items():
        assert np.abs(results[2][name] - plain).max() < 1e-3 * np.abs(plain).max() + 1e-6 * scale, name


def test_training_one_path_is_training_the_fixed_network(monkeypatch):
    monkeypatch.setitem(tracer._APPLY, Dropout, lambda run, x, primitive, actual: x)
    net, (x, labels), arch = made(), images(), SPACE.sample(random.Random(5))
    fixed, losses = inherit(net, arch), []
    for forward, params in ((lambda x: net(x, arch), net.collect_params()), (fixed, fixed.collect_params())):
        trainer = make_trainer(params, "sgd", {"learning_rate": 0.01, "momentum": MOMENTUM, "wd": WD})
        for _ in range(5):
            with autograd.record():
                loss = gluon.loss.SoftmaxCrossEntropyLoss()(forward(x), labels)
            loss.backward()
            trainer.step(len(x), ignore_stale_grad=True)
            losses.append(float(loss.mean().asscalar()))
    assert losses[4] < 0.8 * losses[0]
    assert losses[:5] == pytest.approx(losses[5:], rel=1e-2)


def test_mean_of_blocks_averages_every_operator():
    net, (x, _) = made(), images()
    arch = SPACE.sample(random.Random(2))
    out = x
    for layers in zip(
        *(SPACE.plan(SPACE.arch({**arch.choices, "block": [block] * 20})).layers for block in SPACE.choice("block").values[0]),
        strict=True,
    ):
        outputs = [net.owner(layer.weights).view(layer.op)(out) for layer in {layer.weights: layer for layer in layers}.values()]
        out = nd.add_n(*outputs) / len(outputs)
    assert np.allclose(net.mean_of_blocks(x, arch).asnumpy(), out.asnumpy(), atol=1e-5)


def test_mean_of_blocks_reaches_all_that_is_left_of_a_narrowed_space():
    allowed = [["shuffle3"], ["shuffle3", "shuffle5", "xception"], *([["xception"]] * 18)]
    space = SPACE.restrict({"block": allowed})
    net = Supernet(space)
    net.initialize()
    with autograd.record():
        total = net.mean_of_blocks(images()[0], space.sample(random.Random(2))).sum()
    total.backward()
    for name, values in zip(("stage1.block1", "stage1.block2", "stage1.block3"), allowed, strict=False):
        for block in values:
            assert net.owner(f"{name}.{block}").parameter("pw1.weight").grad().norm().asscalar() > 0, (name, block)


def test_a_selector_averages_its_candidates_and_leaves_the_weights_as_they_were():
    net, x = made(), nd.array(np.random.default_rng(0).normal(size=(2, 32, 8, 8)))
    selector = dict(net._children)["stage1.block2"]
    outputs = [owner(x) for weights, owner in net._store.owners.items() if weights.startswith("stage1.block2.")]
    selector.hybridize()
    for _ in range(2):
        assert np.allclose(selector(x).asnumpy(), nd.add_n(*outputs).asnumpy() / 4, atol=1e-5)
    for scale in (0.6, 2.0, 1.4):  # at inference MXNet reorders weights that are not copied; slicing those kills the process
        view = net.view(uniform("shuffle5", scale)).blocks()[2][1]
        assert np.isfinite(view(x).asnumpy()).all()


def test_hybridize_is_refused():
    net = Supernet(SPACE)
    with pytest.raises(TypeError, match=r"hybridize net.view\(arch\) for one architecture"):
        net.hybridize()
    net.hybridize(False)


def test_save_and_load_by_plan_names(tmp_path):
    net, other, (x, _) = made(), Supernet(SPACE), images()
    step(net, trained(net), uniform("shuffle7", 1.4), [mx.cpu()])  # leaves statistics in views
    path = str(tmp_path / "supernet.params")
    net.save_parameters(path)
    other.load_parameters(path)
    names = set(nd.load(path))
    assert {
        "stem.conv.weight",
        "stage1.block2.shuffle5.pw1.weight",
        "stage4.block1.xception.proj_bn1.running_var",
        "head.classifier.bias",
    } <= names
    assert names == {
        f"{weights}.{name}"
        for weights, owner in net._store.owners.items()
        for name in (*owner.op.parameters(), *owner.op.statistics())
    }
    for arch in (uniform("shuffle7", 1.4), SPACE.sample(random.Random(3))):
        assert np.array_equal(net(x, arch).asnumpy(), other(x, arch).asnumpy())


def test_foreign_architectures_are_refused():
    net, (x, _) = Supernet(SPACE), images()
    for arch, message in [
        (get_space("spos_shufflenet", **{**SPACE.options, "classes": 7}).smallest(), "has option 'classes' = 7, expected 10"),
        (get_space("spos_shufflenet").smallest(), "the architecture has option 'layout' = 'oneshot', expected 'small'"),
    ]:
        for call in (lambda arch=arch: net(x, arch), lambda arch=arch: net.view(arch), lambda arch=arch: inherit(net, arch)):
            with pytest.raises(UserError, match=message):
                call()


def test_views_are_kept_and_bounded(monkeypatch):
    monkeypatch.setattr(supernet_module, "MAX_VIEWS", 30)
    net, (x, _) = made(), images()
    first = net(x, uniform("shuffle3", 1.0)).asnumpy()
    views = dict(net._store.views)
    net(x, uniform("shuffle3", 1.0))
    assert len(views) == 22 and all(net._store.views[key] is view for key, view in views.items())
    for scale in (0.2, 1.6, 2.0):
        net(x, uniform("xception", scale))
    assert len(net._store.views) == 30
    assert np.array_equal(net(x, uniform("shuffle3", 1.0)).asnumpy(), first)


def test_the_supernet_holds_exactly_the_largest_widths():
    net = Supernet(SPACE)
    for weights, owner in net._store.owners.items():
        if ".shuffle" in weights or ".xception" in weights:
            assert isinstance(owner.op, ShuffleUnit) and owner.op.mid_channels == owner.op.out_channels, weights
    assert len(net._store.owners) == 2 + 4 * 20
