"""The compiled operators: MXNet's functions and gradients; without a compiler nothing changes but the speed."""

import os
import sys
from pathlib import Path
from unittest.mock import Mock

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from oneshot_nas.blocks import compiled
from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.blocks.tracer import activate, compiled_norms
from oneshot_nas.ops import MBConv, ShuffleUnit

needed = pytest.mark.skipif(not compiled.available(), reason="no C++ compiler on this machine: MXNet's operators are used")


def run(function, x, weight, top):
    x.attach_grad()
    weight.attach_grad()
    with autograd.record():
        y = function(x, weight)
    y.backward(top)
    return [array.asnumpy() for array in (y, x.grad, weight.grad)]


@needed
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 5), (7, 7), (8, 6), (14, 9), (56, 56)])
def test_outputs_and_gradients_are_mxnets(kernel, stride, size):
    rng = np.random.default_rng(0)
    outputs = [(side - 1) // stride + 1 for side in size]
    x, weight, top = (nd.array(rng.normal(size=shape)) for shape in ((3, 10, *size), (10, 1, kernel, kernel), (3, 10, *outputs)))
    settings = {"kernel": (kernel,) * 2, "pad": (kernel // 2,) * 2, "stride": (stride,) * 2, "num_filter": 10, "num_group": 10,
                "no_bias": True}
    plain = run(lambda a, w: nd.Convolution(a, w, **settings), x, weight, top)
    ours = run(lambda a, w: nd.oneshot_nas_depthwise(a, w, kernel=kernel, stride=stride), x, weight, top)
    for expected, found in zip(plain, ours, strict=True):
        assert abs(expected - found).max() < 1e-5 * max(abs(expected).max(), 1)


@needed
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (3, 10, 5, 7), (2, 32, 8, 8)])
def test_even_and_odd_channels_go_and_come_back(shape):
    x = nd.arange(np.prod(shape)).reshape(shape)
    x.attach_grad()
    with autograd.record():
        even, odd = nd.oneshot_nas_halves(x)
        loss = (even * 2).sum() + (odd * odd).sum()
    loss.backward()
    assert (even.asnumpy() == x.asnumpy()[:, ::2]).all() and (odd.asnumpy() == x.asnumpy()[:, 1::2]).all()
    assert (x.grad.asnumpy()[:, ::2] == 2).all() and (x.grad.asnumpy()[:, 1::2] == 2 * odd.asnumpy()).all()


@needed
@pytest.mark.parametrize("kind", compiled.ACTIVATIONS)
@pytest.mark.parametrize("size", [1, 15, 16, 1000, 4097])
def test_activations_and_their_gradients_are_mxnets(kind, size):
    rng = np.random.default_rng(size)
    values = rng.normal(scale=5, size=size)
    edges = [-100, -88.5, -50, -3, -1e-30, 0, 1e-30, 3, 6, 6.0001, 50, 88.5, 100]
    values[: len(edges)] = edges[:size]
    x, top = nd.array(values), nd.array(rng.normal(size=size))
    found = []
    for function in (lambda v: activate(nd, v, kind), lambda v: nd.oneshot_nas_activation(v, kind=kind)):
        x.attach_grad()
        with autograd.record():
            y = function(x)
        y.backward(top)
        found.append((y.asnumpy(), x.grad.asnumpy()))
    for expected, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-6)


@needed
@pytest.mark.parametrize("kind", compiled.ACTIVATIONS)
def test_what_is_no_number_stays_none(kind):
    """The guard of a training run looks for it."""
    values = np.zeros(20)
    values[[3, 17]] = np.nan
    found = nd.oneshot_nas_activation(nd.array(values), kind=kind).asnumpy()
    assert np.isnan(found[[3, 17]]).all() and np.isfinite(np.delete(found, [3, 17])).all()


@needed
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 5), (2, 3, 4, 4), (3, 16, 7, 9)])
def test_a_gate_scales_channels_and_gets_its_gradient(shape):
    rng = np.random.default_rng(0)
    x, gate, top = (nd.array(rng.normal(size=size)) for size in (shape, (*shape[:2], 1, 1), shape))
    plain, ours = (run(function, x, gate, top) for function in (nd.broadcast_mul, nd.oneshot_nas_scale))
    for expected, found in zip(plain, ours, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@needed
@pytest.mark.parametrize("kind", ["none", "relu", *compiled.ACTIVATIONS])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 5), (4, 16, 7, 7), (3, 5, 8, 12)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_with_an_activation_is_mxnets(kind, shape, training):
    rng = np.random.default_rng(0)
    channels = shape[1]
    x, top = nd.array(rng.normal(2, 3, shape)), nd.array(rng.normal(size=shape))
    gamma, beta, mean = (nd.array(rng.normal(1, 0.5, channels)) for _ in range(3))
    variance = nd.array(rng.uniform(0.5, 2, channels))
    found = []
    for ours in (False, True):
        statistics = [mean.copy(), variance.copy()]
        for array in (x, gamma, beta):
            array.attach_grad()
        with autograd.record(train_mode=training):
            if ours:
                flag = nd.full((1, 1, 1, 1), 1.0 if training else 2e8)
                y = nd.oneshot_nas_norm(x, gamma, beta, *statistics, flag, eps=1e-3, momentum=0.7, kind=kind)[0]
            else:
                y = nd.BatchNorm(x, gamma, beta, *statistics, eps=1e-3, momentum=0.7, fix_gamma=False)
                y = y if kind == "none" else activate(nd, y, kind)
        y.backward(top, train_mode=training)
        found.append([array.asnumpy() for array in (y, x.grad, gamma.grad, beta.grad, *statistics)])
    for expected, got in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * max(abs(expected).max(), 1))


@needed
@pytest.mark.parametrize("recorded", [True, False])
def test_a_view_normalises_by_the_batch_in_training_only(recorded):
    block = OpBlock(MBConv(16, 32, 16, 5, 1, activation="relu6"), "unit")
    block.initialize()
    view = block.view(block.op, private_statistics=True)
    view.fast = True
    view.hybridize()
    x = nd.array(np.random.default_rng(0).normal(3, 2, (4, 16, 6, 6)))
    means = []
    for training in (False, True):
        with autograd.record(train_mode=training) if recorded else autograd.pause(train_mode=training):
            view(x).wait_to_read()
        means.append(view.parameter("bn1.running_mean").data().asnumpy())
    assert "oneshot_nas_norm" in view._cached_graph[1].tojson()
    assert not means[0].any() and means[1].all()


@needed
def test_what_the_operators_cannot_do_is_refused():
    for call in (lambda: nd.oneshot_nas_activation(nd.zeros(3), kind="tanh"),
                 lambda: nd.oneshot_nas_scale(nd.zeros((2, 3)), nd.zeros((2, 3)))):
        with pytest.raises(mx.base.MXNetError):
            call().asnumpy()


@needed
@pytest.mark.parametrize("op", [ShuffleUnit(16, 16, 16, 5, 1), MBConv(16, 16, 32, 3, 1, activation="swish", hidden=8)], ids=str)
def test_gradients_of_a_block_accumulate_when_asked(op):
    """MXNet tells a loaded operator nothing of grad_req 'add'; blocks give it copies, whose gradients MXNet adds."""
    block = OpBlock(op, "unit")
    block.initialize()
    view = block.view(block.op)
    view.fast = True
    view.hybridize()
    trained = [key for key in block._reg_params if "running" not in key]
    x, top = (nd.array(np.random.default_rng(seed).normal(size=(2, 16, 6, 6))) for seed in (0, 1))
    found = []
    for request, times in (("write", 1), ("add", 2)):
        for key in trained:
            block.parameter(key).grad_req = request
        for _ in range(times):
            with autograd.record():
                y = view(x)
            y.backward(top)
        found.append({key: block.parameter(key).grad().asnumpy() for key in trained})
    for key, once in found[0].items():
        np.testing.assert_allclose(found[1][key], 2 * once, rtol=1e-4, atol=1e-4 * abs(once).max(), err_msg=key)
        assert abs(once).max() > 0, key


@needed
@pytest.mark.parametrize("op,names", [
    (ShuffleUnit(64, 64, 32, 3, 1), []), (ShuffleUnit(64, 64, 32, 5, 1), ["bn2"]),
    (ShuffleUnit(48, 48, 32, 3, 1), ["bn1", "bn2"]), (ShuffleUnit(48, 48, 19, 3, 1), []),
    (MBConv(24, 24, 96, 3, 1, activation="relu"), ["bn1", "bn2"]), (MBConv(32, 32, 96, 3, 1, activation="relu"), []),
    (MBConv(32, 32, 96, 3, 1), ["bn1", "bn2", "bn3"]),
])
def test_batch_norms_that_are_slow_in_mxnet_are_compiled(op, names):
    """Outputs and gradients stay those of MXNet's operators."""
    assert sorted(compiled_norms(op)) == names
    block = OpBlock(op, "unit")
    block.initialize()
    x, top = (nd.array(np.random.default_rng(seed).normal(size=(4, op.in_channels, 6, 6))) for seed in (0, 1))
    x.attach_grad()
    found = []
    for fast in (False, True):
        view = block.view(op, private_statistics=True)
        view.fast = fast
        with autograd.record():
            y = view(x)
        y.backward(top)
        found.append([y.asnumpy(), x.grad.asnumpy(), *(block.parameter(key).grad().asnumpy() for key in op.parameters())])
    scale = max(abs(plain).max() for plain in found[0])
    for plain, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-3 * abs(plain).max() + 1e-6 * scale)


@needed
@pytest.mark.parametrize("stride", [1, 2])
def test_frozen_weights_get_no_gradient_and_the_others_the_same(stride):
    block = OpBlock(ShuffleUnit(16, 32, 16, 5, stride) if stride == 2 else ShuffleUnit(16, 16, 16, 5, 1), "unit")
    block.initialize()
    for name, parameter in block._reg_params.items():
        parameter.grad_req = "write" if name.endswith((".gamma", ".beta")) else "null"
    found = []
    for fast in (False, True):
        view = block.view(block.op, private_statistics=True)
        view.fast = fast
        view.hybridize()
        x = nd.array(np.random.default_rng(0).normal(size=(2, 16, 6, 6)))
        x.attach_grad()
        with autograd.record():
            y = view(x)
        y.backward(nd.array(np.random.default_rng(1).normal(size=y.shape)))
        assert fast == any("oneshot_nas_depthwise" in node for node in view._cached_graph[1].tojson().splitlines())
        found.append([x.grad.asnumpy(), *(block.parameter(name).grad().asnumpy() for name in ("bn2.gamma", "bn3.beta"))])
    for plain, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * abs(plain).max())


@needed
def test_a_library_that_does_not_load_is_built_anew(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compiled, "_library", lambda: tmp_path / "compiled.so")
    monkeypatch.setenv("CXX", f"{sys.executable} {tmp_path / 'compiler.py'}")  # a command of two words
    (tmp_path / "compiler.py").write_text("import sys\nopen(sys.argv[-1], 'w').write('no library either')\n")
    (tmp_path / "compiled.so").write_bytes(b"cut off")
    compiled.available.cache_clear()
    assert compiled.available() is False
    assert (tmp_path / "compiled.so").read_text() == "no library either"
    told = capsys.readouterr().err
    assert "building faster operators" in told and "note: no faster operators" in told
    assert sorted(os.listdir(tmp_path)) == ["compiled.failed", "compiled.so", "compiler.py"]
    compiled.available.cache_clear()
    assert compiled.available() is False  # but not at every start
    told = capsys.readouterr().err
    assert "building faster operators" not in told and "note: no faster operators" in told
    compiled.available.cache_clear()


def test_without_a_compiler_mxnets_operators_are_used(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    compiled.available.cache_clear()
    assert compiled.available() is False
    monkeypatch.setenv("CXX", "false")
    compiled.available.cache_clear()
    assert compiled.available() is False
    assert "using MXNet's own operators" in capsys.readouterr().err
    for cache in ("/dev/null", "/proc/1/fd/none"):  # a file where a folder should be, a place that nobody may use
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        compiled.available.cache_clear()
        assert compiled.available() is False
        assert "using MXNet's own" in capsys.readouterr().err
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    compiled.available.cache_clear()
    assert compiled.available() is False
    assert "no faster operators (Could not determine home" in capsys.readouterr().err
    monkeypatch.setenv("ONESHOT_NAS_PLAIN", "1")
    compiled.available.cache_clear()
    assert compiled.available() is False
    compiled.available.cache_clear()
