"""Limits on costs, in words, and uniform sampling of the architectures inside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from oneshot_nas.arch import Arch, Space
from oneshot_nas.costs.analytic import Cost, check_rule
from oneshot_nas.costs.chain import Step
from oneshot_nas.costs.draw import Window, count_within
from oneshot_nas.costs.labels import START, Resource, reaches, resource
from oneshot_nas.costs.table import CostTable, cost_table, random_indices, reachable
from oneshot_nas.errors import UserError

Range = tuple[float, float]
ANY: Range = (0, float("inf"))
UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}
BATCH = 8192
DRAWS = 1_000_000  # draws before the limits count as too narrow


@dataclass(frozen=True)
class Limits:
    """Inclusive ranges of FLOPs and parameters; `rule` says how FLOPs are counted."""

    flops: Range = ANY
    params: Range = ANY
    rule: str = "macs"

    def reject(self, cost: Cost) -> str | None:
        """Return in words why `cost` is outside the limits, None when it is inside."""
        for name, value, (low, high) in (("FLOPs", cost.flops, self.flops), ("params", cost.params, self.params)):
            if value > high:
                return f"{name} {human(value)} exceed the limit {human(high)}"
            if value < low:
                return f"{name} {human(value)} are below the limit {human(low)}"
        return None

    def inside(self, flops: np.ndarray, params: np.ndarray) -> np.ndarray:
        """Boolean array: which costs are inside the limits."""
        return (flops >= self.flops[0]) & (flops <= self.flops[1]) & (params >= self.params[0]) & (params <= self.params[1])

    def __str__(self) -> str:
        parts = [f"{n} {human(r[0])}:{human(r[1])}" for n, r in (("FLOPs", self.flops), ("params", self.params)) if r != ANY]
        return " and ".join(parts) or "no limits"


def human(value: float) -> str:
    """A count with its unit, such as 327.86M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= size and value != float("inf"):
            return f"{value / size:.4g}{unit}"
    return f"{value:g}"


def parse_range(text: str, name: str) -> Range:
    """Return the range of text such as '290M:330M', ':4M' or '8M:'; a single number is an upper limit.

    Raises: UserError that shows the form.
    """
    low, colon, high = text.partition(":")
    if not colon:
        low, high = "", text
    bounds = (_number(low, name, text) if low else 0.0, _number(high, name, text) if high else float("inf"))
    if bounds[0] > bounds[1] or (not low and not high):
        raise UserError(f"{name} limit '{text}' is empty; write LO:HI with LO <= HI, such as 290M:330M or :4M")
    return bounds


def _number(text: str, name: str, whole: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:[eE]\d+)?)\s*([KkMmGg]?)", text.strip())
    if not match:
        raise UserError(f"{name} limit '{whole}' is not LO:HI; write numbers with K, M or G, such as 290M:330M or :4M")
    return float(match[1]) * UNITS[match[2].upper()]


def parse_limits(flops: str | None, params: str | None, rule: str = "macs") -> Limits:
    """Return the limits of two texts as `parse_range` has them, None for no limit. Raises: UserError."""
    return Limits(ANY if flops is None else parse_range(flops, "FLOPs"),
                  ANY if params is None else parse_range(params, "params"), check_rule(rule))


def resources(table: CostTable, limits: Limits, loose: Sequence[Step] = ()) -> tuple[list[Step], Resource, Resource]:
    """The steps of the table and then the `loose` ones, which cost nothing, with both resources along them."""
    steps, free = [*table.steps, *loose], [np.zeros(step.fan, np.int64) for step in loose]
    flops, params = (
        resource(steps, [*table.weights(name), *free], low - getattr(table.fixed, name), high - getattr(table.fixed, name))
        for name, (low, high) in (("flops", limits.flops), ("params", limits.params)))
    return steps, flops, params


@lru_cache(maxsize=32)
def check_reachable(space: Space, limits: Limits) -> None:
    """Raise UserError that names the reachable range when no architecture can be inside the limits, of one cost or of both."""
    ranges = reachable(cost_table(space, limits.rule))
    for name, (low, high), (least, most) in zip(("FLOPs", "params"), (limits.flops, limits.params), ranges, strict=True):
        if low > most or high < least:
            raise UserError(
                f"no architecture of '{space.name}' has {name} in {human(low)}:{human(high)}; "
                f"reachable is {human(least)}:{human(most)}, exactly {least:,} to {most:,} (rule {limits.rule})"
            )
    table = cost_table(space, limits.rule)
    for reach in reaches(*resources(table, limits)):
        end = float(reach.of(0, START)[0])
        if reach.sign * end < reach.goal:
            own, other = ("FLOPs", "params") if reach.name == "flops" else ("params", "FLOPs")
            bound = "most" if reach.sign > 0 else "least"
            raise UserError(f"no architecture of '{space.name}' meets {limits}: with these {other} it has at {bound} "
                            f"{human(end + getattr(table.fixed, reach.name))} {own} (rule {limits.rule})")


def sample_within(space: Space, limits: Limits, rng: np.random.Generator, count: int) -> list[Arch]:
    """Return `count` architectures drawn uniformly among those inside the limits.

    Method: draws from the exact distribution of the cost that is limited most (`oneshot_nas.costs.draw`); those whose other cost,
    or whose true cost where the grid is coarse, is outside are drawn again. After `DRAWS` draws in vain it gives up. A pure
    function of the generator's state.

    Raises: UserError that names the reachable range, or how many draws found nothing.
    """
    check_reachable(space, limits)
    table, window = cost_table(space, limits.rule), _narrowest(space, limits)
    found: list[Arch] = []
    drawn, size = 0, max(1, min(count, BATCH))
    while len(found) < count:
        indices = random_indices(space, rng, size)
        if window is not None:
            window.fill(rng, indices)
        accepted = indices[limits.inside(*table(indices))][: count - len(found)]
        found += [space.decode(row) for row in accepted.tolist()]
        drawn = 0 if len(accepted) else drawn + size
        if drawn >= DRAWS:
            least, most = reachable(table)[0]
            raise UserError(
                f"none of {drawn:,} draws from '{space.name}' met {limits}; reachable FLOPs are "
                f"{human(least)}:{human(most)} (rule {limits.rule}), widen the limits"
            )
        size = min(2 * size, BATCH)
    return found


def _narrowest(space: Space, limits: Limits) -> Window | None:
    """The architectures inside the limit that leaves fewer, None without limits. Raises: UserError when one leaves none."""
    windows = []
    for name, key, (low, high) in (("FLOPs", "flops", limits.flops), ("params", "params", limits.params)):
        if (low, high) != ANY:
            window = count_within(space, limits.rule, key, low, high)
            if not window.count:
                least, most = reachable(cost_table(space, limits.rule))[key == "params"]
                raise UserError(f"no architecture of '{space.name}' has {name} from {low:,.0f} to {high:,.0f}, a gap between "
                                f"the values it can have, which go from {least:,} to {most:,} (rule {limits.rule}); widen the "
                                "limits")
            windows.append(window)
    return min(windows, key=lambda window: window.count, default=None)
