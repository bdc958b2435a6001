"""What the C libraries that decode images say: they write to file descriptor 2, past Python."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# libjpeg goes on after these, with grey or shifted blocks; what else it and libpng say does not touch the pixels
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "libpng error")


@contextmanager
def library_messages() -> Iterator[Callable[[], str]]:
    """Keep file descriptor 2 to ourselves; yields a function that returns and forgets what was written to it.

    Python's own stderr, so a progress bar, goes where it went before. For the whole process: one user at a time.
    """
    ours = sys.stderr
    with tempfile.TemporaryFile() as caught, os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace") as shown:
        def said() -> str:
            caught.seek(0)
            text = caught.read().decode("utf-8", "replace")
            caught.seek(0)
            caught.truncate()
            return text

        with suppress(OSError, ValueError, AttributeError):  # a test's or a notebook's stderr has no descriptor
            if ours.fileno() == 2:
                sys.stderr = shown
        os.dup2(caught.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(shown.fileno(), 2)
            sys.stderr = ours


def damage(text: str) -> str | None:
    """The first message about damaged pixels, None when there is none."""
    return next((line.strip() for line in text.splitlines() if line.startswith(DAMAGE)), None)
