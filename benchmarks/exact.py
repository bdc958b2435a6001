"""Exact sums: drawing inside narrow limits, the best architecture under a limit, and the whole score/FLOPs front, in seconds.

Example:  python benchmarks/exact.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import no_options, report, timed

from oneshot_nas import get_space
from oneshot_nas.costs.exact import best_within, score_front
from oneshot_nas.costs.limits import Limits, sample_within
from oneshot_nas.costs.table import cost_table, random_indices, reachable

SPACES: dict[str, dict[str, Any]] = {"proxyless_gpu": {"variant": "bnnas"}, "spos_shufflenet": {}, "attentive_mobilenet": {}}
DRAWN = 256
LIMIT = 475e6  # of BN-NAS' search, under the rule abs-lut


def main() -> None:
    no_options(__doc__)
    rng = np.random.default_rng(0)
    figures: dict[str, Any] = {}
    for name, options in SPACES.items():
        space = get_space(name, **options)
        table = cost_table(space)
        least, most = reachable(table)[0]
        narrow = Limits(flops=(least, least + 2e-2 * (most - least)))
        flops, _ = table(random_indices(space, rng, 1_000_000))
        _, first = timed(lambda space=space, narrow=narrow: sample_within(space, narrow, np.random.default_rng(0), DRAWN))
        _, again = timed(lambda space=space, narrow=narrow: sample_within(space, narrow, np.random.default_rng(1), DRAWN))
        figures[name] = {"uniform_share_inside": float((flops <= narrow.flops[1]).mean()), "first_seconds": first,
                         "drawn_per_second": DRAWN / again}
    for variant in ("bnnas", "full"):
        space = get_space("proxyless_gpu", variant=variant)
        scores = {"op": [np.sort(rng.gamma(4, 0.1, len(allowed))) for allowed in space.choice("op").values]}
        cost_table(space, "abs-lut")
        limits = Limits(flops=(0, LIMIT), rule="abs-lut")
        for top in (1, 50):
            _, figures[f"{variant}_top{top}_seconds"] = timed(
                lambda space=space, scores=scores, top=top, limits=limits: best_within(space, scores, limits, top))
        front, figures[f"{variant}_front_seconds"] = timed(
            lambda space=space, scores=scores: score_front(space, scores, Limits(rule="abs-lut")))
        figures[f"{variant}_front_points"] = len(front)
    report("exact", **figures, target_seconds=1.0)


if __name__ == "__main__":
    main()
