"""Blocks against plain NumPy: both channel splits, squeeze-and-excite, activations, BatchNorm, initial values, views."""

import mxnet as mx
import numpy as np
import pytest
from layers import arrays, made
from mxnet import autograd, nd

from oneshot_nas.blocks import block as block_module
from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.blocks.tracer import activate
from oneshot_nas.ops import Chain, ShuffleUnit, ShuffleXception, largest
from oneshot_nas.primitives import ACTIVATIONS, Activation, BatchNorm, Conv, Dense, Dropout, GlobalPool, SqueezeExcite

RNG = np.random.default_rng(0)


def images(channels, side=6, batch=4):
    return RNG.normal(size=(batch, channels, side, side)).astype(np.float32)


def conv(x, weight, stride=1, groups=1):
    out = nd.Convolution(
        nd.array(x),
        nd.array(weight),
        kernel=weight.shape[2:],
        stride=(stride, stride),
        pad=(weight.shape[2] // 2,) * 2,
        num_filter=weight.shape[0],
        num_group=groups,
        no_bias=True,
    )
    return out.asnumpy()


def norm(x, p, name):
    gamma, beta, mean, var = (p[f"{name}.{what}"][:, None, None] for what in ("gamma", "beta", "running_mean", "running_var"))
    return (x - mean) / np.sqrt(var + 1e-5) * gamma + beta


def relu(x):
    return np.maximum(x, 0)


def shuffle_main(x, p, stride, groups):
    x = relu(norm(conv(x, p["pw1.weight"]), p, "bn1"))
    x = norm(conv(x, p["dw.weight"], stride, groups), p, "bn2")
    return relu(norm(conv(x, p["pw2.weight"]), p, "bn3"))


def projection(x, p):
    x = norm(conv(x, p["proj_dw.weight"], 2, x.shape[1]), p, "proj_bn1")
    return relu(norm(conv(x, p["proj_pw.weight"]), p, "proj_bn2"))


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_even_channels_pass_by_and_odd_ones_are_computed(kernel):
    net, x = made(ShuffleUnit(16, 16, 11, kernel, 1)), images(16)
    out = net(nd.array(x)).asnumpy()
    assert np.array_equal(out[:, :8], x[:, 0::2])
    assert np.allclose(out[:, 8:], shuffle_main(x[:, 1::2], arrays(net), 1, 11), atol=1e-4)


def test_stride_two_projects_all_channels_first():
    net, x = made(ShuffleUnit(16, 24, 12, 5, 2)), images(16, side=7)
    out, p = net(nd.array(x)).asnumpy(), arrays(net)
    assert out.shape == (4, 24, 4, 4)
    assert np.allclose(out[:, :16], projection(x, p), atol=1e-4)
    assert np.allclose(out[:, 16:], shuffle_main(x, p, 2, 12), atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_contiguous_split_shuffles_after_the_concat(stride):
    net, x = made(ShuffleUnit(16, 16 * stride, 12, 3, stride, split="contiguous")), images(16)
    p = arrays(net)
    first, main = (x[:, :8], shuffle_main(x[:, 8:], p, 1, 12)) if stride == 1 else (projection(x, p), shuffle_main(x, p, 2, 12))
    joined = np.concatenate([first, main], axis=1)
    mixed = np.stack(np.split(joined, 2, axis=1), axis=2).reshape(joined.shape)  # output 2 i + g is input g C/2 + i
    assert np.allclose(net(nd.array(x)).asnumpy(), mixed, atol=1e-4)


def test_xception_strides_once():
    net, x = made(ShuffleXception(16, 24, 10, 3, 2)), images(16, side=8)
    p = arrays(net)
    main = relu(norm(conv(norm(conv(x, p["dw1.weight"], 2, 16), p, "bn1"), p["pw1.weight"]), p, "bn2"))
    main = relu(norm(conv(norm(conv(main, p["dw2.weight"], 1, 10), p, "bn3"), p["pw2.weight"]), p, "bn4"))
    main = relu(norm(conv(norm(conv(main, p["dw3.weight"], 1, 10), p, "bn5"), p["pw3.weight"]), p, "bn6"))
    assert np.allclose(net(nd.array(x)).asnumpy(), np.concatenate([projection(x, p), main], axis=1), atol=1e-4)


def hard_sigmoid(x):
    return np.clip(x + 3, 0, 6) / 6


def test_squeeze_and_excite_follows_the_main_branch_only():
    plain, gated = ShuffleUnit(16, 64, 10, 3, 2), ShuffleUnit(16, 64, 10, 3, 2, se=True)
    net = made(gated)
    without, p, x = OpBlock(plain, "layer"), arrays(net), images(16)
    without.initialize()
    for name, parameter in without._reg_params.items():
        parameter.set_data(net.parameter(name).data())
    before, after = without(nd.array(x)).asnumpy(), net(nd.array(x)).asnumpy()
    pooled = before[:, 16:].mean(axis=(2, 3))
    hidden = relu(pooled @ p["se.reduce.weight"][:, :, 0, 0].T + p["se.reduce.bias"])
    gate = hard_sigmoid(hidden @ p["se.expand.weight"][:, :, 0, 0].T + p["se.expand.bias"])
    assert p["se.reduce.weight"].shape == (16, 48, 1, 1)
    assert np.array_equal(after[:, :16], before[:, :16])
    assert np.allclose(after[:, 16:], before[:, 16:] * gate[:, :, None, None], atol=1e-4)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind):
    reference = {
        "relu": relu,
        "relu6": lambda x: np.clip(x, 0, 6),
        "swish": lambda x: x / (1 + np.exp(-x)),
        "hswish": lambda x: x * hard_sigmoid(x),
        "hsigmoid": hard_sigmoid,
    }[kind]
    x = np.linspace(-8, 8, 65, dtype=np.float32)
    assert np.allclose(activate(nd, nd.array(x), kind).asnumpy(), reference(x), atol=1e-6)


def test_batch_norm_keeps_nine_tenths_of_its_statistics():
    """MXNet's momentum is the share kept; the published MXNet port kept a tenth by mistake."""
    net = OpBlock(Chain(2, (BatchNorm("bn", 2),)), "layer")
    net.initialize()
    x = nd.array(images(2))
    for _ in range(2):
        with autograd.record():
            loss = net(x).sum()
        loss.backward()
    mean, var = (
        a.asnumpy() for a in (x.mean(axis=(0, 2, 3)), ((x - x.mean(axis=(0, 2, 3), keepdims=True)) ** 2).mean(axis=(0, 2, 3)))
    )
    assert np.allclose(net.parameter("bn.running_mean").data().asnumpy(), mean * 0.19, atol=1e-6)
    assert np.allclose(net.parameter("bn.running_var").data().asnumpy(), 0.81 + 0.19 * var, rtol=0.02)  # n / (n - 1) is 1.007


def test_initial_values():
    """Depthwise std 1, pointwise 1 / inputs, stem and classifier 0.01, gamma 1, beta 1e-4, mean 0, var 1 (not 0)."""
    net = OpBlock(ShuffleUnit(256, 512, 500, 7, 2), "layer")
    head = OpBlock(Chain(64, (GlobalPool(), Dense("classifier", 64, 1000))), "head")
    mx.random.seed(0)
    for part in (net, head):
        part.initialize()
    p = {**arrays(net), **arrays(head)}
    for name, std in (
        ("dw.weight", 1),
        ("pw1.weight", 1 / 256),
        ("pw2.weight", 1 / 500),
        ("proj_dw.weight", 1),
        ("classifier.weight", 0.01),
    ):
        assert p[name].std() == pytest.approx(std, rel=0.05) and abs(p[name].mean()) < std / 20
    for name, value in (
        ("bn1.gamma", 1),
        ("bn1.beta", 1e-4),
        ("bn1.running_mean", 0),
        ("bn1.running_var", 1),
        ("classifier.bias", 0),
    ):
        assert np.allclose(p[name], value)


def cut(array, shape):
    """Leading channels, kernels around their centre."""
    starts = [(s - k) // 2 if axis > 1 else 0 for axis, (s, k) in enumerate(zip(array.shape, shape, strict=True))]
    return array[tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))]


OPS = [
    (ShuffleUnit(16, 24, 32, 7, 2, "hswish", True), ShuffleUnit(16, 24, 19, 7, 2, "hswish", True)),
    (ShuffleUnit(16, 16, 32, 5, 1), ShuffleUnit(16, 16, 6, 3, 1)),
    (ShuffleXception(16, 16, 16, 3, 1, split="contiguous"), ShuffleXception(16, 16, 11, 3, 1, split="contiguous")),
]


@pytest.mark.parametrize("whole,part", OPS)
def test_a_view_is_the_cut_out_block(whole, part):
    """At inference and in training, with its gradients; running statistics flow home."""
    owner, x = made(whole), nd.array(images(16))
    view = owner.view(part)
    alone = OpBlock(part, "alone")
    alone.initialize()
    for name, parameter in alone._reg_params.items():
        parameter.set_data(nd.array(cut(owner.parameter(name).data().asnumpy(), parameter.shape)))
    assert np.allclose(view(x).asnumpy(), alone(x).asnumpy(), atol=1e-5)
    before = {name: owner.parameter(name).data().asnumpy() for name in whole.statistics()}
    for net in (view, alone):
        with autograd.record():
            loss = (net(x) ** 2).sum()
        loss.backward()
    view.push_statistics()
    for name, (width,) in part.statistics().items():
        now = owner.parameter(name).data().asnumpy()
        assert np.allclose(now[:width], alone.parameter(name).data().asnumpy(), atol=1e-5) and np.array_equal(
            now[width:], before[name][width:]
        )
        assert not np.allclose(now[:width], before[name][:width])
    scale = max(np.abs(alone.parameter(name).grad().asnumpy()).max() for name in part.parameters())
    for name, shape in part.parameters().items():
        wanted = alone.parameter(name).grad().asnumpy()
        assert (
            np.abs(cut(owner.parameter(name).grad().asnumpy(), shape) - wanted).max() < 1e-3 * np.abs(wanted).max() + 1e-6 * scale
        )


@pytest.mark.parametrize("whole,part", OPS)
def test_padding_changes_neither_outputs_nor_gradients(whole, part, monkeypatch):
    results = []
    x = nd.array(images(16))
    for pad in (8, 1):
        monkeypatch.setattr(block_module, "PAD", pad)
        owner = made(whole)
        view = owner.view(part)
        assert view.physical.mid_channels == -(-part.mid_channels // pad) * pad
        x.attach_grad()
        with autograd.record():
            out = view(x)
            loss = (out * out.sigmoid()).sum()
        loss.backward()
        results.append(
            [out.asnumpy(), x.grad.asnumpy(), *(owner.parameter(name).grad().asnumpy() for name in whole.parameters())]
        )
    for padded, plain in zip(*results, strict=True):
        assert np.abs(padded - plain).max() < 1e-4 * max(1, np.abs(plain).max())
    for name, gradient in zip(whole.parameters(), results[0][2:], strict=True):
        cut(gradient, part.parameters()[name])[:] = 0
        assert not gradient.any(), f"{name}: the padding got a gradient"


@pytest.mark.parametrize("hybridized", [False, True])
def test_views_after_inference_at_full_width(hybridized):
    """MXNet reorders a convolution's weight in place at inference; slicing it afterwards killed the process (SIGFPE)."""
    op = ShuffleUnit(16, 16, 64, 5, 1)
    owner, x = made(op), nd.array(images(16))
    first = None
    for mid in (64, 32, 64, 40):
        view = owner.view(ShuffleUnit(16, 16, mid, 5, 1))
        if hybridized:
            view.hybridize(static_alloc=True, static_shape=True)
        for _ in range(2):
            out = view(x).asnumpy()
        first = out if first is None else first
        assert mid != 64 or np.array_equal(out, first)


def test_folded_batch_norm_gives_the_same_output():
    for op, _ in OPS:
        net, x = made(op), nd.array(images(16))
        assert np.allclose(net.trace(nd, x, mode="folded").asnumpy(), net(x).asnumpy(), atol=1e-4)


def test_observed_batch_statistics():
    net, x = made(Chain(16, (Conv("conv", 16, 8), BatchNorm("bn", 8), Dropout(0.5)))), nd.array(images(16))
    collected: list = []
    with autograd.train_mode():
        net.trace(nd, x, mode="observe", collected=collected)
    (name, mean, inverse), before = collected[0], conv(x.asnumpy(), arrays(net)["conv.weight"])
    assert name == "bn" and np.allclose(mean.asnumpy(), before.mean(axis=(0, 2, 3)), atol=1e-5)
    assert np.allclose(inverse.asnumpy(), 1 / np.sqrt(before.var(axis=(0, 2, 3)) + 1e-5), rtol=1e-4)


def test_blocks_are_hybridizable_and_exportable():
    for op, _ in OPS:
        net, x = made(op), nd.array(images(16))
        eager = net(x).asnumpy()
        net.hybridize()
        assert np.allclose(net(x).asnumpy(), eager, atol=1e-5)
        assert isinstance(net(mx.sym.var("data")), mx.sym.Symbol)


def test_an_op_outside_the_owner_is_refused():
    owner = made(ShuffleUnit(16, 16, 16, 5, 1))
    for op in (ShuffleUnit(16, 16, 17, 5, 1), ShuffleUnit(16, 16, 16, 7, 1)):
        with pytest.raises(ValueError, match="is not contained in"):
            owner.view(op)
    for op in (ShuffleUnit(16, 16, 8, 5, 1, "hswish"), ShuffleXception(16, 16, 8, 3, 1)):
        with pytest.raises(ValueError, match="share no weights"):
            owner.view(op)


def test_largest_of_ops():
    a, b = ShuffleUnit(16, 16, 8, 5, 1), ShuffleUnit(16, 16, 12, 3, 1)
    assert largest(a, b) == ShuffleUnit(16, 16, 12, 5, 1)
    assert largest(Chain(3, (Conv("c", 3, 8),)), Chain(3, (Conv("c", 3, 9),))) == Chain(3, (Conv("c", 3, 9),))
    with pytest.raises(ValueError, match="share no weights"):
        largest(Chain(3, (Activation("relu"),)), Chain(3, (SqueezeExcite("s", 3, 8),)))
