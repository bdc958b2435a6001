"""What commands that use a supernet, or another run, say about it."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def tell_unfinished(folder: str) -> None:
    """Warn on stderr when the training of a run is not at its end; what is no run is left to whoever opens it."""
    from oneshot_nas.config import RunFolder, read_recipe
    from oneshot_nas.errors import UserError
    from oneshot_nas.train.checkpoint import read_latest

    run = RunFolder(folder)
    try:
        done, wanted = read_latest(run.checkpoint)["epoch"], read_recipe(run.config).epochs
    except UserError:
        return
    if isinstance(done, int) and done < wanted:
        state = f"has {done} of its {wanted} epochs behind it" if done else "has not been trained yet, its weights are random"
        print(f"warning: the {'supernet' if run.supernet.exists() else 'network'} in {folder} {state}", file=sys.stderr)


def tell_useless(scores: Mapping[str, float], run: str) -> None:
    """Warn on stderr when a network of a run classified not one image rightly."""
    if scores.get("top1") == 0:
        print("warning: not one image was classified rightly, as with weights that are zero or hardly trained, or outputs that "
              f"are not finite; look at the training of {run}", file=sys.stderr)
