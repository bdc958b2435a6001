"""A search space as a file: the name of a space, its options, and the values that are left at every position."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from oneshot_nas.arch import Space, get_space
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json, write_json
from oneshot_nas.values import show

KIND = "space"
FREE = ("classes", "input_size")  # options that a data set decides; they change no choice


def space_json(space: Space) -> dict[str, Any]:
    """The content of a space file: {"space", "options", "allowed": {choice: one list per position}}."""
    return {"space": space.name, "options": dict(space.options),
            "allowed": {choice.name: [list(values) for values in choice.values] for choice in space.choices}}


def write_space(path: str | os.PathLike, space: Space) -> None:
    """Write a space file."""
    write_json(path, KIND, space_json(space))


def read_space(path: str | os.PathLike) -> Space:
    """Return the space in a file. Raises: UserError for another kind of file, a foreign value, or a position left empty."""
    content = read_json(path, KIND)
    try:
        allowed = _lists(content["allowed"])
        return get_space(content["space"], **content["options"]).restrict(allowed)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no space file ({error}); `oneshot-nas shrink` writes one as space.json") from None


def _lists(given: Any) -> dict[str, list[list[Any]]]:
    if not isinstance(given, dict) or not all(isinstance(lists, list) and all(isinstance(values, list) for values in lists)
                                              for lists in given.values()):
        raise TypeError("'allowed' must map each choice to one list of values per position")
    return given


def narrow(space: Space, path: str | os.PathLike) -> Space:
    """`space` with only the values that the space file also allows.

    Raises: UserError when the file is of another space or variant, or allows a value that `space` does not have.
    """
    given = read_space(path)
    check_options(given, space.name, space.options.items(), str(path))
    try:
        return space.restrict({choice.name: choice.values for choice in given.choices})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_options(given: Space, name: str, options: Iterable[tuple[str, Any]], source: str) -> None:
    """Raise UserError unless the space of a file has this name and these options; the data set's own are free."""
    if given.name != name:
        raise UserError(f"{source} is of space '{given.name}', expected '{name}'")
    for key, value in options:
        if key not in FREE and given.options.get(key) != (tuple(value) if isinstance(value, list) else value):
            raise UserError(f"{source} has option '{key}' = {show([given.options.get(key)])[1:-1]}, expected {value!r}")
