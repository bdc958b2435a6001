"""The training view of a fixed network: padded widths, same function, same gradients, statistics that come home."""

import random

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from oneshot_nas import get_space
from oneshot_nas.nets.fixed import fixed_network
from oneshot_nas.spaces.spos_shufflenet import LAYOUTS

SHUFFLE = [("spos_shufflenet", {"layout": layout, "se": se, "input_size": 64, "last_channels": 32})
           for layout in LAYOUTS for se in (False, True)]
MOBILE = [("attentive_mobilenet", {"layout": "small", "input_size": 32}),
          ("bignas_mobilenet", {"input_size": 64, "resolutions": [48]}),
          ("ofa_mobilenet", {"input_size": 64, "resolutions": [48]}), ("proxyless_gpu", {"layout": "small", "input_size": 32})]


@pytest.mark.parametrize(("name", "options"), SHUFFLE + MOBILE)
def test_it_computes_and_trains_the_network(name, options):
    """Also a regression test: oneDNN's backward pass of concat and reshape failed in two of the layouts."""
    space = get_space(name, classes=10, **options)
    mx.random.seed(1)
    net = fixed_network(space.sample(random.Random(1)))
    net.initialize()
    for name, parameter in net.collect_params().items():
        if name.endswith("beta"):
            parameter.set_data(nd.ones(parameter.shape) * 1.5)  # open activations, or rounding decides which are open
        elif name.endswith("gamma"):
            parameter.set_data(nd.ones(parameter.shape))  # where the space starts with 0 nothing behind it would get a gradient
    view = net.training_view()
    view.hybridize(static_alloc=True)
    side = space.options["input_size"]
    x, top = nd.random.normal(shape=(16, 3, side, side)), nd.random.normal(shape=(16, 10))
    outputs, gradients = [], []
    for network in (net, view):
        mx.random.seed(2)  # the same dropout
        with autograd.record():
            y = network(x)
        y.backward(top)
        outputs.append(y.asnumpy())
        trained = {name: p for name, p in net._collect_params_with_prefix().items() if p.grad_req != "null"}
        gradients.append({name: p.grad().asnumpy() for name, p in trained.items()})
    assert abs(outputs[0] - outputs[1]).max() < 1e-3 * outputs[0].std()
    for name, expected in gradients[0].items():
        if name.endswith("weight"):
            error = np.linalg.norm(gradients[1][name] - expected) / np.linalg.norm(expected)
            assert error < 0.03, (name, error)


def test_running_statistics_come_home_and_go_back():
    space = get_space("spos_shufflenet", layout="small", input_size=32, classes=10, last_channels=32)
    net = fixed_network(space.arch({"block": ["shuffle5"] * 20, "scale": [0.6] * 20}))
    net.initialize()
    view = net.training_view()
    mean = net.blocks()[1][1].parameter("bn1.running_mean")
    assert view.blocks()[1][1].parameter("bn1.running_mean") is not mean and mean.shape == (9,)
    with autograd.record():
        y = view(nd.random.normal(shape=(8, 3, 32, 32)))
    y.backward()
    assert not mean.data().asnumpy().any()
    view.settle()
    assert mean.data().asnumpy().all()
    mean.set_data(nd.ones(9) * 3)
    view.refresh()
    found = view.blocks()[1][1].parameter("bn1.running_mean").data().asnumpy()
    assert (found[:9] == 3).all() and not found[9:].any()
