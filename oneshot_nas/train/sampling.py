"""Which architecture a training step uses: samplers, each a pure function of (seed, epoch, step).

A sampler is called as ``sampler(epoch, step)`` and returns the list of architectures of that step (one for single path).
Nothing is remembered between calls but caches, so a resumed run draws what an uninterrupted one would have drawn. A third
argument is what attentive samplers choose by: a function from an architecture to its loss on the images of the step.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import count, islice, pairwise

import numpy as np

from oneshot_nas.arch import Arch, Space, show
from oneshot_nas.config import Sampler as SamplerConfig
from oneshot_nas.costs.limits import ANY, Limits, check_reachable, parse_limits, sample_within
from oneshot_nas.costs.table import CostTable, cost_table, random_indices, reachable
from oneshot_nas.errors import UserError
from oneshot_nas.train.elastic import Sampler, Score, attentive, conditioned, sandwich

SKIP = "skip"  # the operator that leaves a layer out, or nearly so
SCALE = "scale"  # the choice that the warm-up and the least scale are about
# (epochs since channel selection began, smallest scale from then on). Source: the warm-up tables of the MXNet predecessor for
# its two layouts (reference sheet, section 4.2; the second one continues through epoch 35, where the predecessor has a gap).
WARMUP = {
    "oneshot": ((0, 1.8), (1, 1.6), (2, 1.4), (3, 1.2), (4, 1.0), (6, 0.8), (9, 0.6), (13, 0.4), (18, 0.2)),
    "shufflenetv2+": ((0, 1.8), (1, 1.6), (3, 1.4), (6, 1.2), (10, 1.0), (15, 0.8), (21, 0.6), (36, 0.4), (37, 0.2)),
}
POOL = 256  # architectures drawn together when sampling inside limits
CUTS, SUB_STEPS, STAY = 7, 8, 4  # strolling evolution: FLOPs ceilings down the box, params bounds at each, generations at each
PARENTS, CHILDREN, TRIES, MUTATION = 5, 10, 200, 0.1
PICKS = (6, 6, 6, 9, 9, 6, 6, 6)  # child trained at each sub-step; the very best ones hurt coverage


def rng_of(*counters: int | str) -> random.Random:
    """A generator seeded by counters alone; the same on every machine and Python."""
    return random.Random("/".join(map(str, counters)))


def make_sampler(space: Space, config: SamplerConfig, seed: int) -> Sampler:
    """Return the sampler that a recipe names. Raises: UserError for limits no architecture meets.

    With `sandwich` it returns the largest network first, then as many as the recipe says, then the smallest one. Samplers with
    limits begin at `limits_epoch`; the epochs before it are sampled as by 'uniform', because the networks of
    the warm-ups do not fit the limits.
    """
    space = at_least(space, config.least_scale)
    if config.average_blocks and "block" not in (names := [choice.name for choice in space.choices]):
        raise UserError(f"average_blocks averages the operators of choice 'block'; space '{space.name}' has {show(names)}")
    kinds = {choice.ordered for choice in space.choices}
    if config.first_channel_epoch and True not in kinds:
        raise UserError(f"sampler.first_channel_epoch {config.first_channel_epoch} holds every scale at its largest; space "
                        f"'{space.name}' has no scales, leave it out")
    if config.operator_warmup and False not in kinds:
        raise UserError(f"sampler.operator_warmup {config.operator_warmup} lets operators join; space '{space.name}' has sizes "
                        "only, leave it out")
    single = _single(space, config, seed)
    return single if config.sandwich is None else sandwich(space, single, config.sandwich)


def _single(space: Space, config: SamplerConfig, seed: int) -> Sampler:
    """The sampler of one architecture a step."""
    early = uniform(space, seed, config)
    limits = parse_limits(config.flops or None, config.params or None, config.rule)
    if config.name == "uniform":
        if limits.flops != ANY or limits.params != ANY:
            raise UserError(f"sampler 'uniform' keeps no limits, {limits} given; use the sampler 'box' or 'stroll'")
        return early
    if config.name in ("bins", "stroll") and limits.flops[1] == float("inf"):
        raise UserError(f"sampler '{config.name}' needs both FLOPs bounds, such as flops: 290M:360M")
    check_reachable(space, limits)
    names: dict[str, Callable[[], Sampler]] = {
        "bins": lambda: flops_bins(space, seed, limits, config.bins),
        "box": lambda: box(space, seed, limits),
        "stroll": lambda: strolling(space, seed, limits),
        "flops": lambda: conditioned(space, seed, limits, config.bins),
        "bestup": lambda: attentive(space, seed, limits, config.bins, config.candidates, best=True),
        "worstup": lambda: attentive(space, seed, limits, config.bins, config.candidates, best=False),
    }
    limited, start = names[config.name](), limits_epoch(space, config)
    return lambda epoch, step, score=None: (early if epoch < start else limited)(epoch, step, score)


def describe(space: Space, config: SamplerConfig, epochs: int) -> str:
    """How the epochs of a run are sampled, in words."""
    parts = ["all operators averaged" if config.average_blocks else "one path a step"]
    if config.sandwich is not None:
        smallest = " and the smallest network" if config.sandwich.smallest else ""
        parts = [f"every step the largest network, {config.sandwich.random} sampled ones{smallest}"]
    if config.first_channel_epoch:
        parts.append(f"every scale at its largest in epochs 1 to {min(config.first_channel_epoch, epochs)}")
    if config.operator_warmup:
        parts.append(f"the first operator of every choice alone in epoch 1, all alike from epoch {config.operator_warmup + 1} on")
    if config.warmup and config.first_channel_epoch < epochs:
        parts.append(f"smaller scales join from epoch {config.first_channel_epoch + 1} on")
    if config.name != "uniform":
        start = limits_epoch(at_least(space, config.least_scale), config)
        asked = " and ".join(f"{name} {text}" for name, text in (("FLOPs", config.flops), ("params", config.params)) if text)
        parts.append(f"sampler '{config.name}' with {asked or 'no limits'} from epoch {start + 1} on"
                     + (f", which {epochs} epochs do not reach" if start >= epochs else ""))
    return "; ".join(parts)


def at_least(space: Space, least: float | None) -> Space:
    """The space without scales below `least`. Raises: UserError when none is left."""
    if least is None:
        return space
    choice = space.choice(SCALE)
    kept = [[value for value in allowed if float(value) >= least] for allowed in choice.values]
    if not all(kept):
        raise UserError(f"least_scale {least:g} leaves no scale in space '{space.name}'; the scales are {show(choice.values[0])}")
    return space.restrict({SCALE: kept})


def limits_epoch(space: Space, config: SamplerConfig) -> int:
    """The first epoch in which every operator and every scale of `space` may be drawn freely."""
    return max(scales_epoch(space, config), config.operator_warmup)


def scales_epoch(space: Space, config: SamplerConfig) -> int:
    """The first epoch in which every scale of `space` may be drawn."""
    if config.warmup is None:
        return config.first_channel_epoch
    smallest = min(float(value) for allowed in space.choice(SCALE).values for value in allowed)
    return config.first_channel_epoch + next((start for start, least in WARMUP[config.warmup] if least <= smallest), 0)


def uniform(space: Space, seed: int, config: SamplerConfig) -> Sampler:
    """One uniform path per step; before `first_channel_epoch` every ordered choice is at its largest value (the predecessor's
    all-channels phase), and with `warmup` the smallest scale that is drawn then falls by the table.

    With `operator_warmup` of E epochs a decision about operators is uniform with probability epoch / E and its first value that
    is no skip otherwise: epoch 0 trains one network, and the other operators join layers that are already worth joining."""
    ordered = {choice.name for choice in space.choices if choice.ordered}
    table = WARMUP[config.warmup] if config.warmup and space.choice(SCALE) else ()

    def sampler(epoch: int, step: int, score: Score | None = None) -> list[Arch]:
        rng = rng_of("uniform", seed, epoch, step)
        largest = epoch < config.first_channel_epoch
        least = min((scale for start, scale in table if start <= epoch - config.first_channel_epoch), default=0.0)
        joined = epoch / config.operator_warmup if epoch < config.operator_warmup else 1.0
        indices = []
        for name, _, allowed in space.positions:
            first = len(allowed) - 1 if largest and name in ordered else bisect_left(allowed, least) if name == SCALE else 0
            drawn = rng.randrange(min(first, len(allowed) - 1), len(allowed))
            alone = joined < 1 and name not in ordered and rng.random() >= joined
            indices.append(int(allowed[0] == SKIP and len(allowed) > 1) if alone else drawn)
        return [space.decode(indices)]

    return sampler


def box(space: Space, seed: int, limits: Limits) -> Sampler:
    """Uniform among the architectures inside the limits; drawn `POOL` steps at a time from (seed, epoch, pool)."""

    @lru_cache(maxsize=2)
    def pool(epoch: int, number: int) -> list[Arch]:
        return sample_within(space, limits, np.random.default_rng([seed, epoch, number]), POOL)

    return lambda epoch, step, score=None: [pool(epoch, step // POOL)[step % POOL]]


def flops_bins(space: Space, seed: int, limits: Limits, bins: int) -> Sampler:
    """A FLOPs bin uniformly, then an architecture of it uniformly (official SPOS training: 7 bins of 10 M, 290-360 M).

    Edge bins are rare among uniform draws, so they are strongly over-sampled on purpose. The official code rejects uniform draws;
    these are drawn from the bin as `box` draws from its limits. Raises: UserError when a bin has no architecture.
    """
    parts = [replace(limits, flops=ends) for ends in pairwise(np.linspace(*limits.flops, bins + 1).tolist())]
    for part in parts:
        try:
            sample_within(space, part, np.random.default_rng(seed), 1)
        except UserError as error:
            raise UserError(f"sampler 'bins' with {limits} and {bins} bins: {error}") from None
    boxes = [box(space, seed, part) for part in parts]
    return lambda epoch, step, score=None: boxes[rng_of("bins", seed, epoch, step).randrange(bins)](epoch, step)


def strolling(space: Space, seed: int, limits: Limits) -> Sampler:
    """Strolling evolution: walks a small population up and down the FLOPs and params box, so that samples cover it evenly.

    Source: the MXNet predecessor's training constraint, with the user's own bounds. FLOPs ceilings go down the box in `CUTS`
    cuts and back; at each, `SUB_STEPS` sub-steps move a params bound from large to small, at the next one from small to large.
    One generation a step, `STAY` at a bound. Every epoch is a walk of its own, from a place that (seed, epoch) decides, so that
    epochs shorter than a whole round see all of it in turn.
    """
    table = cost_table(space, limits.rule)
    ends, _ = reachable(table)
    low, high = max(limits.flops[0], ends[0]), min(limits.flops[1], ends[1])
    cut = (high - low) / CUTS
    least, most = _params_range(space, limits, np.random.default_rng(seed))
    down = [high - cut * i for i in range(CUTS)]
    ceilings = [*down, *reversed(down)]

    def bounds(place: int) -> tuple[Limits, bool]:
        """The limits at a place of the round, and whether large params are sought."""
        stop, sub = divmod(place, SUB_STEPS)
        ceiling, turn = ceilings[stop], SUB_STEPS - 1 - sub if stop % 2 else sub
        bound, large = most - turn / (SUB_STEPS - 1) * (most - least), turn < SUB_STEPS // 2
        return Limits((max(ceiling - cut, low), ceiling), (least, bound) if large else (bound, most), limits.rule), large

    def walk(epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([seed, epoch])
        family = np.array([space.encode(arch) for arch in sample_within(space, limits, rng, POOL)])
        for step in count(int(rng.integers(len(ceilings) * SUB_STEPS * STAY))):
            place = step // STAY % (len(ceilings) * SUB_STEPS)
            inside, large = bounds(place)
            family, params = _fittest(table, family, inside, limits)
            family = family[np.argsort(-params if large else params, kind="stable")]
            yield family[min(PICKS[place % SUB_STEPS], len(family) - 1)]
            family = np.concatenate([family[:PARENTS], _children(space, family[:PARENTS], rng)])

    @lru_cache(maxsize=2)
    def visited(epoch: int) -> tuple[list[np.ndarray], Iterator[np.ndarray]]:
        return [], walk(epoch)

    def sampler(epoch: int, step: int, score: Score | None = None) -> list[Arch]:
        known, ahead = visited(epoch)
        known.extend(islice(ahead, max(0, step + 1 - len(known))))
        return [space.decode(known[step].tolist())]

    return sampler


def _params_range(space: Space, limits: Limits, rng: np.random.Generator) -> tuple[float, float]:
    """The params bounds; one that is not given is the extreme of `POOL` architectures inside the FLOPs bounds."""
    found = sample_within(space, limits, rng, POOL)
    _, params = cost_table(space, limits.rule)(np.array([space.encode(arch) for arch in found]))
    least, most = limits.params
    return least or float(params.min()), most if most != float("inf") else float(params.max())


def _fittest(table: CostTable, family: np.ndarray, inside: Limits, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n, decisions) and params (n,) of `CHILDREN` of the family: inside the first limits, or nearest to them within
    the second. The youngest come first; the family's first member, a parent, is always within the second."""
    flops, params = table(family)
    miss = sum(np.maximum(low - value, 0) / high + np.maximum(value - high, 0) / high
               for value, (low, high) in ((flops, inside.flops), (params, inside.params)))
    miss = np.where(limits.inside(flops, params), miss, np.inf)[::-1]
    order = np.argsort(miss, kind="stable")[:CHILDREN]
    kept = len(family) - 1 - order[np.isfinite(miss[order])]
    return family[kept], params[kept]


def _children(space: Space, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices (`TRIES`, decisions): each decision from either of two random parents, redrawn with probability `MUTATION`."""
    pairs = rng.integers(len(parents), size=(2, TRIES))
    shape = (TRIES, parents.shape[1])
    children = np.where(rng.random(shape) < 0.5, parents[pairs[0]], parents[pairs[1]])
    return np.where(rng.random(shape) < MUTATION, random_indices(space, rng, TRIES), children)
