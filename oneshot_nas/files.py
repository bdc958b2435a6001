"""Files that survive a kill at any moment and that know what they are.

Every file is written beside its target and moved over it in one step. Every JSON document carries ``kind`` and
``version``; a ``.params`` file stays a plain ``save_parameters`` file and carries them in ``<name>.params.json``.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.values import cut

VERSION = 1
# What NumPy and zipfile raise for a damaged .npz.
BROKEN_NPZ = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError, SyntaxError,
              zipfile.BadZipFile, zlib.error)
MAX_JSON_BYTES = 64 * 2**20
LOCK = ".lock"  # of a folder that one process works in


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
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> UserError | WorkError:
    """What to say of a path that cannot be written."""
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        return UserError(f"cannot write {path}: a part of it is a file, or all of it a folder; give another")
    return WorkError(f"cannot write {path}: {error.strerror or error}; the previous file, if any, is unchanged")


@contextmanager
def staged(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; when the block succeeds its files take the places of those of the same names.

    Raises: UserError, WorkError as `atomic_path`.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".staged-", dir=folder) as temporary:
            yield Path(temporary)
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, os.path.realpath(folder / path.name))
    except OSError as error:
        raise _refused(folder, error) from error


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder, which is made where there is none, for this process; the lock goes with the process, also after a kill.

    Raises: UserError that says `busy` when another process holds it, or that it cannot be made.
    """
    import portalocker  # here: it takes longer to load than all else that short commands need

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / LOCK, "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"cannot use folder {folder}: {error.strerror or error}") from None
    with handle:
        try:
            portalocker.lock(handle, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException:
            raise UserError(busy) from None
        yield


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
        (twice, _), = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key '{cut(twice)}' is given twice")
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


def read_json(path: str | os.PathLike, *kinds: str) -> dict[str, Any]:
    """Return the JSON document at `path`, of one of these `kinds`, and refuse any other by name. Raises: UserError."""
    content = parse_json(read_text(path, kinds[0]), str(path))
    check_kind(content, str(path), *kinds)
    return content


def check_kind(content: Any, source: str, *kinds: str) -> None:
    """Raise UserError unless `content` is a mapping of one of these `kinds` and a version that can be read."""
    expected = " or ".join(f"'{kind}'" for kind in kinds)
    if not isinstance(content, dict):
        raise UserError(f"{source} holds a JSON {type(content).__name__}, expected an object of kind {expected}")
    found = content.get("kind")
    if found not in kinds:
        raise UserError(f"{source} {'says no kind' if found is None else f'is of kind {found!r}'}, expected {expected}")
    if content.get("version") != VERSION:
        raise UserError(f"{source} has version {content.get('version')}; this release reads version {VERSION}")


def write_params(path: str | os.PathLike, kind: str, save: Callable[[str], None], about: dict[str, Any]) -> None:
    """Write a parameter file through `save(path)` and its description ``<path>.json``.

    The description is replaced once the weights are written, and before they take their place.
    """
    with atomic_path(path) as temporary:
        save(str(temporary))
        write_json(f"{path}.json", kind, about)


def read_params_about(path: str | os.PathLike, *kinds: str) -> dict[str, Any] | None:
    """Return the description beside a parameter file of one of these `kinds`, None when there is none (a plain Gluon file).

    Raises: UserError when the file is missing or its description is of another kind.
    """
    if not Path(path).is_file():
        raise UserError(f"no parameter file at {path}")
    about = Path(f"{path}.json")
    return read_json(about, *kinds) if about.is_file() else None
