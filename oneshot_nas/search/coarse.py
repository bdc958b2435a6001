"""BigNAS' coarse-to-fine selection: a grid over global settings, then local refinement around the best of it.

Source: Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models", ECCV 2020,
"coarse-to-fine architecture selection": a grid of a few resolutions, depths, widths and kernels, the best skeleton of each
budget, then small changes of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from oneshot_nas.arch import Arch, Space, show
from oneshot_nas.costs.limits import Limits
from oneshot_nas.costs.table import cost_table
from oneshot_nas.errors import UserError
from oneshot_nas.search.batch import Batch, Proposal, Rules, network_key, parents_of
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.family import bests, fill_bins
from oneshot_nas.search.pool import generator, grown, screened, stepped, take

MOST_CELLS = 2**20  # of the finest grid that is looked at
LEAST_LEVELS = 2


def check_ordered(space: Space) -> None:
    """Raise UserError that names the choices without an order that the space leaves free."""
    wrong = [c.name for c in space.choices if not c.ordered and any(len(allowed) > 1 for allowed in c.values)]
    if wrong:
        ordered = [c.name for c in space.choices if c.ordered and any(len(allowed) > 1 for allowed in c.values)]
        rest = f"search --over {','.join(ordered)} --base ARCH.json, or " if ordered else ""
        raise UserError(f"coarse-to-fine needs choices whose values are ordered; {show(wrong)} of '{space.name}' are not: {rest}"
                        "use another --algorithm")


@lru_cache(maxsize=8)
def coarse_grid(space: Space, limits: Limits, most: int) -> tuple[Arch, ...]:
    """At most `most` architectures inside the limits, cheapest first, in which a choice is at one relative position everywhere.

    A choice of up to k values at a position has k levels; the finest choice (of equals the one with fewest values) loses levels
    until the grid is small enough, none below two; then each choice, the coarsest with the fewest values first, gets one back
    where there is room. Narrow limits therefore get a finer grid. What is still too much is thinned evenly. Raises: UserError.
    """
    check_ordered(space)
    values = {c.name: max(map(len, c.values)) for c in space.choices}
    levels = dict(values)
    while (rows := _inside(space, limits, levels)) is None or (len(rows) > most and max(levels.values()) > LEAST_LEVELS):
        levels[max(levels, key=lambda name: (levels[name], -values[name]))] -= 1
    for name in sorted(levels, key=lambda name: (levels[name], values[name])):
        finer = {**levels, name: levels[name] + 1}
        more = _inside(space, limits, finer) if levels[name] < values[name] else None
        if more is not None and len(more) <= most:
            levels, rows = finer, more
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    found = {network_key(space, arch): arch for arch in map(space.decode, rows.tolist())}
    return tuple(found.values())


def _inside(space: Space, limits: Limits, levels: dict[str, int]) -> np.ndarray | None:
    """The rows of the grid of `levels` inside the limits, cheapest first; None when the grid is too large to be looked at."""
    if np.prod([float(n) for n in levels.values()]) > MOST_CELLS:
        return None
    rows = _grid_rows(space, levels)
    flops, params = cost_table(space, limits.rule)(rows)
    order = np.argsort(flops, kind="stable")
    return rows[order[limits.inside(flops, params)[order]]]


def _grid_rows(space: Space, levels: dict[str, int]) -> np.ndarray:
    """Distinct rows of all combinations of levels; level l of n means the index nearest to l / (n - 1) of the way."""
    settings = []
    for choice in space.choices:
        last = np.array([len(allowed) - 1 for allowed in choice.values])
        steps = max(levels[choice.name] - 1, 1)
        settings.append([(last * level + steps // 2) // steps for level in range(levels[choice.name])])
    return np.unique(np.array([np.concatenate(cell) for cell in product(*settings)]), axis=0)


def coarse_to_fine(space: Space, history: Sequence[Candidate], rng: random.Random, n: int, rules: Rules) -> list[Proposal]:
    """The untried points of the coarse grid, then neighbours of the best candidate so far (with targets: of the best of each)."""
    batch = Batch(space, history, rng, n, rules)
    for arch in coarse_grid(space, rules.limits, rules.grid):
        batch.add(Proposal(arch))
    if len(batch.proposals) == n:
        return batch.proposals
    generate = generator(batch)
    known = parents_of(space, history)
    if rules.targets:
        best = bests(space, history, rules)
    else:
        best = sorted(known, key=lambda c: (-rules.fitness(c), c.cost.flops, c.cost.params, c.index))[:1]
    make = stepped(space, best, generate, rules.mutation) if best else None
    if rules.targets:
        return fill_bins(history, batch, rules, make, generate)
    if rules.score:
        return screened(batch, rules, make, generate)
    pool = grown(batch, make, rules.children)
    take(batch, pool, range(len(pool.flops)), n)
    return batch.filled()
