"""Format ``megvii-spos``: the fixed network of megvii-model/ShuffleNet-Series (OneShot) and megvii-model/SinglePathOneShot.

Its modules are Sequentials whose places are those of our plan's primitives, and its channel split (even channels pass by)
is ours, so every array is taken over as it is: no permutation, no transposition.
"""

from __future__ import annotations

import numpy as np

from oneshot_nas.arch import Arch, space_of
from oneshot_nas.errors import UserError
from oneshot_nas.export.state import COUNTER, Arrays, renamed, unwrapped
from oneshot_nas.plan import Layer
from oneshot_nas.primitives import BatchNorm, Dense, Primitive

TERMS = {"weight": "weight", "gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
# What the official network is fed (megvii-model/SinglePathOneShot, train.py): no mean, no std, the stem's BatchNorm absorbs them
PREPROCESSING = {"input_size": 224, "crop_ratio": 0.875, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
                 "interpolation": "linear", "channels": "BGR"}


def megvii_keys(arch: Arch) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Official key -> (our parameter name, shape) of every array of the network.

    Raises: UserError when the official code has no such network.
    """
    _check_official(arch)
    keys = {}
    for place, layer in enumerate(space_of(arch).plan(arch).layers):
        for branch in layer.op.branches():
            for index, primitive in enumerate(branch.chain):
                module = _module(layer, place, branch.name, primitive)
                shapes = {**primitive.parameters(), **(primitive.statistics() if isinstance(primitive, BatchNorm) else {})}
                for name, shape in shapes.items():
                    term = TERMS[name.rsplit(".", 1)[1]]
                    keys[f"{module}.{0 if isinstance(primitive, Dense) else index}.{term}"] = (f"{layer.name}.{name}", shape)
    return keys


def _module(layer: Layer, place: int, branch: str, primitive: Primitive) -> str:
    """The official Sequential that holds the primitive."""
    if layer.name == "stem":
        return "first_conv"
    if layer.name == "head":
        return "classifier" if isinstance(primitive, Dense) else "conv_last"
    return f"features.{place - 1}.branch_{'proj' if branch == 'projection' else branch}"


def _check_official(arch: Arch) -> None:
    allowed: dict[str, tuple] = {
        "se": (False,), "tail": ("conv",), "layout": ("oneshot", "shufflenetv2+"), "classifier_bias": (False,),
    }
    if arch.space != "spos_shufflenet":
        raise UserError(f"megvii-spos weights are of space 'spos_shufflenet', the architecture is of '{arch.space}'")
    for name, values in allowed.items():
        if arch.options[name] not in values:
            wanted = " or ".join(str(value).lower() for value in values)
            raise UserError(f"the architecture has option '{name}' = {arch.options[name]}, the official network has {wanted}; "
                            f"make the architecture with --option {name}={str(values[0]).lower()}")


def from_megvii(state: Arrays, arch: Arch) -> dict[str, np.ndarray]:
    """Our parameters (name -> float32 array, as `load_parameters` reads them) of an official state dict.

    Raises: UserError that names missing, unknown and mis-shaped arrays. ``num_batches_tracked`` has no counterpart here.
    """
    weights = {key: array for key, array in unwrapped(state).items() if not key.endswith(f".{COUNTER}")}
    return renamed(weights, megvii_keys(arch), "architecture")


def to_megvii(params: Arrays, arch: Arch) -> dict[str, np.ndarray]:
    """The official state dict of our parameters, the inverse of `from_megvii`; batch counters are 0.

    Raises: UserError that names missing, unknown and mis-shaped arrays.
    """
    keys = {ours: (theirs, shape) for theirs, (ours, shape) in megvii_keys(arch).items()}
    state = renamed(params, keys, "architecture")
    counters = {f"{key.rsplit('.', 1)[0]}.{COUNTER}": np.zeros((), np.int64) for key in state if key.endswith("running_var")}
    return {**state, **counters}
