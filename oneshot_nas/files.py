"""Files that survive a kill at any moment and that know what they are.

Every file is written beside its target and moved over it in one step. Every JSON document carries ``kind`` and
``version``; a ``.params`` file stays a plain ``save_parameters`` file and carries them in ``<name>.params.json``.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from oneshot_nas.errors import UserError, WorkError

VERSION = 1
# What NumPy and zipfile raise for a damaged .npz.
BROKEN_NPZ = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError, SyntaxError,
              zipfile.BadZipFile, zlib.error)
MAX_JSON_BYTES = 64 * 2**20


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; when the block succeeds it replaces `path` atomically.

    A failure (disk full included) leaves the previous file as it was and removes the temporary one.

    A link stays one: what it leads to is replaced.

    Raises: UserError when the path cannot be one of a file, WorkError when the file system refuses the write.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"cannot write {path}: it is a device or a pipe, no file; give another")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
            raise UserError(f"cannot write {path}: a part of it is a file, or all of it a folder; give another") from error
        raise WorkError(f"cannot write {path}: {error.strerror or error}; the previous file, if any, is unchanged") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, kind: str, content: dict[str, Any]) -> None:
    """Write `content` as an indented JSON document that carries its kind and version."""
    write_text(path, json.dumps({"kind": kind, "version": VERSION, **content}, indent=1) + "\n")


def as_json(value: Any) -> Any:
    """`value` as a JSON file gives it back: lists in place of tuples."""
    return json.loads(json.dumps(value))


def parse_json(text: str, source: str) -> Any:
    """Return the value of the JSON `text`; `source` names it in the error. Raises: UserError."""
    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not valid JSON: {error}") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; JSON's own reader lets the last of equal keys win in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"key '{twice}' is given twice")
    return content


def read_text(path: str | os.PathLike, what: str = "file") -> str:
    """Return the text of a file of at most 64 MiB. Raises: UserError that names `what` and the path."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{what} {path} is larger than {MAX_JSON_BYTES >> 20} MiB; this is not such a file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text") from error


def read_json(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Return the JSON document at `path` and refuse any other kind by name. Raises: UserError."""
    content = parse_json(read_text(path, kind), str(path))
    check_kind(content, kind, str(path))
    return content


def check_kind(content: Any, kind: str, source: str) -> None:
    """Raise UserError unless `content` is a mapping of this `kind` and a version that can be read."""
    if not isinstance(content, dict):
        raise UserError(f"{source} holds a JSON {type(content).__name__}, expected an object of kind '{kind}'")
    found = content.get("kind")
    if found != kind:
        raise UserError(f"{source} {'says no kind' if found is None else f'is of kind {found!r}'}, expected '{kind}'")
    if content.get("version") != VERSION:
        raise UserError(f"{source} has version {content.get('version')}; this release reads version {VERSION}")


def write_params(path: str | os.PathLike, kind: str, save: Callable[[str], None], about: dict[str, Any]) -> None:
    """Write a parameter file through `save(path)` and its description ``<path>.json``.

    The description is replaced once the weights are written, and before they take their place.
    """
    with atomic_path(path) as temporary:
        save(str(temporary))
        write_json(f"{path}.json", kind, about)


def read_params_about(path: str | os.PathLike, kind: str) -> dict[str, Any] | None:
    """Return the description beside a parameter file, None when there is none (a plain Gluon file).

    Raises: UserError when the file is missing or its description is of another kind.
    """
    if not Path(path).is_file():
        raise UserError(f"no parameter file at {path}")
    about = Path(f"{path}.json")
    return read_json(about, kind) if about.is_file() else None
