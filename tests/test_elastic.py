"""Elastic layers: a view of each kind of layer equals the layer made by hand from slices of the stored weights."""

import numpy as np
import pytest
from layers import arrays, made
from mxnet import autograd, nd

from oneshot_nas.ops import Chain, MBConv
from oneshot_nas.primitives import BatchNorm, Conv, Dense, SqueezeExcite

RNG = np.random.default_rng(0)


def images(channels, side=7, batch=3):
    return RNG.normal(size=(batch, channels, side, side)).astype(np.float32)


def view_of(whole, part, x):
    """Output of the view, and the stored arrays of the owner."""
    owner = made(whole)
    return owner.view(part)(nd.array(x)).asnumpy(), arrays(owner)


def conv(x, weight, bias=None, stride=1, groups=1):
    """Convolution in float64, window by window."""
    images = len(x)
    out, inner, kernel, _ = weight.shape
    pad = kernel // 2
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    windows = windows.reshape(images, groups, inner, *windows.shape[2:])
    result = np.einsum("ngihwab,goiab->ngohw", windows, weight.reshape(groups, out // groups, inner, kernel, kernel))
    result = result.reshape(images, out, *result.shape[3:])
    return result if bias is None else result + bias[:, None, None]


def norm(x, p, name, width=None):
    gamma, beta, mean, var = (
        p[f"{name}.{what}"][:width, None, None] for what in ("gamma", "beta", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * gamma + beta


def swish(x):
    return x / (1 + np.exp(-x))


def gate(x, p, width, hidden):
    squeezed = x.mean(axis=(2, 3))
    inner = np.maximum(squeezed @ p["se.reduce.weight"][:hidden, :width, 0, 0].T + p["se.reduce.bias"][:hidden], 0)
    outer = inner @ p["se.expand.weight"][:width, :hidden, 0, 0].T + p["se.expand.bias"][:width]
    return x * (np.clip(outer + 3, 0, 6) / 6)[:, :, None, None]


def chain(primitive, channels):
    return Chain(channels, (primitive,))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("inputs,outputs", [(12, 16), (9, 11), (1, 1)])
def test_convolution_of_fewer_channels_and_a_smaller_kernel(inputs, outputs, kernel, stride):
    x, part = images(inputs), Conv("c", inputs, outputs, kernel, stride, bias=True)
    found, p = view_of(chain(Conv("c", 12, 16, 7, stride, bias=True), 12), chain(part, inputs), x)
    rim = (7 - kernel) // 2
    weight = p["c.weight"][:outputs, :inputs, rim : rim + kernel, rim : rim + kernel]
    assert np.allclose(found, conv(x, weight, p["c.bias"][:outputs], stride), atol=1e-4)


def test_convolution_in_groups():
    """Two groups: the leading outputs of the stored weight are dealt to the groups, with the leading inputs of each."""
    x = images(6)
    found, p = view_of(chain(Conv("c", 8, 12, 3, groups=2), 8), chain(Conv("c", 6, 10, 3, groups=2), 6), x)
    assert p["c.weight"].shape == (12, 4, 3, 3)
    assert np.allclose(found, conv(x, p["c.weight"][:10, :3], groups=2), atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_convolution(kernel):
    x, rim = images(10), (5 - kernel) // 2
    found, p = view_of(chain(Conv("c", 24, 24, 5, 2, groups=24), 24), chain(Conv("c", 10, 10, kernel, 2, groups=10), 10), x)
    weight = p["c.weight"][:10, :, rim : rim + kernel, rim : rim + kernel]
    assert np.allclose(found, conv(x, weight, stride=2, groups=10), atol=1e-4)
    by_hand = sum(  # tap by tap, so that the centre crop is seen
        weight[:, 0, a, b][:, None, None] * np.pad(x, ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))[
            :, :, a : a + 7 : 2, b : b + 7 : 2]
        for a in range(kernel) for b in range(kernel)
    )  # fmt: skip
    assert np.allclose(found, by_hand, atol=1e-4)


def test_dense_of_fewer_features():
    x = images(5, side=1)
    found, p = view_of(chain(Dense("d", 12, 10), 12), chain(Dense("d", 5, 10), 5), x)
    assert np.allclose(found, x[:, :, 0, 0] @ p["d.weight"][:, :5].T + p["d.bias"], atol=1e-5)


def test_squeeze_and_excite_of_both_widths():
    x = images(24)
    found, p = view_of(chain(SqueezeExcite("se", 64, 16), 64), chain(SqueezeExcite("se", 24, 8), 24), x)
    assert np.allclose(found, gate(x, p, 24, 8), atol=1e-5)


def test_batch_norm_has_statistics_of_its_own_in_every_view():
    """Two views that train do not see each other's statistics; the owner's slice changes only when they are brought home."""
    owner = made(chain(BatchNorm("bn", 16), 16))
    before, x = arrays(owner), {width: images(width) for width in (5, 11)}
    views = {width: owner.view(chain(BatchNorm("bn", width), width)) for width in x}
    for width, view in views.items():
        assert np.allclose(view(nd.array(x[width])).asnumpy(), norm(x[width], before, "bn", width), atol=1e-5)
        with autograd.record():
            out = view(nd.array(x[width]))
        out.backward()
    for width, view in views.items():
        mean = 0.9 * before["bn.running_mean"][:width] + 0.1 * x[width].mean(axis=(0, 2, 3))
        assert np.allclose(view.parameter("bn.running_mean").data().asnumpy()[:width], mean, atol=1e-5)
    assert all(np.array_equal(array, before[name]) for name, array in arrays(owner).items())
    views[11].push_statistics()
    after = arrays(owner)
    assert not np.allclose(after["bn.running_mean"][:11], before["bn.running_mean"][:11])
    assert np.array_equal(after["bn.running_mean"][11:], before["bn.running_mean"][11:])


# The whole block: expand, depthwise, squeeze-and-excite, project and every rule of the shortcut.


def pooled(x):
    """2x2 means with stride 2; an odd map gets a rim of zeros, which count."""
    pad = x.shape[2] % 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    side = x.shape[2] // 2 * 2
    return x[:, :, :side, :side].reshape(*x.shape[:2], side // 2, 2, side // 2, 2).mean(axis=(3, 5))


def block(inputs, outputs, expand, kernel, stride, side, gated=True, project=None):
    middle = inputs * expand
    return MBConv(inputs, outputs, middle, kernel, stride, "swish", expand > 1, max(8, middle // 4) if gated else 0, "always",
                  inputs != outputs if project is None else project, side % 2 if stride == 2 else 0)  # fmt: skip


def by_hand(x, p, op):
    """The block from slices of the stored arrays `p`."""
    inputs, middle, outputs = op.in_channels, op.mid_channels, op.out_channels
    main = x
    if op.expand:
        main = swish(norm(conv(main, p["expand.weight"][:middle, :inputs]), p, "bn1", middle))
    rim = (p["dw.weight"].shape[2] - op.kernel) // 2
    depthwise = p["dw.weight"][:middle, :, rim : rim + op.kernel, rim : rim + op.kernel]
    main = swish(norm(conv(main, depthwise, stride=op.stride, groups=middle), p, "bn2", middle))
    if op.hidden:
        main = gate(main, p, middle, op.hidden)
    main = norm(conv(main, p["project.weight"][:outputs, :middle]), p, "bn3", outputs)
    shortcut = pooled(x) if op.stride == 2 else x
    return main + (conv(shortcut, p["shortcut.weight"][:outputs, :inputs]) if inputs != outputs else shortcut)


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("inputs,outputs", [(16, 16), (16, 24), (24, 16)])
def test_every_shortcut(inputs, outputs, stride, side):
    """Identity, pool, 1x1 and pool with 1x1, on even maps and on odd ones, which round up in both branches."""
    whole = block(24, 24, 6, 5, stride, side, project=True)
    part = block(inputs, outputs, 4, 3, stride, side)
    x = images(inputs, side)
    found, p = view_of(whole, part, x)
    assert found.shape == (3, outputs, -(-side // stride), -(-side // stride))
    wanted = by_hand(x, p, part)
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()


@pytest.mark.parametrize("side", [6, 7])
def test_block_without_expansion_and_gate(side):
    whole, part = block(24, 24, 1, 5, 1, side, False, True), block(16, 16, 1, 3, 1, side, False)
    x = images(16, side)
    found, p = view_of(whole, part, x)
    assert "expand.weight" not in p and "bn1.gamma" not in p
    wanted = by_hand(x, p, part)
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()


def test_a_pool_that_left_the_rim_out_would_be_seen():
    x = images(2, 7)
    assert pooled(x).shape == (3, 2, 4, 4) and np.allclose(pooled(x)[:, :, 0, 0], x[:, :, 0, 0] / 4)
