"""Format ``attentivenas``: the dynamic supernet of facebookresearch/AttentiveNAS (and AlphaNet) as our supernet, and back.

Arrays have our layout, so they are renamed and nothing else. What our supernet has no use for is dropped, by these rules:

* the 1x1 shortcut of every block but the first of a stage: its widths are always equal, so the official code never runs it,
* ``num_batches_tracked`` and ``bn_tracking.*``: bookkeeping of BatchNorm that no output depends on.

Running statistics of the official checkpoints are meaningless (it trains with momentum 0): recalibrate before use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from oneshot_nas.arch import Arch, Space
from oneshot_nas.errors import UserError
from oneshot_nas.export.state import COUNTER, Arrays, renamed, unwrapped

Shapes = dict[str, tuple[int, ...]]
SPACE = "attentive_mobilenet"
# What the official networks are fed (AttentiveNAS, configs/eval_attentive_nas_models.yml and data/)
PREPROCESSING = {"input_size": 224, "crop_ratio": 0.875, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
                 "interpolation": "linear", "channels": "RGB"}
DROPPED = re.compile(rf"\.bn_tracking\.\d+\.|\.{COUNTER}$")
MODULES = {"expand": "inverted_bottleneck.conv.conv", "bn1": "inverted_bottleneck.bn.bn", "dw": "depth_conv.conv.conv",
           "bn2": "depth_conv.bn.bn", "se.reduce": "depth_conv.se.fc.reduce", "se.expand": "depth_conv.se.fc.expand",
           "project": "point_linear.conv.conv", "bn3": "point_linear.bn.bn"}  # inside a block
OUTER = {"stem.conv": "first_conv.conv.conv", "stem.bn": "first_conv.bn.bn",
         "last.conv": "last_conv.final_expand_layer.conv.conv", "last.bn": "last_conv.final_expand_layer.bn.bn",
         "head.mix": "last_conv.feature_mix_layer.conv.conv", "head.classifier": "classifier.linear.linear"}
TERMS = {"gamma": "weight", "beta": "bias"}


def official_keys(space: Space) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Official key -> (name in our supernet, shape) of every array that both have.

    Raises: UserError when the official code has no such space.
    """
    return {_official(space, name): (name, shape) for name, shape in supernet_shapes(space).items()}


@lru_cache(maxsize=4)
def supernet_shapes(space: Space) -> Shapes:
    """Name -> shape of every array of the supernet, as ``Supernet(space).save_parameters`` writes them. Raises: UserError."""
    from oneshot_nas.nets.supernet import supernet_ops

    if space.name != SPACE or space.options["layout"] != "attentive":
        layout = f" with layout '{space.options['layout']}'" if space.name == SPACE else ""
        raise UserError(f"attentivenas weights are of space '{SPACE}' with layout 'attentive', not of '{space.name}'{layout}")
    return {f"{weights}.{key}": shape for weights, (_, op) in supernet_ops(space).items()
            for key, shape in {**op.parameters(), **op.statistics()}.items()}


def _blocks(space: Space) -> list[tuple[int, int]]:
    """(stage, block), both from 1, of every block of the largest network; its place here is its official number."""
    depths = [int(values[-1]) for values in space.choice("depth").values]
    return [(stage, block) for stage, depth in enumerate(depths, 1) for block in range(1, depth + 1)]


def _official(space: Space, name: str) -> str:
    """The official key of one of our names, such as ``stage3.block1.se.reduce.bias``."""
    module, term = name.rsplit(".", 1)
    term = TERMS.get(term, term)
    if module in OUTER:
        return f"{OUTER[module]}.{term}"
    stage, block, inner = re.fullmatch(r"stage(\d+)\.block(\d+)\.(.+)", module).groups()  # type: ignore[union-attr]
    number = _blocks(space).index((int(stage), int(block)))
    inside = "shortcut.conv.conv" if inner == "shortcut" else f"mobile_inverted_conv.{MODULES[inner]}"
    return f"blocks.{number}.{inside}.{term}"


def idle_shapes(space: Space) -> Shapes:
    """Official key -> shape of the shortcuts that can never run."""
    widths = [int(values[-1]) for values in space.choice("width").values]
    return {f"blocks.{number}.shortcut.conv.conv.weight": (widths[stage], widths[stage], 1, 1)
            for number, (stage, block) in enumerate(_blocks(space)) if block > 1}


def from_official(state: Arrays, space: Space) -> dict[str, np.ndarray]:
    """Our supernet's arrays (name -> float32) of an official state dict.

    Raises: UserError that names missing, unknown and mis-shaped arrays; idle shortcuts may be left out.
    """
    keys, idle = official_keys(space), idle_shapes(space)
    kept = {key: array for key, array in unwrapped(state).items() if not DROPPED.search(key)}
    given = {key: (key, shape) for key, shape in idle.items() if key in kept}
    found = renamed(kept, {**keys, **given}, "attentivenas supernet")
    return {name: array for name, array in found.items() if name not in idle}


def to_official(params: Arrays, space: Space) -> dict[str, np.ndarray]:
    """The official state dict of our supernet's arrays, the inverse of `from_official`; idle shortcuts and counters are 0.

    Raises: UserError that names missing, unknown and mis-shaped arrays.
    """
    keys = {ours: (theirs, shape) for theirs, (ours, shape) in official_keys(space).items()}
    state = renamed(params, keys, "attentive_mobilenet supernet")
    idle = {key: np.zeros(shape, np.float32) for key, shape in idle_shapes(space).items()}
    counters = {f"{key.rsplit('.', 1)[0]}.{COUNTER}": np.zeros((), np.int64) for key in state if key.endswith("running_var")}
    return {**state, **idle, **counters}


def subnet(params: Mapping[str, np.ndarray], space: Space, arch: Arch) -> dict[str, np.ndarray]:
    """The fixed network's arrays of `arch` cut out of a supernet's. Raises: UserError when `arch` is not of the space."""
    from oneshot_nas.nets.inherit import corner

    layers = space.plan(space.check(arch)).layers
    shapes = {(layer.name, layer.weights, key): shape for layer in layers
              for key, shape in {**layer.op.parameters(), **layer.op.statistics()}.items()}
    return {f"{name}.{key}": np.ascontiguousarray(params[f"{weights}.{key}"][corner(params[f"{weights}.{key}"].shape, shape)])
            for (name, weights, key), shape in shapes.items()}
