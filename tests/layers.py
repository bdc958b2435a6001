"""Blocks with random weights, and their arrays, for the tests that compute a layer by hand."""

import numpy as np
from mxnet import nd

from oneshot_nas.blocks.block import OpBlock


def made(op, seed=0):
    """A block with random weights and statistics."""
    rng = np.random.default_rng(seed)
    net = OpBlock(op, "layer")
    net.initialize()
    for name, parameter in net._reg_params.items():
        value = rng.uniform(0.5, 1.5, parameter.shape) if name.endswith("running_var") else rng.normal(0.1, 0.5, parameter.shape)
        parameter.set_data(nd.array(value))
    return net


def arrays(net):
    return {name: parameter.data().asnumpy().astype(np.float64) for name, parameter in net._reg_params.items()}
