"""OFA's and BigNAS' spaces: published numbers, choices per block, kernel transformations, channel sorting."""

import random
from itertools import pairwise, product

import numpy as np
import pytest
from mxnet import autograd, nd

from oneshot_nas.arch import get_space
from oneshot_nas.blocks.block import OpBlock
from oneshot_nas.costs.analytic import cost, flattened
from oneshot_nas.errors import UserError
from oneshot_nas.nets.importance import sort_channels
from oneshot_nas.nets.inherit import inherit
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.ops import MBConv
from oneshot_nas.primitives import BatchNorm
from oneshot_nas.spaces._elastic import round8
from oneshot_nas.spaces.ofa_mobilenet import table

OFA, BIGNAS = get_space("ofa_mobilenet"), get_space("bignas_mobilenet")
SMALL = get_space("ofa_mobilenet", input_size=32, classes=10, resolutions=[32])


def uniform(space, depth, kernel, expand, **other):
    blocks = {"depth": [depth] * 5, "kernel": [kernel] * 20, "expand": [expand] * 20}
    return space.arch({**space.largest().choices, **blocks, **other})


def test_widths_and_their_multiple():
    """Multiples of 8 that never lose a tenth: 1.2 x 16 is 24, not 16; 1.2 x 112 is 136."""
    assert [stage.widths[0] for stage in table(1.0).stages] == [16, 24, 40, 80, 112, 160]
    assert [stage.widths[0] for stage in table(1.2).stages] == [24, 32, 48, 96, 136, 192]
    plan = get_space("ofa_mobilenet", width_mult=1.2).plan(get_space("ofa_mobilenet", width_mult=1.2).smallest())
    assert [plan.layers[place].out_shape[0] for place in (1, 2, -2)] == [24, 24, 1152]
    assert plan.layers[-1].op.primitives[1].out_channels == 1536
    with pytest.raises(UserError, match=r"option 'width_mult' = 1.1 of space 'ofa_mobilenet' is not one of \(1.0, 1.2\)"):
        get_space("ofa_mobilenet", width_mult=1.1)


def by_hand(depth, kernel, expand, resolution=224):
    """Multiply-adds and parameters of a uniform OFA network, from the published table alone."""
    macs = params = 0

    def conv(inputs, outputs, kernel, side, groups=1, norm=True, bias=False):
        nonlocal macs, params
        weights = inputs // groups * outputs * kernel**2
        macs, params = macs + weights * side**2, params + weights + 2 * outputs * norm + outputs * bias

    side, channels = -(-resolution // 2), 16
    conv(3, 16, 3, side)
    conv(16, 16, 3, side, groups=16)
    conv(16, 16, 1, side)
    for width, stride, gated in ((24, 2, 0), (40, 2, 1), (80, 2, 0), (112, 1, 1), (160, 2, 1)):
        for block in range(depth):
            middle, after = channels * expand, -(-side // (stride if block == 0 else 1))
            conv(channels, middle, 1, side)
            conv(middle, middle, kernel, after, groups=middle)
            if gated:
                hidden = max(8, int(middle // 4 + 4) // 8 * 8)
                hidden += 8 * (hidden < 0.9 * (middle // 4))
                conv(middle, hidden, 1, 1, norm=False, bias=True)
                conv(hidden, middle, 1, 1, norm=False, bias=True)
            conv(middle, width, 1, after)
            channels, side = width, after
    conv(160, 960, 1, side)
    conv(960, 1280, 1, 1, norm=False)
    return macs + 1280 * 1000, params + 1280 * 1000 + 1000


@pytest.mark.parametrize("depth,kernel,expand,resolution", [(4, 7, 6, 224), (2, 3, 3, 128), (3, 5, 4, 172), (2, 7, 3, 140)])
def test_costs_from_the_published_table(depth, kernel, expand, resolution):
    space = get_space("ofa_mobilenet", resolutions=[resolution])
    found = cost(uniform(space, depth, kernel, expand))
    assert (found.flops, found.params) == by_hand(depth, kernel, expand, resolution)


def test_published_largest_network():
    """mmrazor evaluates it at 256 pixels: 747.8 M by its count, which sees no dynamic BatchNorm, and 7.6 M parameters (cut)."""
    space = get_space("ofa_mobilenet", resolutions=[256])
    found = cost(space.largest(), "mmrazor")
    norms = sum(2 * np.prod(given) for layer in space.plan(space.largest()).layers
                for primitive, given, _ in flattened(layer.op, layer.in_shape) if isinstance(primitive, BatchNorm))  # fmt: skip
    assert f"{(found.flops - norms) / 1e6:.1f}" == "747.8"
    assert found.params == cost(OFA.largest()).params == 7_664_760
    assert cost(OFA.largest()).flops == 566_170_656


def test_number_of_different_networks():
    """7371 = 9^2 + 9^3 + 9^4 a stage, about 2e19 in all: what is left after blocks that do not run are reset."""
    seen = set()
    values = list(product((3, 5, 7), (3, 4, 6)))
    base = OFA.smallest().choices
    for depth in (2, 3, 4):
        for blocks in product(values, repeat=depth):  # every block that runs; those left out are set to anything
            filled = (*blocks, *[values[hash(blocks) % 9]] * (4 - depth))
            kernel, expand = (tuple(pair[axis] for pair in filled) + (3,) * 16 for axis in (0, 1))
            arch = OFA._arch({**base, "depth": (depth, *base["depth"][1:]), "kernel": kernel, "expand": expand})
            seen.add(OFA.canonical(arch).choices)
    assert len(seen) == 7371 and 1.9e19 < 7371**5 < 2.3e19
    assert OFA.size == 4 * 3**5 * 3**40


def test_blocks_left_out_have_no_effect():
    first = uniform(OFA, 2, 3, 3)
    second = OFA.arch({**first.choices, "kernel": [3, 3, 7, 5] * 5, "expand": [3, 3, 6, 4] * 5})
    assert first != second and OFA.canonical(second) == OFA.canonical(first) == first and OFA.plan(first) == OFA.plan(second)
    third = OFA.arch({**first.choices, "kernel": [3, 5, 7, 5] * 5})
    assert OFA.canonical(third).choices["kernel"] == (3, 5, 3, 3) * 5


def test_every_block_decides_for_itself():
    arch = OFA.sample(random.Random(0))
    blocks = {layer.name: layer.op for layer in OFA.plan(arch).layers if isinstance(layer.op, MBConv)}
    assert len(blocks) == 1 + sum(arch.choices["depth"])
    for stage, depth in enumerate(arch.choices["depth"]):
        for block in range(depth):
            op = blocks[f"stage{stage + 2}.block{block + 1}"]
            kernel, expand = (arch.choices[name][4 * stage + block] for name in ("kernel", "expand"))
            assert (op.kernel, op.mid_channels) == (kernel, op.in_channels * expand)
            assert op.activation == ("relu" if stage < 2 else "hswish") and (op.hidden > 0) == (stage in (1, 3, 4))
            assert op.shortcut == ("identity" if block else "none")
    first = blocks["stage1.block1"]
    assert (first.expand, first.kernel, first.activation, first.shortcut) == (False, 3, "relu", "identity")


# Kernel transformations


def owner_and_arrays(seed=0):
    rng = np.random.default_rng(seed)
    op = MBConv(16, 16, 96, 7, 1, "relu", hidden=24, shortcut="identity", transform=True)
    owner = OpBlock(op, "layer", shared=True)
    owner.initialize()
    for name, parameter in owner._reg_params.items():
        if "to" not in name:
            value = rng.uniform(0.5, 1.5, parameter.shape) if name.endswith("var") else rng.normal(0.1, 0.4, parameter.shape)
            parameter.set_data(nd.array(value))
    return owner, op


def test_matrices_start_as_identities_and_are_the_supernets_alone():
    owner, op = owner_and_arrays()
    assert op.matrices() == {"dw.7to5": (25, 25), "dw.5to3": (9, 9)} and not set(op.matrices()) & set(op.parameters())
    for name, (size, _) in op.matrices().items():
        assert np.array_equal(owner.parameter(name).data().asnumpy(), np.eye(size))
    assert set(OpBlock(op, "fixed")._reg_params) == set(op.parameters()) | set(op.statistics())
    used = {kernel: {name for name in owner.view(smaller(op, kernel))._reg_params if "to" in name} for kernel in (3, 5, 7)}
    assert used == {3: {"dw.7to5", "dw.5to3"}, 5: {"dw.7to5"}, 7: set()}


def smaller(op, kernel, middle=48, hidden=16):
    return MBConv(16, 16, middle, kernel, 1, op.activation, hidden=hidden, shortcut="identity", transform=True)


def transformed(weight, matrices, kernel):
    """Centre of the 7x7 times the first matrix; centre of that times the second."""
    five = (weight[:, :, 1:6, 1:6].reshape(-1, 25) @ matrices["dw.7to5"].T).reshape(-1, 1, 5, 5)
    three = (five[:, :, 1:4, 1:4].reshape(-1, 9) @ matrices["dw.5to3"].T).reshape(-1, 1, 3, 3)
    return {7: weight, 5: five, 3: three}[kernel]


@pytest.mark.parametrize("kernel", [7, 5, 3])
def test_views_compute_with_transformed_kernels(kernel):
    owner, op = owner_and_arrays()
    rng, x = np.random.default_rng(1), nd.array(np.random.default_rng(2).normal(size=(4, 16, 9, 9)))
    part = smaller(op, kernel)
    cropped = owner.view(part)(x).asnumpy()
    plain = (7 - kernel) // 2
    whole = owner.parameter("dw.weight").data().asnumpy()
    alone = OpBlock(part, "alone")
    alone.initialize()
    for name, parameter in alone._reg_params.items():
        parameter.set_data(owner.resolved(name, parameter.shape, x.context))
    crop = whole[:48, :, plain : 7 - plain, plain : 7 - plain]
    assert np.allclose(alone.parameter("dw.weight").data().asnumpy(), crop, atol=1e-6), "identities are the centre crop"
    assert np.allclose(alone(x).asnumpy(), cropped, atol=1e-4)
    matrices = {name: rng.normal(0, 0.3, shape) + np.eye(shape[0]) for name, shape in op.matrices().items()}
    for name, value in matrices.items():
        owner.parameter(name).set_data(nd.array(value))
    view = owner.view(part)
    view.hybridize()
    wanted = transformed(whole.astype(np.float64)[:48], matrices, kernel)
    alone.parameter("dw.weight").set_data(nd.array(wanted))
    assert np.allclose(view(x).asnumpy(), alone(x).asnumpy(), atol=1e-4)
    assert kernel == 7 or not np.allclose(view(x).asnumpy(), cropped, atol=1e-2)


def test_gradients_reach_the_matrices_on_the_way_and_no_others():
    owner, op = owner_and_arrays()
    x = nd.array(np.random.default_rng(2).normal(size=(4, 16, 9, 9)))
    for kernel, reached in ((7, ()), (5, ("dw.7to5",)), (3, ("dw.7to5", "dw.5to3"))):
        for name in op.matrices():
            owner.parameter(name).grad()[:] = 7
        with autograd.record():
            loss = (owner.view(smaller(op, kernel))(x) ** 2).sum()
        loss.backward()
        for name in op.matrices():
            gradient = owner.parameter(name).grad().asnumpy()
            assert (not (gradient == 7).any() and gradient.std() > 1e-4) if name in reached else (gradient == 7).all()


def test_gradient_of_a_matrix_is_that_of_the_product():
    """dL/dM = sum over channels of (dL/dw5) (centre of w7)', with dL/dw5 from a plain 5x5 layer."""
    owner, op = owner_and_arrays()
    x, part = nd.array(np.random.default_rng(2).normal(size=(4, 16, 9, 9))), smaller(op, 5)
    alone = OpBlock(part, "alone")
    alone.initialize()
    for name, parameter in alone._reg_params.items():
        parameter.set_data(owner.resolved(name, parameter.shape, x.context))
    for net in (owner.view(part), alone):
        with autograd.record():
            loss = (net(x) ** 2).sum()
        loss.backward()
    outer = alone.parameter("dw.weight").grad().asnumpy().reshape(48, 25)
    centre = owner.parameter("dw.weight").data().asnumpy()[:48, :, 1:6, 1:6].reshape(48, 25)
    found, wanted = owner.parameter("dw.7to5").grad().asnumpy(), outer.T @ centre
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def supernet():
    """Everything random, the matrices too."""
    net, rng = Supernet(SMALL), np.random.default_rng(0)
    net.initialize()
    for name, parameter in sorted(net.collect_params().items()):
        shape = parameter.shape
        if name.endswith(("7to5", "5to3")):
            value = np.eye(shape[0]) + rng.normal(0, 0.1, shape)
        elif name.endswith(("running_var", "gamma")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.3 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5, shape)
        parameter.set_data(nd.array(value))
    return net


def images():
    return nd.array(np.random.default_rng(5).normal(size=(4, 3, 32, 32)))


def test_a_fixed_network_inherits_plain_kernels(supernet):
    names = set(supernet._collect_params_with_prefix())
    assert {"stage2.block1.dw.7to5", "stage6.block4.dw.5to3"} <= names
    assert not any(name.startswith("stage1.") and name.endswith(("7to5", "5to3")) for name in names)
    for seed in range(2):
        arch = SMALL.sample(random.Random(seed))
        fixed = inherit(supernet, arch)
        assert not any("to3" in name or "to5" in name for name in fixed.collect_params())
        trainable = sum(np.prod(p.shape) for p in fixed.collect_params().values() if p.grad_req != "null")
        assert trainable == cost(arch).params
        wanted = fixed(images()).asnumpy()
        for found in (supernet(images(), arch), supernet.view(arch)(images())):
            assert np.abs(found.asnumpy() - wanted).max() < 1e-4 * wanted.std()


# Channel sorting


def copied(net):
    """The arrays of a supernet by name."""
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


@pytest.fixture
def sortable(supernet):
    kept = copied(supernet)
    yield supernet
    for name, parameter in supernet._collect_params_with_prefix().items():
        parameter.set_data(nd.array(kept[name]))


@pytest.mark.parametrize("trained,same,changed", [((), (6,), (4, 3)), ((4,), (6, 4), (3,)), ((3, 4), (6, 4, 3), ())])
def test_sorting_keeps_the_function(sortable, trained, same, changed):
    archs = {expand: uniform(SMALL, depth, kernel, expand) for expand, depth, kernel in ((6, 3, 5), (4, 2, 7), (3, 4, 3))}
    before = {expand: sortable(images(), arch).asnumpy() for expand, arch in archs.items()}
    sort_channels(sortable, trained)
    for expand, arch in archs.items():
        distance = np.abs(sortable(images(), arch).asnumpy() - before[expand]).max() / before[expand].std()
        assert expand in (same if distance < 1e-4 else changed), f"expansion {expand} moved by {distance:.1e}"
    for owner in sortable._store.owners.values():
        if isinstance(owner.op, MBConv) and owner.op.expand:
            norms = np.abs(owner.parameter("project.weight").data().asnumpy()).sum(axis=(0, 2, 3))
            edges = [0, *(owner.op.in_channels * expand for expand in sorted(trained)), len(norms)]
            for start, end in pairwise(edges):
                assert (np.diff(norms[start:end]) <= 1e-5).all()


def test_sorting_puts_every_array_in_the_same_order(sortable):
    before = copied(sortable)
    sort_channels(sortable)
    after = copied(sortable)
    key = "stage3.block2"
    order = np.argsort(-np.abs(before[f"{key}.project.weight"].astype(np.float64)).sum(axis=(0, 2, 3)), kind="stable")
    for name in ("expand.weight", "dw.weight", "bn1.running_var", "bn2.gamma", "se.expand.bias"):
        assert np.array_equal(after[f"{key}.{name}"], before[f"{key}.{name}"][order]), name
    assert np.array_equal(after[f"{key}.project.weight"], before[f"{key}.project.weight"][:, order])
    assert np.array_equal(after["stage1.block1.dw.weight"], before["stage1.block1.dw.weight"]), "it has no expansion"


def test_a_space_without_hidden_channels_is_refused():
    with pytest.raises(UserError, match="space 'spos_shufflenet' has no inverted residuals"):
        sort_channels(Supernet(get_space("spos_shufflenet", layout="small", input_size=32, classes=10)))


# BigNAS


def test_bignas_choices():
    """Resolutions, widths, depths and kernels of the paper's table; every block has a gate and a shortcut."""
    assert BIGNAS.choice("resolution").values == ((192, 224, 288, 320),)
    widths = BIGNAS.choice("width").values
    assert widths[0] == (32, 40) and widths[6] == (192, 200, 208, 216) and widths[7:] == ((320, 352), (1280, 1408))
    assert [values[-1] for values in BIGNAS.choice("depth").values] == [2, 3, 3, 4, 6, 6, 2]
    assert BIGNAS.choice("kernel").values == ((3,), (3,), *[(3, 5)] * 5)
    for layer in BIGNAS.plan(BIGNAS.sample(random.Random(0))).layers:
        if isinstance(layer.op, MBConv):
            expand = 1 if layer.name.startswith("stage1") else 6
            assert layer.op.hidden == round8(layer.op.in_channels // 4)
            assert (layer.op.shortcut, layer.op.last_gamma) == ("always", 0)
            assert layer.op.mid_channels == layer.op.in_channels * expand
            assert layer.op.project == (layer.op.in_channels != layer.op.out_channels)


def test_bignas_ends():
    """The choices of its four published networks are not public; their costs lie between, with gates of the input's width."""
    least, most = cost(BIGNAS.smallest()), cost(BIGNAS.largest())
    assert (least.flops, least.params, most.flops, most.params) == (217_658_752, 3_870_520, 1_891_590_144, 11_062_880)
    for mflops, params in ((242, 4.5), (418, 5.5), (586, 6.4), (1040, 9.5)):
        assert least.flops < mflops * 1e6 < most.flops and least.params < params * 1e6 < most.params
