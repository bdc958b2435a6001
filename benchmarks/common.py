"""Timing two ways fairly: alternately, pair by pair, in one process; the median of the pair ratios is what counts."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oneshot_nas.threads import VARIABLES, prepare_process

prepare_process()  # as the commands do


def compare(ours: Callable[[int], Any], baseline: Callable[[int], Any], pairs: int, warmup: int = 2) -> dict[str, Any]:
    """Seconds of ``ours(i)`` and ``baseline(i)`` in turn, and the median of baseline / ours over the pairs."""
    for i in range(warmup):
        ours(i)
        baseline(i)
    times: list[tuple[float, float]] = []
    for i in range(pairs):
        start = time.perf_counter()
        ours(warmup + i)
        middle = time.perf_counter()
        baseline(warmup + i)
        times.append((middle - start, time.perf_counter() - middle))
    ratios = [b / a for a, b in times]
    return {"seconds": statistics.median(a for a, _ in times), "baseline_seconds": statistics.median(b for _, b in times),
            **spread(ratios)}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work` and how long it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def spread(ratios: Sequence[float]) -> dict[str, Any]:
    """Median, least and largest of the ratios of the pairs."""
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios), "pairs": len(ratios)}


def machine_rate(seconds: float = 2.0) -> float:
    """Multiply-adds a second that MXNet reaches in a plain 1x1 convolution of 256 channels: the floor's denominator."""
    import mxnet as mx

    x, weight = mx.nd.ones((32, 256, 28, 28)), mx.nd.ones((256, 256, 1, 1))
    macs = 32 * 28 * 28 * 256 * 256
    best, stop = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        mx.nd.Convolution(x, weight, kernel=(1, 1), num_filter=256, no_bias=True).wait_to_read()
        best = max(best, macs / (time.perf_counter() - start))
    return best


def resident() -> float:
    """Megabytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def no_options(about: str | None) -> None:
    """A command line without options: --help shows `about`, anything else is refused."""
    argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()


def report(name: str, **figures: Any) -> None:
    """Print one JSON object with the figures and the threads they were taken with."""
    threads = {key: os.environ.get(key) for key in (*VARIABLES, "ONESHOT_NAS_PLAIN")}
    print(json.dumps({"benchmark": name, **figures, "cores": os.cpu_count(), "threads": threads}, indent=1))
