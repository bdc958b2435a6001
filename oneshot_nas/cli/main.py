"""`oneshot-nas`: finds its commands by file name, imports only the one that is called, and turns failures into one line.

A command is a module of this package whose docstring starts with one line about it. It defines ``command``, a function
with typer annotations, or ``app``, a typer group of several.

Exit codes: 0 success, 2 wrong use or bad input, 1 a failure while working, 130 interrupted.
"""

from __future__ import annotations

import ast
import difflib
import errno
import importlib
import os
import pkgutil
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.interrupts import kept_interrupts
from oneshot_nas.later import check_later, later

PROGRAM = "oneshot-nas"
UsageError: Any = typer.BadParameter.__base__  # typer has no public name for it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Commands(TyperGroup):
    """The group of all commands; a command's module is imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the command modules, sorted."""
        return command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name. Raises: UserError with the nearest names."""
        if cmd_name not in command_names():
            check_later(cmd_name, f"there is {', '.join(command_names())}")
            near = difflib.get_close_matches(cmd_name, command_names()) or command_names()
            raise UserError(f"no command '{cmd_name}'; there is {', '.join(near)}; see: {PROGRAM} --help")
        module = importlib.import_module(f"oneshot_nas.cli.{cmd_name}")
        if hasattr(module, "app"):
            module.app.rich_markup_mode = None
            return typer.main.get_group(module.app)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(module.command)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with the first line of its module, read without importing it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in command_names()])


app = typer.Typer(
    cls=Commands, add_completion=False, rich_markup_mode=None, no_args_is_help=True,
    epilog=f"Example: {PROGRAM} sample spos_shufflenet -n 3 --flops 290M:330M | {PROGRAM} cost - --json",
)


def _version(wanted: bool) -> None:
    if wanted:
        from oneshot_nas import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """One-shot neural architecture search on MXNet Gluon: supernets, search, fixed networks, export."""


def command_names() -> list[str]:
    """Names of all commands, sorted."""
    return sorted(found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name != "main"
                  and not found.name.startswith("_"))


def summary(name: str) -> str:
    """What the command does: the first line of its module after ``NAME:``."""
    text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))) or ""
    line = text.partition("\n")[0]
    return (line.partition(": ")[2] or line).replace("`", "")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; see the module."""

    def work() -> None:
        root = typer.main.get_command(app)
        with root.make_context(PROGRAM, list(arguments)) as context:
            root.invoke(context)

    return exit_code(work)


def exit_code(work: Callable[[], None]) -> int:
    """Call `work` and return its exit code; a failure is told in one line on stderr.

    The environment variable ONESHOT_NAS_TRACEBACK=1 shows where it happened as well.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    try:
        with kept_interrupts():
            work()
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _tell("; ".join(("interrupted", *map(str, stop.args))), 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            progress, results = _unread(sys.stderr), _unread(sys.stdout)
            if progress or results:  # `head`, the reader of results, has seen enough; without progress, work ended half done
                return int(progress)
        if os.environ.get("ONESHOT_NAS_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        return _tell(*_sentence(error))


def _unread(stream: Any) -> bool:
    """Whether `stream` is a pipe whose reader has gone; then it leads nowhere from now on."""
    try:
        number, poll = stream.fileno(), select.poll()
    except (OSError, ValueError):  # no file
        return False
    poll.register(number, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return gone


def _sentence(error: Exception) -> tuple[str, int]:
    """What went wrong in one line, and the exit code."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, UsageError):
        return _usage(error), 2
    if isinstance(error, WorkError):
        return f"error: {error}", 1
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" ({error.filename})" if error.filename else " (that of standard output, or of the files of a run)"
        return f"error: the disk is full{where}; free some space, what was saved before is kept", 1
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    name = type(error).__name__
    if name == "MXNetError":  # a C++ stack comes before the line that says what is wrong
        lines = [line for line in lines if "Error: " in line or "Check failed" in line] or lines
    return f"error: {name}: {lines[0].removeprefix(f'{name}: ')[:500]}; ONESHOT_NAS_TRACEBACK=1 shows where it happened", 1


def _usage(error: Any) -> str:
    path = error.ctx.command_path if error.ctx else PROGRAM
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.ctx.get_help())
        message = "no command given"
    else:
        message = " ".join(error.format_message().split()).rstrip(".")
    see = f"see: {path} --help"
    return f"error: {later(getattr(error, 'option_name', '').lstrip('-'), see) or f'{message}; {see}'}"


def _tell(line: str, code: int) -> int:
    print(" ".join(line.splitlines()), file=sys.stderr, flush=True)
    return code
