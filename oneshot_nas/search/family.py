"""A whole family in one search: bins of FLOPs with an upper limit (target) each, all filled evenly, the best of each kept.

The idea is that of AlphaNet's parallel Pareto evolution (Wang et al., "AlphaNet: Improved Training of Supernets with
Alpha-Divergence", ICML 2021): parents are the best of each bin. Here a bin that has fewest candidates gets the next child, no
network is tried twice, and members that a cheaper one beats are marked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.costs.limits import Limits, Range, check_reachable, human, parse_range, sample_within
from oneshot_nas.costs.table import cost_table, reachable
from oneshot_nas.errors import UserError
from oneshot_nas.search.batch import Batch, Proposal, Rules, countable, parents_of
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.pool import NOBODY, Make, Pool, Rows, best_first, encoded, extreme, generator, grown, take, varied

MOST_TARGETS = 100
Rank = Callable[[Candidate], tuple[float, int, int, int]]  # sorts candidates best first


@dataclass(frozen=True)
class Member:
    """One bin, (`above`, `target`] FLOPs, its best candidate, and a cheaper member that is at least as good, if any."""

    above: float
    target: float
    best: Candidate | None
    dominated_by: Candidate | None = None


def parse_targets(text: str, space: Space, limits: Limits) -> tuple[float, ...]:
    """The targets of ``--targets``: '8' (equal steps over what is reachable inside the limits) or '4M,6M,8M'.

    Raises: UserError for targets outside the reachable range, which it names.
    """
    check_reachable(space, limits)
    least, most = reachable(cost_table(space, limits.rule))[0]
    low, high = max(least, limits.flops[0]), min(most, limits.flops[1])
    if re.fullmatch(r"\d+", text.strip()):
        count = int(text)
        if not 1 <= count <= MOST_TARGETS:
            raise UserError(f"--targets {count} is no number of targets from 1 to {MOST_TARGETS}; write FLOPs with M, such as 8M")
        if high - low < count:
            raise UserError(f"{count} targets do not fit into FLOPs {human(low)}:{human(high)}; ask for fewer, or widen --flops")
        return tuple(float(int(low + (high - low) * (place + 1) / count)) for place in range(count))
    words = [word.strip() for word in text.split(",")]
    try:
        targets = [parse_range(f":{word}" if word and ":" not in word else "?", "target")[1] for word in words]
    except UserError:
        raise UserError(f"--targets '{text}' is neither a number of targets, such as 8, nor FLOPs, such as 4M,6M,8M") from None
    return check_targets(targets, space, limits)


def check_targets(targets: Sequence[float], space: Space, limits: Limits) -> tuple[float, ...]:
    """Return growing targets that are reachable inside the limits. Raises: UserError that names the others and the range."""
    least, most = reachable(cost_table(space, limits.rule))[0]
    low, high = max(least, limits.flops[0]), min(most, limits.flops[1])
    wrong = [human(target) for target in targets if not low <= target <= high]
    if wrong:
        raise UserError(f"FLOPs target {', '.join(wrong)} is outside the reachable range {human(low)}:{human(high)} of "
                        f"'{space.name}' (rule {limits.rule})")
    if not targets or len(targets) > MOST_TARGETS or list(targets) != sorted(set(targets)):
        raise UserError(f"FLOPs targets must be 1 to {MOST_TARGETS} growing numbers, got {', '.join(map(human, targets))}")
    return tuple(targets)


def bins(targets: Sequence[float], limits: Limits) -> list[Range]:
    """The inclusive FLOPs range of every target's bin; the first one starts at the limits' lower end."""
    starts = [limits.flops[0], *(float(int(target) + 1) for target in targets[:-1])]
    return list(zip(starts, targets, strict=True))


def bin_of(flops: np.ndarray, targets: Sequence[float]) -> np.ndarray:
    """The bin of each cost (n,); `len(targets)` for what exceeds the last one."""
    return np.searchsorted(np.asarray(targets), flops, side="left")


def members(candidates: Sequence[Candidate], order: Rank, targets: Sequence[float], limits: Limits) -> list[Member]:
    """The best candidate of every bin (least by `order`, see `Objective.order`), with dominated ones marked."""
    usable = sorted((c for c in candidates if c.ok and limits.reject(c.cost) is None), key=order)
    found: list[Member] = []
    leader: Candidate | None = None  # the best of the bins below
    for number, (above, target) in enumerate(bins(targets, limits)):
        inside = [c for c in usable if bin_of(np.array([c.cost.flops]), targets)[0] == number]
        best = inside[0] if inside else None
        beaten = best is not None and leader is not None and order(leader) < order(best)
        found.append(Member(max(above - 1, 0), target, best, leader if beaten else None))
        if best is not None and not beaten:
            leader = best
    return found


def family(space: Space, history: Sequence[Candidate], batch: Batch, rules: Rules) -> list[Proposal]:
    """Children of the best of every bin for the bins that have fewest candidates; first the smallest and the largest network."""
    for largest in (False, True):
        arch = extreme(space, rules.limits.rule, largest)
        if batch.limits.inside(*batch.table(encoded(space, [arch])))[0]:
            batch.add(Proposal(arch))
    rng = generator(batch)
    best = bests(space, history, rules)
    return fill_bins(history, batch, rules, varied(space, best, rng, rules.mutation) if best else None, rng)


def bests(space: Space, history: Sequence[Candidate], rules: Rules) -> list[Candidate]:
    """The best candidate of every bin that has one, cheapest first."""
    found = members(parents_of(space, history), _order(rules), rules.targets, rules.limits)
    return [member.best for member in found if member.best is not None]


def _order(rules: Rules) -> Rank:
    return lambda c: (-rules.fitness(c), c.cost.flops, c.cost.params, c.index)


def fill_bins(history: Sequence[Candidate], batch: Batch, rules: Rules, make: Make | None,
              rng: np.random.Generator) -> list[Proposal]:
    """The batch filled with children of `make`, bin by bin, the emptiest first, by predicted score where there is one.

    A bin for which no child was made gets uniform draws from inside it; one that has nothing new hands its share to the others.
    """
    ranges = bins(rules.targets, rules.limits)
    counts = np.bincount(bin_of(np.array([*(c.cost.flops for c in history), *_flops(batch)]), rules.targets),
                         minlength=len(ranges) + 1)[: len(ranges)]
    marked = members([c for c in history if c.ok], _order(rules), rules.targets, rules.limits)
    unbeaten = [member.dominated_by is None for member in marked]  # of equally full bins beaten ones come first
    pool = grown(batch, make, rules.children)
    places = best_first(pool, rules.score(pool.rows.indices)) if rules.score and len(pool.flops) else np.arange(len(pool.flops))
    sorted_bins = bin_of(pool.flops[places], rules.targets)
    left = [iter(places[sorted_bins == number].tolist()) for number in range(len(ranges))]
    open_bins = list(range(len(ranges)))
    while open_bins and len(batch.proposals) < batch.n:
        share = shares(counts, unbeaten, open_bins, batch.n - len(batch.proposals))
        for number in list(open_bins):
            taken = take(batch, pool, left[number], share[number]) if share[number] else 0
            if taken < share[number]:
                taken += _draw(batch, ranges[number], share[number] - taken, rules, rng)
            counts[number] += taken
            if taken < share[number]:
                open_bins.remove(number)
    return batch.filled()


def shares(counts: np.ndarray, unbeaten: Sequence[bool], open_bins: Sequence[int], wanted: int) -> np.ndarray:
    """How many of `wanted` children each bin gets, so that the counts of the open bins become as equal as they can."""
    level, share = counts.copy(), np.zeros(len(counts), np.int64)
    for _ in range(wanted):
        number = min(open_bins, key=lambda b: (level[b], unbeaten[b], b))
        level[number] += 1
        share[number] += 1
    return share


def _flops(batch: Batch) -> list[int]:
    return batch.table(encoded(batch.space, [p.arch for p in batch.proposals]))[0].tolist()


def _draw(batch: Batch, flops: Range, wanted: int, rules: Rules, rng: np.random.Generator) -> int:
    """Put up to `wanted` new architectures from inside one bin into the batch; return how many it were."""
    limits = replace(batch.limits, flops=flops)
    draws = max(wanted, rules.children // len(rules.targets)) if rules.score else 2 * wanted
    try:
        listed = countable(batch.space, limits)
        fresh = None if listed is None else [arch for key, arch in listed if key not in batch.seen]
        if fresh is None:
            archs = sample_within(batch.space, limits, rng, draws)
        else:
            archs = [fresh[place] for place in rng.permutation(len(fresh))]
    except UserError:  # nothing there, or so little that uniform draws do not find it
        return 0
    indices = encoded(batch.space, archs)
    found = Pool(Rows(indices, np.full((len(indices), 2), NOBODY)), *batch.table(indices))
    order = best_first(found, rules.score(indices)) if rules.score and len(indices) else np.arange(len(indices))
    return take(batch, found, order.tolist(), wanted)
