"""Scores that follow from sums over the layers of an architecture, computed from weight files alone: no data, no forward pass.

What a layer adds depends on its weights and the decisions of its cost unit only, so the sums are computed once for every
decision; an architecture then costs one look-up per unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.arch import Arch, Space
from oneshot_nas.costs.table import CHUNK, JOINED, random_indices, unit_layers
from oneshot_nas.errors import UserError
from oneshot_nas.plan import Layer
from oneshot_nas.train.checkpoint import load_arrays

PROBES = 256  # random architectures that show whether an indicator tells them apart


class Weights:
    """The named arrays of a parameter file, as numpy and cut to the shape that a layer uses."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stored = {name.removeprefix("arg:").removeprefix("aux:"): array for name, array in load_arrays(self.path).items()}
        self._known: dict[str, np.ndarray] = {}

    @property
    def digest(self) -> str:
        """Digest of the file, which tells two apart on every machine."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights of convolutions and dense layers, by name."""
        return {name: array.shape for name, array in self._stored.items() if name.endswith(".weight")}

    def cut(self, name: str, shape: tuple[int, ...], what: str) -> np.ndarray:
        """The float64 array of that name at `shape`, as a fixed network inherits it: leading channels, kernels around their
        centre, through the transformation matrices that the file has for it.

        Raises: UserError when it is missing, too small, not finite or zero everywhere; `what` says what it is.
        """
        whole = self._whole(name, what)
        if len(whole.shape) != len(shape) or any(have < want for have, want in zip(whole.shape, shape, strict=True)):
            raise UserError(f"'{name}' in {self.path}, {what}, has shape {whole.shape}, the space needs {shape}; "
                            "give the weights of a supernet of this space and these options")
        value = whole[tuple(map(slice, shape[:2]))]
        while value.shape[2:] != tuple(shape[2:]):
            kernel = value.shape[-1]
            matrix = f"{name.removesuffix('.weight')}.{kernel}to{kernel - 2}"
            value = value[..., 1:-1, 1:-1]
            if matrix in self._stored:
                flat = value.reshape(*value.shape[:2], -1) @ self._whole(matrix, "a kernel transformation").T
                value = flat.reshape(value.shape)
        return value

    def _whole(self, name: str, what: str) -> np.ndarray:
        if name not in self._known:
            if name not in self._stored:
                raise UserError(f"{self.path} has no '{name}', {what}; give the weights of a supernet of this space and these "
                                "options")
            array = self._stored[name].asnumpy().astype(np.float64)
            if not np.isfinite(array).all():
                raise UserError(f"'{name}' in {self.path}, {what}, is not finite: {int((~np.isfinite(array)).sum())} of "
                                f"{array.size} numbers are NaN or infinite")
            if not array.any():
                raise UserError(f"'{name}' in {self.path}, {what}, is zero everywhere, so it says nothing of the operator; "
                                "train the supernet first")
            self._known[name] = array
        return self._known[name]


LayerTerms = Callable[[Layer], tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Lookup:
    """The terms of one unit: `values` (sums, combinations); `columns` and `strides` as in `costs.table.UnitTable`."""

    columns: tuple[int, ...]
    strides: tuple[int, ...]
    values: np.ndarray

    def joined(self, other: Lookup) -> Lookup:
        """One table for the decisions of both."""
        size = other.values.shape[1]
        values = (self.values[:, :, None] + other.values[:, None, :]).reshape(len(self.values), -1)
        return Lookup(self.columns + other.columns, (*(stride * size for stride in self.strides), *other.strides), values)


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Sums over layers for any architecture: `fixed` (sums,) plus one column of every unit, in the order of the space's units."""

    fixed: np.ndarray
    units: tuple[Lookup, ...]
    lookups: tuple[Lookup, ...]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Float64 array (sums, n) for indices of shape (n, decisions), as of `Space.encode`."""
        total = np.repeat(self.fixed[:, None], len(indices), axis=1)
        for start in range(0, len(indices), CHUNK):
            columns = np.ascontiguousarray(indices[start : start + CHUNK].T, dtype=np.intp)
            for table in self.lookups:
                offsets = columns[table.columns[0]] * table.strides[0]
                for column, stride in zip(table.columns[1:], table.strides[1:], strict=True):
                    offsets += columns[column] * stride
                for sums, values in zip(total, table.values, strict=True):
                    sums[start : start + CHUNK] += values.take(offsets, mode="clip")
        return total


def layer_sums(space: Space, terms: LayerTerms) -> LayerSums:
    """Return the sums of ``terms(layer)`` over the layers of any architecture of the space; it is asked once for each layer."""
    first = space.plan(space.decode([0] * len(space.positions))).layers
    count = len(terms(first[0]))

    def total(layers: tuple[Layer, ...]) -> np.ndarray:
        return np.sum([terms(layer) for layer in layers], axis=0) if layers else np.zeros(count)

    units = tuple(Lookup(part.columns, part.strides, np.stack([total(layers) for layers in part.layers], axis=1))
                  for part in unit_layers(space))
    joined: list[Lookup] = []
    for unit in units:
        if joined and joined[-1].values.shape[1] * unit.values.shape[1] <= JOINED:
            joined[-1] = joined[-1].joined(unit)
        else:
            joined.append(unit)
    return LayerSums(total(tuple(layer for layer in first if not layer.unit)), units, tuple(joined))


@dataclass(frozen=True, eq=False)
class WeightIndicator:
    """An indicator of a supernet's architectures; called with one it returns {name: score}, higher is better.

    `sums_of` gives the sums of a space, `combine` turns sums (sums, n) into scores (n,). `about` says what gives the scores,
    for the identity of a search.
    """

    name: str
    space: Space
    sums_of: Callable[[Space], LayerSums]
    combine: Callable[[np.ndarray], np.ndarray]
    about: Mapping[str, Any]

    @cached_property
    def sums(self) -> LayerSums:
        """The sums of `space`."""
        return self.sums_of(self.space)

    def checked(self) -> WeightIndicator:
        """This indicator, its sums built. Raises: UserError for weights that cannot be scored."""
        assert self.sums.units
        return self

    def unit_scores(self, space: Space) -> dict[str, np.ndarray]:
        """What each cost unit of `space`, a part of this one, adds to the score, one number per combination of its decisions.

        Raises: UserError for an indicator that is not itself a sum.
        """
        sums = self.sums_of(space)
        if len(sums.fixed) > 1:
            raise UserError(f"indicator '{self.name}' is not a sum over layers, so no exact search; take --algorithm evolution")
        return {unit.name: table.values[0] for unit, table in zip(space.units, sums.units, strict=True)}

    def check_says_something(self, space: Space) -> None:
        """Raise UserError when random architectures of `space` all have the same score."""
        sums = self.sums if space is self.space else self.sums_of(space)
        scores = self.combine(sums(random_indices(space, np.random.default_rng(0), PROBES)))
        if space.size > 1 and np.ptp(scores) == 0:
            raise UserError(f"indicator '{self.name}' is {scores[0]:.6g} for each of {PROBES} random architectures, so it says "
                            "nothing here; train the supernet first, or in a way that moves what the indicator looks at")

    def scores(self, indices: np.ndarray) -> np.ndarray:
        """Scores (n,) of architectures given as indices (n, decisions) of `space`."""
        return self.combine(self.sums(indices))

    def __call__(self, arch: Arch) -> dict[str, float]:
        return {self.name: float(self.scores(np.array([self.space.encode(self.space.check(arch))]))[0])}
