"""Where a search history is kept: Optuna storages by URL, opened with errors that say what is wrong."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.files import as_json

STUDY = "search"
ATTRIBUTE = "oneshot_nas"  # the study attribute that holds the fingerprint
TABLES = frozenset({"studies", "trials", "version_info", "alembic_version"})
LOCK_SECONDS = 60.0  # how long SQLite waits for another writer
DIFFERENCES_SHOWN = 5


def sqlite_url(path: str | Path) -> str:
    """The storage URL of an SQLite file, absolute."""
    return f"sqlite:///{Path(path).absolute()}"


def absolute_url(url: str) -> str:
    """`url` with a relative SQLite path made absolute, so that it means the same from every directory.

    Raises: UserError for text that is no database URL.
    """
    path = _sqlite_path(url)
    return url if path is None else sqlite_url(path)


def masked(url: str) -> str:
    """`url` without its password, fit for files."""
    return url if _sqlite_path(url) is not None else make_url(url).render_as_string(hide_password=True)


def shown(url: str) -> str:
    """Where `url` leads, fit for messages: the path of an SQLite file, otherwise the URL without its password."""
    path = _sqlite_path(url)
    return masked(url) if path is None else str(path)


def _sqlite_path(url: str) -> Path | None:
    if url.startswith("sqlite:///") and not url.startswith("sqlite:///:memory:"):
        return Path(url.removeprefix("sqlite:///"))
    try:
        parsed = make_url(url)
    except SQLAlchemyError:
        raise UserError(f"storage '{url[:200]}' is not a database URL, such as sqlite:///study.db "
                        "or postgresql://user@host/name") from None
    if parsed.get_backend_name() != "sqlite":
        return None
    if parsed.database in (None, "", ":memory:"):
        raise UserError(f"storage '{url}' lives in memory only; give sqlite:///FILE or the URL of a database server")
    return Path(parsed.database)


def open_storage(url: str, create: bool = False, one_machine: bool = False) -> BaseStorage:
    """Return the Optuna storage at `url`; without `create` it must be there and nothing in it is changed.

    `one_machine` promises that all processes that use an SQLite file run on one machine. It then keeps a write-ahead log,
    which spares most of the waiting but must never be shared over a network: a killed process loses nothing, a power
    failure at most the last candidates, which are then evaluated again.

    Raises: UserError when it is missing, is not an Optuna storage of this version, or cannot be reached; WorkError when the
    disk is full.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = _sqlite_path(url)
    engine: dict[str, Any] = {}
    if path is not None:
        _check_sqlite(path, create)
        engine["creator"] = partial(_connect, path, create, create and one_machine)
    for attempt in range(5):
        try:
            address = url if path is None else "sqlite:///study.db"  # names the dialect only: `creator` knows the path
            return get_storage(RDBStorage(address, engine_kwargs=engine, skip_table_creation=not create))
        except (SQLAlchemyError, StorageInternalError) as error:
            raced = isinstance(error, IntegrityError) or "already exists" in str(error)  # another process makes the tables, too
            if attempt == 4 or not create or not raced:
                reason = _reason(error)
                kind = WorkError if "disk is full" in reason else UserError
                raise kind(f"cannot use {shown(url)} as a search history: {reason}") from None
            time.sleep(0.2 * (attempt + 1))
        except (ImportError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot use {shown(url)} as a search history: {error}") from None
    raise AssertionError("unreachable")


def _log_of(path: Path) -> Path:
    """SQLite's write-ahead log."""
    return Path(f"{path}-wal")


def _holds_more(log: Path) -> bool:
    """Whether the log has what the database file itself has not."""
    return log.exists() and log.stat().st_size > 0


def _connect(path: Path, create: bool = False, ahead: bool = False) -> sqlite3.Connection:
    """A connection to an SQLite file of any name; without `create` none is made, and one in a read-only archive can be read."""
    archived = "ro" if _holds_more(_log_of(path)) else "ro&immutable=1"  # "immutable" would leave the log out
    mode = "rwc" if create else "rw" if os.access(path.parent, os.W_OK) else archived
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, check_same_thread=False)
    if ahead:  # where the write-ahead log is refused the usual journal works, too
        connection.execute("pragma journal_mode=wal").close()
        connection.execute("pragma synchronous=normal").close()
    return connection


def _check_sqlite(path: Path, create: bool) -> None:
    if not path.exists():
        if not create:
            raise UserError(f"there is no search history at {path}; `oneshot-nas search` makes one")
        if not path.parent.is_dir():
            raise UserError(f"cannot make the search history {path}: its folder does not exist")
        return
    log = _log_of(path)
    if not os.access(path.parent, os.W_OK) and _holds_more(log) and not Path(f"{path}-shm").exists():
        raise UserError(f"{path} cannot be read together with {log.name} in a folder that may not be written; copy both files to "
                        "another folder")
    try:
        with closing(_connect(path)) as database:
            tables = {row[0] for row in database.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.Error as error:
        raise UserError(f"{path} is not a search history: {error}; remove it or give another --out or --storage") from None
    if (tables and not tables & TABLES) or (not tables and not create):
        raise UserError(f"{path} is an SQLite file but not a search history (no Optuna study in it); "
                        "give another --out or --storage")


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "orig", None) or error)
    return " ".join(text.split())[:200]


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn the database's errors into one sentence. Raises: WorkError."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, json.JSONDecodeError) as error:
        raise WorkError(f"the search history in {where} failed: {_reason(error)}; what was saved before is kept") from None


def find_study(storage: BaseStorage, name: str, where: str) -> tuple[int, dict[str, Any]]:
    """Return (study id, fingerprint) of a study that `oneshot-nas search` made. Raises: UserError."""
    with storage_errors(where):
        known = {study.study_name: study._study_id for study in storage.get_all_studies()}
        if name not in known:
            raise UserError(f"{where} holds no study '{name}'; it holds {sorted(known)}, choose with --study")
        about = storage.get_study_user_attrs(known[name]).get(ATTRIBUTE)
    if not isinstance(about, dict):
        raise UserError(f"study '{name}' in {where} was not made by oneshot-nas search; give another --study")
    return known[name], about


def claim_study(storage: BaseStorage, name: str, where: str, fingerprint: Mapping[str, Any], directions: Sequence[str]) -> int:
    """Return the id of the study of this search, made when it is not there.

    Raises: UserError when the study of that name belongs to another search; it names the differences.
    """
    wanted = as_json(fingerprint)
    wanted_directions = [StudyDirection[direction.upper()] for direction in directions]
    with storage_errors(where):
        study = optuna.create_study(storage=storage, study_name=name, directions=wanted_directions, load_if_exists=True)
        number = storage.get_study_id_from_name(study.study_name)
        if ATTRIBUTE not in storage.get_study_user_attrs(number) and not storage.get_all_trials(number, deepcopy=False):
            storage.set_study_user_attr(number, ATTRIBUTE, wanted)
    number, found = find_study(storage, name, where)
    if found != wanted:
        raise UserError(f"study '{name}' in {where} belongs to another search ({differences(found, wanted)}); "
                        "repeat that search's arguments to go on with it, or give another --out or --study")
    with storage_errors(where):
        made = storage.get_study_directions(number)
    if made != wanted_directions:
        raise UserError(f"study '{name}' in {where} optimises in other directions; give another --study")
    return number


def differences(before: Any, after: Any, prefix: str = "") -> str:
    """What differs between two JSON values, as 'key: old -> new', the first few."""
    found = list(_differences(before, after, prefix))
    more = [f"and {len(found) - DIFFERENCES_SHOWN} more"] if len(found) > DIFFERENCES_SHOWN else []
    return "; ".join(found[:DIFFERENCES_SHOWN] + more)


def _differences(before: Any, after: Any, prefix: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif before != after:
        yield f"{prefix}: {str(before)[:80]} -> {str(after)[:80]}"


