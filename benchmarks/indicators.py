"""Architectures scored a second by bn-gamma and by angle after their tables are built, and seconds of the exact search.

On the whole ProxylessNAS (GPU) space at random weights; the exact search keeps within 475 M FLOPs (rule abs-lut).

Example:  python benchmarks/indicators.py
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from common import no_options, report, timed

from oneshot_nas import get_space
from oneshot_nas.costs.exact import best_within, score_front
from oneshot_nas.costs.limits import Limits
from oneshot_nas.costs.table import cost_table, random_indices
from oneshot_nas.indicators.additive import Weights
from oneshot_nas.indicators.angle import angle_sums, angles
from oneshot_nas.indicators.bn_gamma import bn_gamma_sums
from oneshot_nas.nets.supernet import Supernet

COUNT = 1_000_000
LIMITS = Limits(flops=(0, 475e6), rule="abs-lut")


def main() -> None:
    no_options(__doc__)
    space = get_space("proxyless_gpu")
    indices = random_indices(space, np.random.default_rng(0), COUNT)
    with tempfile.TemporaryDirectory() as folder:
        base, now = (saved(space, Path(folder) / f"{seed}.params", seed) for seed in (0, 1))
        gamma, gamma_seconds = timed(lambda: bn_gamma_sums(space, Weights(now)))
        angle, angle_seconds = timed(lambda: angle_sums(space, Weights(base), Weights(now)))
    cost_table(space, LIMITS.rule)
    scores = {unit.name: table.values[0] for unit, table in zip(space.units, gamma.units, strict=True)}
    exact = statistics.median(timed(lambda: best_within(space, scores, LIMITS, top=10))[1] for _ in range(3))
    front, front_seconds = timed(lambda: score_front(space, scores, LIMITS))
    report("indicators", bn_gamma_per_second=rate(lambda: gamma(indices)), bn_gamma_table_seconds=gamma_seconds,
           angle_per_second=rate(lambda: angles(angle(indices))), angle_table_seconds=angle_seconds,
           exact_top10_seconds=exact, front_seconds=front_seconds, front=len(front),
           targets={"bn_gamma_per_second": 1_000_000, "angle_per_second": 100_000, "exact_top10_seconds": 1.0})


def saved(space: Any, path: Path, seed: int) -> Path:
    """The file of a supernet at random weights and gammas."""
    mx.random.seed(seed)
    net = Supernet(space)
    net.initialize()
    for name, parameter in net._collect_params_with_prefix().items():
        if name.endswith("gamma"):
            parameter.set_data(mx.nd.random.uniform(0.2, 1.2, parameter.shape))
    net.save_parameters(str(path))
    return path


def rate(work: Callable[[], Any]) -> float:
    """Architectures a second, median of five."""
    return COUNT / statistics.median(timed(work)[1] for _ in range(5))


if __name__ == "__main__":
    main()
