"""What commands that use a supernet say about it first."""

from __future__ import annotations

import sys


def tell_unfinished(folder: str) -> None:
    """Warn on stderr when the training of a supernet is not at its end; what is no supernet is left to whoever opens it."""
    from oneshot_nas.errors import UserError
    from oneshot_nas.train.runs import open_supernet

    try:
        run = open_supernet(folder)
    except UserError:
        return
    done, wanted = run.about.get("epoch"), run.recipe.epochs
    if isinstance(done, int) and done < wanted:
        state = f"has {done} of its {wanted} epochs behind it" if done else "has not been trained yet, its weights are random"
        print(f"warning: the supernet in {folder} {state}", file=sys.stderr)
