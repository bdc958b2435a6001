"""Progress of long work: a bar on a terminal, a log line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
QUIET_SECONDS = 30.0


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "item") -> Iterator[T]:
    """Yield `items` while showing progress on stderr.

    On a terminal it is a bar with rate and remaining time; elsewhere one line every 30 seconds, so that logs stay short.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=unit, leave=False, dynamic_ncols=True)
        return
    last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= QUIET_SECONDS:
            last = now
            print(f"{what}: {unit} {count}{f' of {total}' if total else ''}", file=sys.stderr, flush=True)
