"""Predictor-screened search: architectures costed and scored a second, and one whole screened generation.

Example:  python benchmarks/predictor.py
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import numpy as np
from common import no_options, report, timed

from oneshot_nas.arch import get_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import Limits
from oneshot_nas.costs.table import cost_table, random_indices
from oneshot_nas.indicators.predictor import MOST, fit
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.task import Screening, SearchTask

COSTED, SCORED = 1_000_000, 100_000


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a few calls."""
    return statistics.median(timed(work)[1] for _ in range(repeats))


def main() -> None:
    no_options(__doc__)
    space = get_space("attentive_mobilenet")
    rng = random.Random(0)
    archs = [space.sample(rng) for _ in range(MOST)]
    history = [Candidate(i, arch, cost(arch), {"top1": 0.7 + 0.1 * rng.random()}) for i, arch in enumerate(archs)]

    def fitness(candidate: Candidate) -> float:
        return candidate.scores["top1"]

    predictor = fit(space, history, fitness)
    assert predictor is not None
    indices, table = random_indices(space, np.random.default_rng(0), COSTED), cost_table(space)
    costing, scoring = seconds(lambda: table(indices)), seconds(lambda: predictor(space, indices[:SCORED]))
    fitting = seconds(lambda: fit(space, history, fitness))
    task = SearchTask(space, Limits(flops=(200e6, 800e6)), budget=2 * MOST, screen=Screening(fit, children=SCORED))
    generation = seconds(lambda: task.propose(history, MOST), 1)
    report("predictor", candidates=len(history), costed_per_minute=60 * COSTED / costing, scored_per_minute=60 * SCORED / scoring,
           fit_seconds=fitting, both_seconds=costing + scoring, target_seconds=60.0, screened_children=SCORED,
           generation_seconds=generation)


if __name__ == "__main__":
    main()
