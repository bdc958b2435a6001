"""Architectures costed a second through the table (indices in, FLOPs and params out) and the time of a single `cost`.

The floor of the table is its look-ups and sums alone, with the places in the tables given; that of a single `cost`, one look at
each layer of the finished plan.

Example:  python benchmarks/costs.py
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import no_options, report

from oneshot_nas import cost, get_space
from oneshot_nas.costs.analytic import plan_cost
from oneshot_nas.costs.table import CHUNK, CostTable, cost_table, random_indices


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def look_up(table: CostTable, places: list[np.ndarray], count: int) -> None:
    """Look up and sum what `table` does for `count` architectures, chunk by chunk, always at the same places."""
    totals, part = np.zeros((2, CHUNK), np.int64), np.empty(CHUNK, np.int64)
    for _ in range(0, count, CHUNK):
        for unit, place in zip(table.lookups, places, strict=True):
            for total, values in zip(totals, (unit.flops, unit.params), strict=True):
                np.add(total, np.take(values, place, out=part, mode="clip"), out=total)


def main() -> None:
    no_options(__doc__)
    space, count, rng = get_space("spos_shufflenet"), 1_000_000, np.random.default_rng(0)
    indices = random_indices(space, rng, count)
    start = time.perf_counter()
    table = cost_table(space)
    build = time.perf_counter() - start
    places = [rng.integers(0, len(unit.flops), CHUNK) for unit in table.lookups]
    rates, floors = [], []
    for _ in range(5):
        rates.append(count / seconds(lambda: table(indices)))
        floors.append(count / seconds(lambda: look_up(table, places, count)))
    archs = [space.sample(random.Random(i)) for i in range(2000)]
    plans = [space.plan(arch) for arch in archs]
    for arch in archs[:1000]:
        cost(arch)
    singles = [seconds(partial(cost, arch)) for arch in archs[1000:]]
    counted = [seconds(partial(plan_cost, plan)) for plan in plans[1000:]]
    report("costs", architectures_per_second=statistics.median(rates), floor_per_second=statistics.median(floors),
           table_seconds=build, single_milliseconds=statistics.median(singles) * 1e3,
           floor_milliseconds=statistics.median(counted) * 1e3, target_per_second=1_000_000, target_milliseconds=1.0)


if __name__ == "__main__":
    main()
