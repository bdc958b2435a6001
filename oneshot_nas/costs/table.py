"""Costs of many architectures at once: one table entry per decision of every cost unit.

The table is filled through the plan, so it cannot disagree with `oneshot_nas.costs.analytic` as long as the space's
`units` are right, which a contract test checks for every space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.costs.analytic import Cost, check_rule, op_cost
from oneshot_nas.costs.chain import Step, ahead, chain
from oneshot_nas.plan import Layer

CHUNK = 8192  # architectures looked up together, so that everything stays in the cache
JOINED = 2048  # most entries of a joined table


@dataclass(frozen=True, eq=False)
class UnitTable:
    """FLOPs and parameters of one unit for every combination of its decisions.

    `columns` are positions in the encoding, `strides` turn their indices into an offset into the flat arrays.
    """

    name: str
    columns: tuple[int, ...]
    strides: tuple[int, ...]
    flops: np.ndarray
    params: np.ndarray

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each decision of `columns` has."""
        sizes = (len(self.flops), *self.strides)
        return tuple(sizes[place] // stride for place, stride in enumerate(self.strides))

    def joined(self, other: UnitTable) -> UnitTable:
        """One table for the decisions of both: half the look-ups, as long as it fits the cache."""
        size = len(other.flops)
        return UnitTable(
            f"{self.name}+{other.name}", self.columns + other.columns,
            (*(stride * size for stride in self.strides), *other.strides),
            np.add.outer(self.flops, other.flops).ravel(), np.add.outer(self.params, other.params).ravel())


@dataclass(frozen=True, eq=False)
class CostTable:
    """Exact vectorised costs of a space: `fixed` plus one entry of every unit; `lookups` are the units joined for speed."""

    rule: str
    fixed: Cost
    units: tuple[UnitTable, ...]
    lookups: tuple[UnitTable, ...]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The units as a chain, for sums over all architectures. Raises: WorkError where they share too many decisions."""
        counts = {column: count for unit in self.units for column, count in zip(unit.columns, unit.counts, strict=True)}
        return chain([unit.columns for unit in self.units], counts)

    def weights(self, name: str) -> list[np.ndarray]:
        """The 'flops' or 'params' of every transition of `steps`, int64 (transitions,) each."""
        return [getattr(unit, name)[step.entry] for unit, step in zip(self.units, self.steps, strict=True)]

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return int64 arrays (flops, params) of shape (n,) for indices of shape (n, decisions), as of `Space.encode`."""
        flops = np.full(len(indices), self.fixed.flops, dtype=np.int64)
        params = np.full(len(indices), self.fixed.params, dtype=np.int64)
        for start in range(0, len(indices), CHUNK):
            columns = np.ascontiguousarray(indices[start : start + CHUNK].T, dtype=np.intp)
            offsets, part = np.empty(columns.shape[1], np.intp), np.empty(columns.shape[1], np.int64)
            for table in self.lookups:
                np.multiply(columns[table.columns[0]], table.strides[0], out=offsets)
                for column, stride in zip(table.columns[1:], table.strides[1:], strict=True):
                    offsets += columns[column] if stride == 1 else columns[column] * stride
                for total, values in ((flops, table.flops), (params, table.params)):
                    total[start : start + CHUNK] += np.take(values, offsets, out=part, mode="clip")
        return flops, params


def _joined(units: list[UnitTable]) -> tuple[UnitTable, ...]:
    """Neighbouring tables joined while they stay small enough for the first-level cache."""
    lookups: list[UnitTable] = []
    for unit in units:
        if lookups and len(lookups[-1].flops) * len(unit.flops) <= JOINED:
            lookups[-1] = lookups[-1].joined(unit)
        else:
            lookups.append(unit)
    return tuple(lookups)


@dataclass(frozen=True, eq=False)
class UnitLayers:
    """The layers of one unit for every combination of its decisions; `columns` and `strides` as in `UnitTable`."""

    name: str
    columns: tuple[int, ...]
    strides: tuple[int, ...]
    layers: tuple[tuple[Layer, ...], ...]


def unit_layers(space: Space) -> Iterator[UnitLayers]:
    """Yield what the decisions of every unit make of its layers, found by asking the plan."""
    column_of = {(name, position): column for column, (name, position, _) in enumerate(space.positions)}
    for unit in space.units:
        columns = tuple(column_of[pair] for pair in unit.positions)
        counts = [len(space.positions[column][2]) for column in columns]
        layers = []
        for combination in product(*map(range, counts)):
            indices = [0] * len(space.positions)
            for column, index in zip(columns, combination, strict=True):
                indices[column] = index
            layers.append(tuple(layer for layer in space.plan(space.decode(indices)).layers if layer.unit == unit.name))
        strides = tuple(int(np.prod(counts[place + 1 :], dtype=np.int64)) for place in range(len(counts)))
        yield UnitLayers(unit.name, columns, strides, tuple(layers))


@lru_cache(maxsize=32)
def cost_table(space: Space, rule: str = "macs") -> CostTable:
    """Return the cost table of a space; built in a fraction of a second and kept. Raises: UserError for an unknown rule."""
    check_rule(rule)
    fixed = [layer for layer in space.plan(space.decode([0] * len(space.positions))).layers if not layer.unit]
    costs = [op_cost(layer.op, layer.in_shape, rule) for layer in fixed]
    units = []
    for part in unit_layers(space):
        found = [[op_cost(layer.op, layer.in_shape, rule) for layer in layers] for layers in part.layers]
        units.append(UnitTable(part.name, part.columns, part.strides,
                               np.array([sum(c.flops for c in each) for each in found], np.int64),
                               np.array([sum(c.params for c in each) for each in found], np.int64)))
    return CostTable(rule, Cost(sum(c.flops for c in costs), sum(c.params for c in costs), rule), tuple(units), _joined(units))


def random_indices(space: Space, rng: np.random.Generator, count: int) -> np.ndarray:
    """Indices of shape (count, decisions), every decision uniform and independent."""
    sizes = np.array([len(allowed) for _, _, allowed in space.positions])
    return rng.integers(0, sizes, size=(count, len(sizes)))


def reachable(table: CostTable) -> tuple[tuple[int, int], tuple[int, int]]:
    """The exact ((least, most) flops, (least, most) params) of all architectures, also where units share decisions."""
    flops, params = (
        [fixed + int(ahead(table.steps, table.weights(name), best)[0][0]) for best in (np.minimum, np.maximum)]
        for name, fixed in (("flops", table.fixed.flops), ("params", table.fixed.params)))
    return (flops[0], flops[1]), (params[0], params[1])
