"""The program `oneshot-nas`, also started by `python -m oneshot_nas`."""

import sys

from oneshot_nas.interrupts import leave, quiet_interrupts


def main() -> None:
    """Run the command line of this process and exit."""
    quiet_interrupts()  # before all that takes time to load
    from oneshot_nas.cli.main import run
    from oneshot_nas.threads import prepare_process

    prepare_process()
    leave(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
