"""`oneshot-nas dashboard`: the web view of a search (optuna-dashboard)."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Run folder of a search.", metavar="RUN2")],
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    storage: Annotated[str | None, typer.Option(help="Database URL, when RUN2 does not tell it.", metavar="URL")] = None,
) -> None:
    """Show the history and the Pareto front of a search in a web browser until Ctrl-C.

    Example:  oneshot-nas dashboard runs/search --port 8080
    """
    import socket
    import sys

    from oneshot_nas.errors import INSTALL_EXTRA, UserError
    from oneshot_nas.search.record import locate
    from oneshot_nas.search.storage import find_study, open_storage, shown

    try:
        from optuna_dashboard import run_server
    except ImportError as error:
        raise UserError(f"the web view needs optuna-dashboard ({error}); {INSTALL_EXTRA.format('dashboard')} adds it") from None
    url, study = locate(run, storage)
    opened = open_storage(url)
    number, _ = find_study(opened, study, shown(url))
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]  # what follows repeats the address
        raise UserError(f"cannot listen on {host}:{port}: {reason}; give another --port or --host") from None
    print(f"http://{host}:{port}/dashboard/studies/{number} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    run_server(opened, host=host, port=port)
    raise KeyboardInterrupt  # the server keeps it to itself, and ends for nothing else
