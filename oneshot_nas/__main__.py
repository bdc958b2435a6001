"""The program `oneshot-nas`, also started by `python -m oneshot_nas`."""

import os
import signal
import sys
from typing import Any


def main() -> None:
    """Run the command line of this process and exit; Ctrl-C while it loads or leaves shows no traceback either."""
    stops = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # in the background of a script it is ignored
    if stops:
        signal.signal(signal.SIGINT, _leave)
    from oneshot_nas.cli.main import run
    from oneshot_nas.threads import prepare_process

    prepare_process()
    if stops:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
    if stops:
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))  # everything is done and told
    sys.exit(code)


def _leave(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
