"""Averaged weights (EMA): an exponential moving average of all weights and running statistics over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mxnet.gluon import Block
from mxnet.ndarray import NDArray

from oneshot_nas.train.checkpoint import weight_arrays


class Average:
    """The average of a network's arrays, by structural name, on its first device, in float32: float16 loses small steps.

    After update number t the decay is min(decay, (1 + t) / (10 + t)), so that the start is forgotten early (the rule of
    TensorFlow's ExponentialMovingAverage, which EfficientNet and BigNAS use).
    """

    def __init__(self, net: Block, decay: float, arrays: Mapping[str, NDArray] | None = None) -> None:
        self.net = net
        self.decay = decay
        self.arrays = {name: array.astype("float32") for name, array in (arrays or weight_arrays(net)).items()}

    def update(self, updates: int) -> None:
        """Take in the present weights after `updates` updates of the run."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, array in weight_arrays(self.net).items():
            kept = self.arrays[name]
            kept *= decay
            kept += (1 - decay) * array.astype("float32", copy=False)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the averaged weights on all devices while this lasts."""
        own = {name: [array.copy() for array in parameter.list_data()]
               for name, parameter in self.net._collect_params_with_prefix().items()}
        try:
            for name, parameter in self.net._collect_params_with_prefix().items():
                parameter.set_data(self.arrays[name])
            yield
        finally:
            for name, parameter in self.net._collect_params_with_prefix().items():
                for array, kept in zip(parameter.list_data(), own[name], strict=True):
                    array[:] = kept
