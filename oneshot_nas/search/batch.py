"""What every searcher builds on: proposals, the rules they obey, and the batch that takes only legal and new ones.

A searcher is a pure function ``(space, history, rng, n, rules) -> [Proposal]`` of the candidates tried before. Every proposal
is inside the limits and new: its network occurs neither in the history nor earlier in the batch. Every loop is bounded; where
it finds too little, uniform sampling fills the batch. A batch shorter than `n` says that no new architecture inside the limits
is left (exactly so in small spaces, after a bounded number of draws in large ones).

`history` may hold candidates outside `space` (an earlier stage of a two-stage search): they count as tried, but
only those inside `space` become parents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from oneshot_nas.arch import Arch, Space
from oneshot_nas.costs.limits import Limits, check_reachable, sample_within
from oneshot_nas.costs.table import cost_table
from oneshot_nas.errors import UserError
from oneshot_nas.search.candidate import Candidate

TRIES = 10  # children per wanted child, as in the official evolution
ROUNDS = 100  # rounds of uniform sampling for one batch
COUNTABLE = 10_000  # spaces up to this size are listed, so that their end is exact
CHILDREN = 1000  # cheap children that a predictor screens for one generation
GRID = 160  # of coarse-to-fine: BigNAS' 5 resolutions x 4 depths x 2 widths x 4 kernels

Score = Callable[[np.ndarray], np.ndarray]  # indices (n, decisions) -> predicted fitness (n,)


class Proposal(NamedTuple):
    """An architecture to try and the indices of the candidates it was made from."""

    arch: Arch
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What a searcher obeys: the limits, what is maximised, and the numbers of the algorithms.

    With `score` at least `children` cheap children are scored and only the best are proposed. `targets` are growing upper
    FLOPs limits of the nets of a family; `grid` is the most points of a coarse grid.
    """

    limits: Limits
    fitness: Callable[[Candidate], float]
    top_k: int = 10
    mutation: float = 0.1
    against: tuple[str, ...] = ("flops", "params")
    score: Score | None = None
    children: int = CHILDREN
    targets: tuple[float, ...] = ()
    grid: int = GRID


Searcher = Callable[[Space, Sequence[Candidate], random.Random, int, Rules], list[Proposal]]


def parents_of(space: Space, history: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with scores whose every decision is allowed in `space`."""
    def inside(arch: Arch) -> bool:
        return all(arch.choices[name][position] in allowed for name, position, allowed in space.positions)

    return [c for c in history if c.ok and inside(c.arch)]


def network_key(space: Space, arch: Arch) -> str:
    """Text that is equal for equal networks."""
    return space.canonical(arch).key


@lru_cache(maxsize=8)
def countable(space: Space, limits: Limits) -> tuple[tuple[str, Arch], ...] | None:
    """Every distinct network inside the limits as (key, architecture), None for a space too large to list.

    Raises: UserError that names the reachable range when the limits cannot be met.
    """
    check_reachable(space, limits)
    if space.size > COUNTABLE:
        return None
    indices = np.array(list(product(*(range(len(allowed)) for _, _, allowed in space.positions))))
    legal = indices[limits.inside(*cost_table(space, limits.rule)(indices))]
    found: dict[str, Arch] = {}
    for row in legal.tolist():
        arch = space.decode(row)
        found.setdefault(network_key(space, arch), arch)
    return tuple(found.items())


class Batch:
    """Proposals under way: keeps what was tried, refuses what is not legal. Lives for one call of a searcher."""

    def __init__(self, space: Space, history: Sequence[Candidate], rng: random.Random, n: int, rules: Rules) -> None:
        self.space, self.rng, self.n, self.limits = space, rng, n, rules.limits
        self.table = cost_table(space, rules.limits.rule)
        self.seen = {network_key(space, c.arch) for c in history}
        self.proposals: list[Proposal] = []

    def add(self, proposal: Proposal) -> bool:
        """Take the proposal if its network is new and the batch has room."""
        key = network_key(self.space, proposal.arch)
        if key in self.seen or len(self.proposals) >= self.n:
            return False
        self.seen.add(key)
        self.proposals.append(proposal)
        return True

    def children(self, make: Callable[[], Proposal], wanted: int) -> None:
        """Take up to `wanted` legal children, in at most `TRIES` times as many tries."""
        missing = wanted
        for _ in range(TRIES * wanted):
            if not missing:
                return
            child = make()
            inside = self.limits.inside(*self.table(np.array([self.space.encode(child.arch)])))
            missing -= bool(inside[0]) and self.add(child)

    def filled(self) -> list[Proposal]:
        """The batch, filled up uniformly from the untried architectures inside the limits."""
        listed = countable(self.space, self.limits)
        if listed is not None:
            fresh = [arch for key, arch in listed if key not in self.seen]
            for arch in self.rng.sample(fresh, min(self.n - len(self.proposals), len(fresh))):
                self.add(Proposal(arch))
            return self.proposals
        generator = np.random.default_rng(self.rng.getrandbits(128))
        for _ in range(ROUNDS):
            missing = self.n - len(self.proposals)
            if not missing:
                break
            try:
                drawn = sample_within(self.space, self.limits, generator, missing)
            except UserError:  # so narrow that even the unbiased sampler gives up: an error only when nothing was ever found
                if not self.seen:
                    raise
                break
            for arch in drawn:
                self.add(Proposal(arch))
        return self.proposals
