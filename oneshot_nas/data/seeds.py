"""Orders and seeds as pure functions of counters, the same for every version of numpy and Python.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) in plain 64-bit arithmetic.
"""

from __future__ import annotations

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def keys(positions: np.ndarray, seed: int) -> np.ndarray:
    """Return output number `position` of the stream `seed`, uint64; the seed is mixed first, so seeds 0 and 1 are unrelated."""
    start = _mix(np.array([seed & MASK], np.uint64))[0]
    with np.errstate(over="ignore"):
        return _mix(start + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA))


def by_key(positions: np.ndarray, seed: int) -> np.ndarray:
    """Return `positions` in the order of their keys."""
    return positions[np.argsort(keys(positions, seed), kind="stable")]


def derive_seed(seed: int, *counters: int) -> int:
    """Return a seed of 30 bits for (seed, counters): other counters give an unrelated stream."""
    mixed = seed
    for counter in counters:
        mixed = int(keys(np.array([counter]), mixed)[0])
    return mixed >> 34


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return 0 ... count - 1 in an order that is a function of (seed, epoch), int64."""
    return by_key(np.arange(count), derive_seed(seed, epoch))


def _mix(state: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
