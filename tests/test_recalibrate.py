"""Recalibration: BatchNorm statistics from a list of images, exact and a function of the images alone."""

import random

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from oneshot_nas import Supernet, UserError, get_space, inherit, recalibrate
from oneshot_nas.indicators.accuracy import Evaluator, accuracy_of, batch_sizes, count_correct, make_evaluator
from oneshot_nas.nets.recalibrate import Folded

SPACE = get_space("spos_shufflenet", layout="small", input_size=32, classes=10, last_channels=32)
SIZES = (12, 8, 4)  # uneven on purpose: the weights of the batches matter


@pytest.fixture(scope="module")
def net():
    mx.random.seed(0)
    net = Supernet(SPACE)
    net.initialize()
    return net


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [nd.array(rng.normal(i, 1 + i, (size, 3, 32, 32))) for i, size in enumerate(SIZES)]


def statistics(network):
    return {name: p.data().asnumpy() for name, p in network._collect_params_with_prefix().items() if "running" in name}


def same(one, other):
    return all((one[name] == other[name]).all() for name in one)


def stem_outputs(network, images):
    """What the first BatchNorm sees, in float64."""
    weight = network.blocks()[0][1].parameter("conv.weight").data()
    settings = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "num_filter": 16, "no_bias": True}
    return [nd.Convolution(x, weight, **settings).asnumpy().astype(float) for x in images]


def test_population_is_the_mean_and_variance_over_all_images(net, images):
    network = recalibrate(inherit(net, SPACE.sample(random.Random(1))), images, "population")
    seen = np.concatenate(stem_outputs(network, images))
    found = statistics(network)
    np.testing.assert_allclose(found["stem.bn.running_mean"], seen.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["stem.bn.running_var"], seen.var((0, 2, 3)), rtol=1e-5)


def test_cumulative_is_the_weighted_mean_of_the_batches(net, images):
    network = recalibrate(inherit(net, SPACE.sample(random.Random(1))), images, "cumulative")
    seen = stem_outputs(network, images)
    found = statistics(network)
    for name, part in (("mean", [x.mean((0, 2, 3)) for x in seen]), ("var", [x.var((0, 2, 3), ddof=1) for x in seen])):
        expected = np.average(part, axis=0, weights=SIZES)
        np.testing.assert_allclose(found[f"stem.bn.running_{name}"], expected, rtol=1e-5, atol=1e-6)


def test_deeper_layers_see_inputs_normalised_by_their_batch(net, images):
    """The running mean of the last BatchNorm for one batch is what training mode computes for that batch."""
    arch = SPACE.sample(random.Random(2))
    network = recalibrate(inherit(net, arch), images[:1])
    x = images[0]
    with mx.autograd.train_mode():
        for _, block in network.blocks()[:-1]:
            x = block(x)
    head = network.blocks()[-1][1]
    seen = nd.Convolution(x, head.parameter("conv.weight").data(), kernel=(1, 1), num_filter=32, no_bias=True).asnumpy()
    np.testing.assert_allclose(statistics(network)["head.bn.running_mean"], seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["population", "cumulative"])
def test_stale_statistics_and_earlier_candidates_do_not_matter(net, images, method):
    arch = SPACE.sample(random.Random(3))
    first = statistics(recalibrate(net.view(arch), images, method))
    stale = net.view(arch)
    for name, parameter in stale._collect_params_with_prefix().items():
        if "running" in name:
            parameter.set_data(nd.ones(parameter.shape) * 7)
    recalibrate(net.view(SPACE.sample(random.Random(4))), images, method)
    assert same(first, statistics(recalibrate(stale, images, method)))


def test_it_moves_every_statistic_and_no_weight(net, images):
    network = inherit(net, SPACE.sample(random.Random(5)))
    before = {name: p.data().asnumpy() for name, p in network._collect_params_with_prefix().items()}
    recalibrate(network, images)
    for name, parameter in network._collect_params_with_prefix().items():
        assert ("running" in name) == bool((parameter.data().asnumpy() != before[name]).any()), name


def test_a_view_leaves_the_supernet_alone(net, images):
    before = statistics(net)
    recalibrate(net.view(SPACE.sample(random.Random(6))), images)
    assert same(before, statistics(net))


def test_view_and_fixed_network_get_the_same_statistics(net, images):
    arch = SPACE.sample(random.Random(7))
    view, fixed = (statistics(recalibrate(network, images)) for network in (net.view(arch), inherit(net, arch)))
    for name, value in fixed.items():
        found = view[name][: len(value)]
        if name.endswith("mean"):  # in units of the deviation that divides it
            deviation = np.sqrt(fixed[name.replace("mean", "var")] + 1e-5)
            assert abs((found - value) / deviation).max() < 1e-3, name
        else:
            np.testing.assert_allclose(found, value, rtol=1e-2, atol=1e-7, err_msg=name)


def test_folded_output_is_the_output(net, images):
    view = recalibrate(net.view(SPACE.sample(random.Random(8))), images)
    plain, folded = view(images[0]).asnumpy(), Folded(view)(images[0]).asnumpy()
    assert abs(plain - folded).max() < 1e-3 * plain.std()


def test_wrong_use(net, images):
    view = net.view(SPACE.sample(random.Random(0)))
    with pytest.raises(UserError, match="'mean'; the methods are .'population', 'cumulative'"):
        recalibrate(view, images, "mean")
    with pytest.raises(UserError, match="at least one batch"):
        recalibrate(view, [])


def test_the_evaluator_gives_the_accuracy_of_the_recalibrated_network(net, images):
    arch = SPACE.sample(random.Random(9))
    labels = [nd.array(np.arange(len(x)) % 10) for x in images]
    scores = Evaluator(net, images, {}, validation=images, labels=labels)(arch)
    network = recalibrate(inherit(net, arch), images)
    expected = accuracy_of(network, zip(images, labels, strict=True), mx.cpu())
    assert {"top1": scores["top1"], "top5": scores["top5"]} == expected
    assert 0 < expected["top5"] <= 1


def test_ties_and_infinities_count_against_the_network():
    logits = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    assert count_correct(logits, np.array([0, 1]), 1) == 1
    assert count_correct(logits, np.array([0, 2]), 2) == 2
    broken = accuracy_of(lambda x: x * float("nan"), [(nd.ones((2, 3)), nd.zeros(2))], mx.cpu())
    assert broken == {"top1": 0.0, "top5": 0.0}


@pytest.mark.parametrize(("side", "sizes"), [(8, (128, 128)), (32, (128, 128)), (64, (128, 128)), (112, (128, 32)),
                                             (192, (32, 8)), (224, (32, 8)), (288, (16, 4)), (1024, (1, 1))])
def test_batches_shrink_with_the_images(side, sizes):
    assert batch_sizes(side) == sizes


def test_an_evaluator_in_batches_scores_every_image(net):
    rng = np.random.default_rng(0)
    calibration, images = (rng.normal(size=(count, 3, 32, 32)).astype(np.float32) for count in (5, 130))
    labels = rng.integers(0, 10, 130).astype(np.float32)
    evaluator = make_evaluator(net, calibration, images, labels, mx.cpu(), {"seed": 0})
    assert [len(batch) for batch in (*evaluator.calibration, *evaluator.validation)] == [5, 128, 2]
    assert evaluator.images == 130 and evaluator.about == {"seed": 0, "batch": 128}
