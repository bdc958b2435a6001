"""BN-NAS' indicator: how large the gammas of the last BatchNorm of every chosen operator are.

Source: Chen et al., "BN-NAS: Neural Architecture Search with Batch Normalization", ICCV 2021, and its published code: the
sum over layers of the mean of |gamma| over channels. A skip scores 0 and every operator more, so it cannot judge depth.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.errors import UserError
from oneshot_nas.indicators.additive import LayerSums, WeightIndicator, Weights, layer_sums
from oneshot_nas.ops import Chain
from oneshot_nas.plan import Layer
from oneshot_nas.train.runs import open_supernet

NAME = "bn-gamma"


def is_candidate(layer: Layer) -> bool:
    """Whether the layer is a searched block; stem, head and other chains that merely change width with a choice are not."""
    return bool(layer.unit) and (bool(layer.candidate) or not isinstance(layer.op, Chain))


def bn_gamma_sums(space: Space, weights: Weights) -> LayerSums:
    """Sums (1, n) of the indicator from supernet weights; where a block is narrower than the stored one, of its channels.

    Raises: UserError for a block that names no scoring BatchNorm, or one that the file lacks or holds as NaN or zeros.
    """
    known: dict[tuple[str, int], float] = {}

    def terms(layer: Layer) -> tuple[float]:
        shapes = layer.op.parameters() if is_candidate(layer) else {}
        if not shapes:
            return (0.0,)
        if layer.op.scoring is None:
            raise UserError(f"indicator '{NAME}' needs a BatchNorm in every searched block; '{layer.weights}' of space "
                            f"'{space.name}' ({layer.op.label}) names none; use another --indicator")
        key = f"{layer.op.scoring}.gamma"
        shape = shapes[key]
        place = layer.weights, shape[0]
        if place not in known:
            gamma = weights.cut(f"{layer.weights}.{key}", shape, f"the scoring BatchNorm of '{layer.weights}'")
            known[place] = float(np.abs(gamma).mean())
        return (known[place],)

    return layer_sums(space, terms)


def load_bn_gamma(supernet_run: str | Path, seed: int = 0) -> WeightIndicator:
    """The indicator of a supernet run; only its parameter file is read, and nothing is random. Raises: UserError."""
    run = open_supernet(supernet_run)
    weights = Weights(run.weights)
    about = {"indicator": NAME, "weights": weights.digest, "space": run.space.name, "options": dict(run.space.options)}
    return WeightIndicator(NAME, run.space, partial(bn_gamma_sums, weights=weights), itemgetter(0), about).checked()
