"""Trains a network, or the Single Path One-Shot supernet, with GluonCV's flags: the same engine as `oneshot-nas train`.

Example: python train_imagenet.py --model oneshot --use-rec --rec-train train.rec --rec-val val.rec --num-epochs 240
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes time to load
    from oneshot_nas.interrupts import leave, quiet_interrupts

    quiet_interrupts()

from collections.abc import Sequence

from oneshot_nas.cli.main import exit_code
from oneshot_nas.threads import import_mxnet
from oneshot_nas.train.flag_parser import arguments


def main(words: Sequence[str] | None = None) -> int:
    """Train what the flags say. Returns the exit code; see `oneshot_nas.cli.main`."""

    def work() -> None:
        args = arguments(words)
        import_mxnet()

        from oneshot_nas.train.flags import run

        run(args)

    return exit_code(work)


if __name__ == "__main__":
    leave(main())
