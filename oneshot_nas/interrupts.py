"""Ctrl-C that shows no traceback and is never lost, while a program loads, works and leaves.

A program calls `quiet_interrupts` first and `leave` last; its work runs within `kept_interrupts`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer, main_thread
from typing import Any, NoReturn

AGAIN_SECONDS = 0.01


def quiet_interrupts() -> None:
    """From now on Ctrl-C ends the process at once, with 130 and one word, unless the caller has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def leave(code: int) -> NoReturn:
    """Exit with this code, also on Ctrl-C: everything is done and told."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    sys.exit(code)


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Within it Ctrl-C is a KeyboardInterrupt; one that struck where Python can only ignore it is raised again a moment later.

    Such places are ``__del__`` and callbacks from C. MXNet frees every array in a ``__del__``, thousands a second in training:
    now and then a Ctrl-C arrives in one, Python prints "Exception ignored in", and the work would go on.
    """
    before, quiet = sys.unraisablehook, signal.getsignal(signal.SIGINT) is _interrupted

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        again = Timer(AGAIN_SECONDS, signal.pthread_kill, (main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        if quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        if quiet:
            signal.signal(signal.SIGINT, _interrupted)
        sys.unraisablehook = before
