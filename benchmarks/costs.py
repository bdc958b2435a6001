"""Architectures costed a second through the table (indices in, FLOPs and params out) and the time of a single `cost`.

Example:  python benchmarks/costs.py
"""

from __future__ import annotations

import random
import statistics
import time

import numpy as np
from common import no_options, report

from oneshot_nas import cost, get_space
from oneshot_nas.costs.table import cost_table, random_indices


def main() -> None:
    no_options(__doc__)
    space = get_space("spos_shufflenet")
    indices = random_indices(space, np.random.default_rng(0), 1_000_000)
    start = time.perf_counter()
    table = cost_table(space)
    build = time.perf_counter() - start
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        table(indices)
        rates.append(len(indices) / (time.perf_counter() - start))
    archs = [space.sample(random.Random(i)) for i in range(2000)]
    for arch in archs[:1000]:
        cost(arch)
    times = []
    for arch in archs[1000:]:
        start = time.perf_counter()
        cost(arch)
        times.append(time.perf_counter() - start)
    report("costs", architectures_per_second=statistics.median(rates), table_seconds=build,
           single_milliseconds=statistics.median(times) * 1e3, target_per_second=1_000_000, target_milliseconds=1.0)


if __name__ == "__main__":
    main()
