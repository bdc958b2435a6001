"""Many cheap children at once, as rows of indices: made, costed and scored vectorised, so that few have to be evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from oneshot_nas.arch import Arch, Space
from oneshot_nas.costs.limits import sample_within
from oneshot_nas.costs.table import cost_table
from oneshot_nas.errors import UserError
from oneshot_nas.search.batch import TRIES, Batch, Proposal, Rules, countable
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.pareto import crowding, fronts

NOBODY = -1


class Rows(NamedTuple):
    """Children: indices (n, decisions) as of `Space.encode`, and two indices of parents each (n, 2), `NOBODY` for none."""

    indices: np.ndarray
    parents: np.ndarray


Make = Callable[[int, int], Rows]  # (count, round from 0) -> children, legal or not


class Pool(NamedTuple):
    """Distinct children inside the limits with their costs (n,)."""

    rows: Rows
    flops: np.ndarray
    params: np.ndarray


Order = Callable[[Pool, np.ndarray], Iterable[int]]  # (pool, scores (n,)) -> positions, best first


def encoded(space: Space, archs: Iterable[Arch]) -> np.ndarray:
    """Indices (n, decisions) of architectures."""
    return np.array([space.encode(arch) for arch in archs], dtype=np.int64).reshape(-1, len(space.positions))


def generator(batch: Batch) -> np.random.Generator:
    """A numpy generator that the batch's own one decides."""
    return np.random.default_rng(batch.rng.getrandbits(128))


def varied(space: Space, parents: Sequence[Candidate], rng: np.random.Generator, probability: float) -> Make:
    """Mutations (each decision redrawn with `probability`) and uniform crossovers in turn, of parents drawn uniformly."""
    rows = encoded(space, [c.arch for c in parents])
    index = np.array([c.index for c in parents])
    sizes = np.array([len(allowed) for _, _, allowed in space.positions])

    def make(count: int, _: int) -> Rows:
        first, second = rng.integers(len(rows), size=(2, count))
        shape, mutates = (count, len(sizes)), np.arange(count) % 2 == 0
        origin = np.stack([index[first], np.where(mutates, NOBODY, index[second])], axis=1)
        other = np.where(mutates[:, None], rng.integers(sizes, size=shape), rows[second])
        changes = rng.random(shape) < np.where(mutates, probability, 0.5)[:, None]
        return Rows(np.where(changes, other, rows[first]), origin)

    return make


def stepped(space: Space, parents: Sequence[Candidate], rng: np.random.Generator, probability: float) -> Make:
    """Neighbours of parents: each decision moved with `probability`, at least one, by a step; by more in later rounds."""
    rows = encoded(space, [c.arch for c in parents])
    index = np.array([c.index for c in parents])
    sizes = np.array([len(allowed) for _, _, allowed in space.positions])
    free = np.nonzero(sizes > 1)[0]

    def make(count: int, number: int) -> Rows:
        chosen = rng.integers(len(rows), size=count)
        moves = rng.random((count, len(sizes))) < probability
        if len(free):
            moves[np.arange(count), rng.choice(free, count)] = True
        steps = rng.integers(1, 2 + number, size=moves.shape) * rng.choice((-1, 1), moves.shape)
        moved = np.clip(rows[chosen] + moves * steps, 0, sizes - 1)
        return Rows(moved, np.stack([index[chosen], np.full(count, NOBODY)], axis=1))

    return make


def grown(batch: Batch, make: Make | None, wanted: int) -> Pool:
    """About `wanted` distinct children inside the batch's limits, in at most `TRIES` rounds; tried ones may be among them."""
    parts = [_inside(batch, Rows(np.empty((0, len(batch.space.positions)), np.int64), np.empty((0, 2), np.int64)))]
    found = 0
    for number in range(TRIES if make else 0):
        if make is None or found >= wanted:
            break
        parts.append(_inside(batch, make(wanted, number)))
        found += len(parts[-1].flops)
    return _joined(parts)


def topped(batch: Batch, pool: Pool, wanted: int, rng: np.random.Generator) -> Pool:
    """The pool with uniformly drawn architectures up to `wanted`; with every architecture of a space that can be listed."""
    listed = countable(batch.space, batch.limits)
    archs: Sequence[Arch] = ()
    if listed is not None:
        archs = [arch for key, arch in listed if key not in batch.seen]
    elif len(pool.flops) < wanted:
        try:
            archs = sample_within(batch.space, batch.limits, rng, wanted - len(pool.flops))
        except UserError:  # too narrow for uniform draws: the children alone
            archs = ()
    indices = encoded(batch.space, archs)
    return _joined([pool, _inside(batch, Rows(indices, np.full((len(indices), 2), NOBODY)))])


def screened(batch: Batch, rules: Rules, make: Make | None, rng: np.random.Generator, order: Order | None = None,
             ) -> list[Proposal]:
    """The batch filled with the best predicted of `rules.children` children; uniform draws join where `make` falls short."""
    pool = topped(batch, grown(batch, make, rules.children), rules.children, rng)
    if rules.score and len(pool.flops):
        take(batch, pool, (order or best_first)(pool, rules.score(pool.rows.indices)), batch.n)
    return batch.filled()


def best_first(pool: Pool, scores: np.ndarray) -> np.ndarray:
    """Positions by falling score, equal ones by fewer FLOPs, fewer parameters, earlier birth."""
    return np.lexsort((pool.params, pool.flops, -scores))


def front_first(against: Sequence[str]) -> Order:
    """Positions by non-dominated front of predicted score against costs, lonelier ones first; found as they are asked for."""
    def order(pool: Pool, scores: np.ndarray) -> Iterator[int]:
        points = np.stack([-scores, *(getattr(pool, name).astype(float) for name in against)], axis=1)
        for front in fronts(points):
            yield from front[np.argsort(-crowding(points[front]), kind="stable")].tolist()

    return order


def take(batch: Batch, pool: Pool, order: Iterable[int], wanted: int) -> int:
    """Put up to `wanted` new children into the batch, in that order; return how many it were."""
    taken, places = 0, iter(order)
    while taken < wanted and len(batch.proposals) < batch.n and (place := next(places, None)) is not None:
        origin = tuple(int(parent) for parent in pool.rows.parents[place] if parent != NOBODY)
        taken += batch.add(Proposal(batch.space.decode(pool.rows.indices[place].tolist()), origin))
    return taken


def _inside(batch: Batch, rows: Rows) -> Pool:
    flops, params = batch.table(rows.indices)
    legal = batch.limits.inside(flops, params)
    return Pool(Rows(rows.indices[legal], rows.parents[legal]), flops[legal], params[legal])


def _joined(parts: Sequence[Pool]) -> Pool:
    """One pool of the first of equal rows."""
    indices = np.concatenate([part.rows.indices for part in parts])
    packed = np.ascontiguousarray(indices, np.int16)
    _, first = np.unique(packed.view(f"V{packed.itemsize * packed.shape[1]}"), return_index=True)
    first = np.sort(first)
    parents = np.concatenate([part.rows.parents for part in parts])
    flops, params = (np.concatenate([getattr(part, name) for part in parts]) for name in ("flops", "params"))
    return Pool(Rows(indices[first], parents[first]), flops[first], params[first])


@lru_cache(maxsize=16)
def extreme(space: Space, rule: str, largest: bool) -> Arch:
    """The architecture of least (or most) FLOPs, of equals the one of least (most) parameters: decision by decision downhill.

    It is exact where each decision moves the cost one way whatever the others are, as in every space of this package.
    """
    table, sign = cost_table(space, rule), -1 if largest else 1
    row = np.array(space.encode(space.largest() if largest else space.smallest()))
    for _ in range(TRIES):
        before = row.copy()
        for column, (_, _, allowed) in enumerate(space.positions):
            rows = np.repeat(row[None], len(allowed), axis=0)
            rows[:, column] = np.arange(len(allowed))
            flops, params = table(rows)
            row[column] = np.lexsort((sign * params, sign * flops))[0]
        if (row == before).all():
            break
    return space.decode(row.tolist())
