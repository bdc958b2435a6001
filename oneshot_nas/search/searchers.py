"""Searchers: pure functions ``(space, history, rng, n, rules) -> [Proposal]``; see `oneshot_nas.search.batch` for the contract.

To add a searcher: one function, one line in `SEARCHERS`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.search.batch import Batch, Proposal, Rules, Searcher, parents_of
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.coarse import coarse_to_fine
from oneshot_nas.search.family import family, fill_bins
from oneshot_nas.search.pareto import cost_points, crowding, fronts
from oneshot_nas.search.pool import front_first, generator, screened, varied


def random_search(space: Space, history: Sequence[Candidate], rng: random.Random, n: int, rules: Rules) -> list[Proposal]:
    """Uniform among the architectures inside the limits that were not tried yet, or the best predicted of many such."""
    batch = Batch(space, history, rng, n, rules)
    if rules.targets:
        return fill_bins(history, batch, rules, None, generator(batch))
    return screened(batch, rules, None, generator(batch)) if rules.score else batch.filled()


def evolution(space: Space, history: Sequence[Candidate], rng: random.Random, n: int, rules: Rules) -> list[Proposal]:
    """Half mutations, half crossovers of the `top_k` best so far, the rest uniform; all uniform without a history.

    With targets the parents are the best of every bin of FLOPs; see `family`.

    Source: Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020, algorithm 1, and
    its official code: batch 50, top 10, 25 mutations that redraw each decision with probability 0.1, 25 crossovers.
    """
    batch = Batch(space, history, rng, n, rules)
    if rules.targets:
        return family(space, history, batch, rules)
    best = sorted(parents_of(space, history), key=lambda c: (-rules.fitness(c), c.index))[: rules.top_k]
    if rules.score:
        generate = generator(batch)
        return screened(batch, rules, varied(space, best, generate, rules.mutation) if best else None, generate)
    if best:
        def mutated() -> Proposal:
            parent = rng.choice(best)
            return Proposal(space.mutate(parent.arch, rng, rules.mutation), (parent.index,))

        def crossed() -> Proposal:
            first, second = rng.choice(best), rng.choice(best)
            return Proposal(space.crossover(first.arch, second.arch, rng), (first.index, second.index))

        batch.children(mutated, n // 2)
        batch.children(crossed, n // 2)
    return batch.filled()


def nsga2(space: Space, history: Sequence[Candidate], rng: random.Random, n: int, rules: Rules) -> list[Proposal]:
    """Children of tournament winners among the `n` best by front and crowding, of fitness against `rules.against`.

    Source: Deb et al., NSGA-II, 2002, with uniform crossover and per-decision mutation. Survivors are taken from the whole
    history rather than from the last two generations, so that a good candidate is never forgotten.
    """
    batch = Batch(space, history, rng, n, rules)
    pool = parents_of(space, history)
    points = cost_points(pool, rules.fitness, rules.against)
    ranked: list[tuple[int, float, Candidate]] = []
    for rank, front in enumerate(fronts(points)):
        if len(ranked) >= n:
            break
        lonely = crowding(points[front])
        order = np.argsort(-lonely, kind="stable")
        ranked += [(rank, -float(lonely[i]), pool[front[i]]) for i in order]
    ranked = ranked[:n]
    if rules.score:
        generate = generator(batch)
        make = varied(space, [entry[2] for entry in ranked], generate, rules.mutation) if ranked else None
        return screened(batch, rules, make, generate, front_first(rules.against))
    if ranked:
        def winner() -> Candidate:
            return min(rng.choice(ranked), rng.choice(ranked), key=lambda entry: entry[:2])[2]

        def child() -> Proposal:
            first, second = winner(), winner()
            crossed = space.crossover(first.arch, second.arch, rng)
            return Proposal(space.mutate(crossed, rng, rules.mutation), (first.index, second.index))

        batch.children(child, n)
    return batch.filled()


SEARCHERS: dict[str, Searcher] = {
    "random": random_search, "evolution": evolution, "nsga2": nsga2, "coarse-to-fine": coarse_to_fine,
}
WITH_TARGETS = ("random", "evolution", "coarse-to-fine")
