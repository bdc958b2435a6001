"""Architectures costed a second through the table (indices in, FLOPs and params out) and the time of a single `cost`.

The floor of the table is its look-ups and sums alone, with the places in the tables given; that of a single `cost`, one look at
each layer of the finished plan.

Example:  python benchmarks/costs.py
"""

from __future__ import annotations

import random
import statistics
from functools import partial

import numpy as np
from common import no_options, report, timed

from oneshot_nas import cost, get_space
from oneshot_nas.costs.analytic import plan_cost
from oneshot_nas.costs.table import CHUNK, CostTable, cost_table, random_indices


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
    table, build = timed(lambda: cost_table(space))
    places = [rng.integers(0, len(unit.flops), CHUNK) for unit in table.lookups]
    rates, floors = [], []
    for _ in range(5):
        rates.append(count / timed(lambda: table(indices))[1])
        floors.append(count / timed(lambda: look_up(table, places, count))[1])
    archs = [space.sample(random.Random(i)) for i in range(2000)]
    plans = [space.plan(arch) for arch in archs]
    for arch in archs[:1000]:
        cost(arch)
    singles = [timed(partial(cost, arch))[1] for arch in archs[1000:]]
    counted = [timed(partial(plan_cost, plan))[1] for plan in plans[1000:]]
    report("costs", architectures_per_second=statistics.median(rates), floor_per_second=statistics.median(floors),
           table_seconds=build, single_milliseconds=statistics.median(singles) * 1e3,
           floor_milliseconds=statistics.median(counted) * 1e3, target_per_second=1_000_000, target_milliseconds=1.0)


if __name__ == "__main__":
    main()
