"""Words between a person's shell and us: wrong use told in one line, and the next command as it works where it is typed."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from oneshot_nas.later import later

PROGRAM = "oneshot-nas"
PACKAGE = Path(__file__).resolve().parent
RECIPES = (PACKAGE.parent / "recipes", PACKAGE / "recipes")  # in a checkout, in an installed package


class Parser(argparse.ArgumentParser):
    """Reports wrong use in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        see = f"see: {self.prog} --help"
        named = re.findall(r"--([\w-]+)" if message.startswith("unrecognized") else r"choice: '([\w-]+)'", message)
        told = next((told for word in named if (told := later(word, see))), f"{' '.join(message.split())}; {see}")
        self.exit(2, f"error: {told}\n")


def program() -> str:
    """How this environment's `oneshot-nas` is called from a shell here: by name when the shell finds it, else by its path."""
    here, found = Path(sys.executable).parent / PROGRAM, shutil.which(PROGRAM)
    ours = found is not None and os.path.exists(here) and os.path.samefile(found, here)  # not that of another environment
    return near(here) if os.access(here, os.X_OK) and not ours else PROGRAM


def command(*words: str | int | os.PathLike) -> str:
    """One line for a shell: `program` with these words, quoted where they need it."""
    return shlex.join([program(), *map(str, words)])


def recipe(name: str) -> str:
    """The path of a recipe that comes with the toolkit. Raises: ValueError when there is none of that name."""
    for folder in RECIPES:
        if (folder / f"{name}.yaml").is_file():
            return near(folder / f"{name}.yaml")
    raise ValueError(f"no recipe '{name}' in {' or '.join(map(str, RECIPES))}")


def near(path: Path) -> str:
    """`path` from the current directory when it is inside, else as it is."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
