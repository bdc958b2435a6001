"""ABS' indicator: the angle between the weights an architecture started from and those it has now.

Source: Hu et al., "Angle-based Search Space Shrinking for Neural Architecture Search", ECCV 2020, section 3.1, and its
published code. The vectors hold the weights of convolutions and dense layers, fixed layers included; biases and
BatchNorm are left out, a skip adds nothing. A larger angle is better.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.config import RunFolder
from oneshot_nas.errors import UserError
from oneshot_nas.files import as_json, read_params_about
from oneshot_nas.indicators.additive import LayerSums, WeightIndicator, Weights, layer_sums
from oneshot_nas.plan import Layer
from oneshot_nas.train.runs import SupernetFiles, open_supernet
from oneshot_nas.values import listed

NAME = "angle"


def angle_sums(space: Space, base: Weights, current: Weights) -> LayerSums:
    """Sums (3, n): <v0, v>, |v0|^2 and |v|^2 of base weights v0 and current weights v, in float64.

    Raises: UserError for an array that either file lacks or holds as NaN or zeros.
    """
    known: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def products(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if (name, shape) not in known:
            first = base.cut(name, shape, "weights to measure from").ravel()
            second = current.cut(name, shape, "weights of the supernet").ravel()
            known[name, shape] = np.array([(first * second).sum(), (first * first).sum(), (second * second).sum()])
        return known[name, shape]

    def terms(layer: Layer) -> tuple[float, ...]:
        arrays = [products(f"{layer.weights}.{key}", shape) for key, shape in layer.op.parameters().items()
                  if key.endswith(".weight")]
        return tuple(np.sum(arrays, axis=0)) if arrays else (0.0, 0.0, 0.0)

    return layer_sums(space, terms)


def angles(sums: np.ndarray) -> np.ndarray:
    """Angles (n,) in radians, 0 to pi, of sums (3, n); exactly 0 where both vectors are the same numbers."""
    dot, first, second = sums
    return np.arccos(np.clip(dot / np.sqrt(first * second), -1.0, 1.0))


def check_alike(base: Weights, current: Weights, run: SupernetFiles) -> None:
    """Raise UserError unless `base` holds weights of the space and options of the supernet `run`, whose weights are `current`.

    The description beside the file is asked first, which knows options that shapes do not show.
    """
    about = read_params_about(base.path, "network") or {}
    said = {"space": about.get("space", run.space.name), **(about.get("options") or {})}
    wanted = as_json({"space": run.space.name, **run.space.options})
    wrong = [f"{name} {value!r} instead of {wanted.get(name)!r}" for name, value in said.items() if wanted.get(name) != value]
    mine, theirs = base.shapes(), current.shapes()
    wrong += [] if wrong else [f"{name} {mine.get(name, 'missing')} instead of {theirs.get(name, 'nothing')}"
                               for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    if wrong:
        raise UserError(f"{base.path} holds no weights of this supernet's space ({listed('differences', wrong)}); give those "
                        "that a supernet of this space and these options started from")


def load_angle(supernet_run: str | Path, base_weights: str | Path | None = None, seed: int = 0) -> WeightIndicator:
    """The indicator of a supernet run against `base_weights`, a parameter file (none: the run's own initial weights); nothing
    is random.

    Raises: UserError when the run kept no initial weights, or for a file of another space.
    """
    run = open_supernet(supernet_run)
    base = RunFolder(run.folder).initial if base_weights is None else Path(base_weights)
    if base_weights is None and not base.exists():
        raise UserError(f"{run.folder} has no {base.name} to measure angles from; give --base-weights FILE.params, or train the "
                        "supernet with keep_initial: true")
    first, current = Weights(base), Weights(run.weights)
    check_alike(first, current, run)
    about = {"indicator": NAME, "weights": current.digest, "base": first.digest, "space": run.space.name,
             "options": dict(run.space.options)}
    sums_of = partial(angle_sums, base=first, current=current)
    return WeightIndicator(NAME, run.space, sums_of, angles, about).checked()
