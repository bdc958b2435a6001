"""Samplers for elastic spaces: evenly over FLOPs, attentive (the best or worst of a few), and the sandwich around any of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from oneshot_nas.arch import Arch, Space, show
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import ANY, Limits, human
from oneshot_nas.costs.table import cost_table
from oneshot_nas.errors import UserError
from oneshot_nas.sections import Sandwich

Score = Callable[[Arch], float]  # lower is better: the loss on a step's images, or what a predictor says
Sampler = Callable[..., list[Arch]]  # (epoch, step, score=None) -> architectures of that step

DRAWS = 100_000  # architectures from which a table is made
TILT = 4.0  # each is drawn with weights exp(t place) of the values of a decision, place from 0 to 1, t uniform in +-TILT
MEMBERS = 256  # architectures kept of each bin
TRIES, ROUNDS = 64, 16  # independent draws at a time, and how often, before a kept architecture is taken


@dataclass(frozen=True, eq=False)
class BinTable:
    """FLOPs bins of a space that architectures were found in.

    edges (bins + 1,); of each bin found: `numbers` its place among all, `shares` the cumulative share of every value, an array
    (decisions, most values), and `members`, some of its architectures as indices (n, decisions).
    """

    space: Space
    limits: Limits
    edges: np.ndarray
    numbers: tuple[int, ...]
    shares: tuple[np.ndarray, ...]
    members: tuple[np.ndarray, ...]

    def draw(self, place: int, rng: np.random.Generator) -> Arch:
        """An architecture of the bin ``numbers[place]``: every decision as it is distributed in the bin, until one lies in it.

        After `TRIES` times `ROUNDS` draws without success it is one of the architectures that the table was made from, so it is
        always inside its bin.
        """
        shares, number = self.shares[place], self.numbers[place]
        for _ in range(ROUNDS):
            dice = rng.random((TRIES, len(shares), 1))
            indices = np.argmax(dice < shares, axis=2)
            inside = np.flatnonzero(_bins(self.space, self.limits, self.edges, indices) == number)
            if len(inside):
                return self.space.decode(indices[inside[0]].tolist())
        members = self.members[place]
        return self.space.decode(members[int(rng.integers(len(members)))].tolist())


@lru_cache(maxsize=8)
def bin_table(space: Space, limits: Limits, bins: int, seed: int) -> BinTable:
    """The table of `bins` equal FLOPs bins between the limits, or between the smallest and the largest network.

    Uniform draws hardly ever reach the ends of the range, so the draws are tilted towards small or large values by a strength
    that is drawn too. Raises: UserError when none of them lies inside the limits.
    """
    ends = [cost(arch, limits.rule).flops for arch in (space.smallest(), space.largest())]
    low, high = (end if given == bound else given for end, given, bound in zip(ends, limits.flops, ANY, strict=True))
    edges = np.linspace(low, high, bins + 1)
    rng = np.random.default_rng([seed, bins])
    tilts = rng.uniform(-TILT, TILT, DRAWS)
    indices = np.empty((DRAWS, len(space.positions)), np.int64)
    ordered = {choice.name for choice in space.choices if choice.ordered}
    for column, (name, _, allowed) in enumerate(space.positions):
        places = np.linspace(0, 1, len(allowed)) if name in ordered else np.zeros(len(allowed))
        indices[:, column] = np.argmax(tilts[:, None] * places + rng.gumbel(size=(DRAWS, len(allowed))), axis=1)
    indices[:2] = np.array([space.encode(space.smallest()), space.encode(space.largest())])
    found = _bins(space, limits, edges, indices)
    numbers = [int(number) for number in np.unique(found[found >= 0])]
    if not numbers:
        raise UserError(f"none of {DRAWS:,} draws from '{space.name}' met {limits}; the smallest network has {human(ends[0])} "
                        f"FLOPs, the largest {human(ends[1])} (rule {limits.rule}); widen the limits")
    most = max(len(allowed) for _, _, allowed in space.positions)
    groups = [indices[found == number] for number in numbers]
    counts = [np.stack([np.bincount(column, minlength=most) for column in group.T]) for group in groups]
    return BinTable(space, limits, edges, tuple(numbers),
                    tuple(np.cumsum(each, axis=1) / len(group) for each, group in zip(counts, groups, strict=True)),
                    tuple(group[:MEMBERS] for group in groups))


def _bins(space: Space, limits: Limits, edges: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The bin of every architecture, -1 outside the limits."""
    flops, params = cost_table(space, limits.rule)(indices)
    places = np.minimum(np.searchsorted(edges, flops, side="right") - 1, len(edges) - 2)  # the last bin includes its upper edge
    inside = limits.inside(flops, params) & (flops >= edges[0]) & (flops <= edges[-1])
    return np.where(inside, places, -1)


def conditioned(space: Space, seed: int, limits: Limits, bins: int) -> Sampler:
    """A FLOPs bin uniformly, then an architecture of that bin (AttentiveNAS, section 3.2: bins of 25 M, there by their prior)."""
    table = bin_table(space, limits, bins, 0)

    def sampler(epoch: int, step: int, score: Score | None = None) -> list[Arch]:
        rng = np.random.default_rng([seed, epoch, step])
        return [table.draw(int(rng.integers(len(table.numbers))), rng)]

    return sampler


def attentive(space: Space, seed: int, limits: Limits, bins: int, candidates: int, best: bool) -> Sampler:
    """Of `candidates` architectures of one FLOPs bin the one with the lowest score (BestUp), or the highest (WorstUp).

    Source: AttentiveNAS, section 3.3, k = 3; the score is the loss on the images of the step. A score that is not finite loses.
    """
    table = bin_table(space, limits, bins, 0)

    def sampler(epoch: int, step: int, score: Score | None = None) -> list[Arch]:
        if score is None:
            raise UserError(f"sampler '{'bestup' if best else 'worstup'}' chooses by the loss of a training step, so what it "
                            "draws is not known beforehand")
        rng = np.random.default_rng([seed, epoch, step])
        place = int(rng.integers(len(table.numbers)))
        archs = [table.draw(place, rng) for _ in range(candidates)]
        scores = [score(arch) * (1 if best else -1) for arch in archs]
        return [min(zip(scores, range(candidates), archs, strict=True),
                    key=lambda each: (each[0] if math.isfinite(each[0]) else math.inf, each[1]))[2]]

    return sampler


def sandwich(space: Space, sampler: Sampler, config: Sandwich) -> Sampler:
    """The largest network, `config.random` draws of `sampler`, and the smallest one.

    Source: Yu et al., "BigNAS: Scaling up Neural Architecture Search with Big Single-Stage Models", ECCV 2020, section 3.1.
    Raises: UserError when no network contains all others.
    """
    loose = [choice.name for choice in space.choices if not choice.ordered and any(len(values) > 1 for values in choice.values)]
    if loose:
        raise UserError(f"a sandwich needs one largest network that contains all others, but the values of {show(loose)} in "
                        f"space '{space.name}' are not ordered; fix them (allowed), or leave sampler.sandwich out")
    largest, smallest = space.largest(), [space.smallest()] if config.smallest else []

    def both(epoch: int, step: int, score: Score | None = None) -> list[Arch]:
        drawn = (sampler(epoch, step * config.random + number, score)[0] for number in range(config.random))
        return [largest, *drawn, *smallest]

    return both
