"""Ctrl-C that is never lost: Python drops a KeyboardInterrupt that arrives while an object is being finalised."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer, main_thread
from typing import Any

AGAIN_SECONDS = 0.01


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Within it, Ctrl-C that struck where Python can only ignore exceptions is raised again a moment later.

    Such places are ``__del__`` and callbacks from C. MXNet frees every array in a ``__del__``, thousands a second in training:
    now and then a Ctrl-C arrives in one, Python prints "Exception ignored in", and the work would go on.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        again = Timer(AGAIN_SECONDS, signal.pthread_kill, (main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
