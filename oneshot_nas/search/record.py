"""The run folder of a search: config.yaml, which says what was searched and where its history is kept."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from oneshot_nas.config import KIND as RECIPE
from oneshot_nas.config import RunFolder, parse_yaml
from oneshot_nas.errors import UserError
from oneshot_nas.files import VERSION, check_kind, read_text, write_text
from oneshot_nas.search.history import History, read_history
from oneshot_nas.search.storage import STUDY, absolute_url, masked, sqlite_url
from oneshot_nas.search.task import EXACT

KIND = "search"
MASK = "***"
PATHS = ("supernet", "out", "base", "space", "predictor", "base_weights", "compare")  # arguments that name files and folders


def check_folder(run: RunFolder, storage: str | None, study: str, exact: bool = False) -> None:
    """Raise UserError when the run folder belongs to something else than this history, or this exact search."""
    written = run.config.exists()
    if (written or run.study.exists()) and (written and is_exact(run)) != exact:
        found = "a search with a history" if exact else "an exact search"
        raise UserError(f"{run.path} holds {found}; give another --out")
    if not written:
        return
    before = recorded(run)
    if before != (storage and masked(storage), study):
        raise UserError(f"{run.path} holds a search whose history is study '{before[1]}' in {before[0] or run.study}; "
                        "give the same --storage and --study to go on with it, or another --out")


def save_record(run: RunFolder, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write config.yaml, all arguments of the search and the command that repeats or resumes it; return the arguments written.

    Paths and the storage URL are made absolute, so that it works from any folder, and the URL's password is masked.
    """
    kept = record(arguments)
    words = [word for name, value in kept.items() if value is not None for word in (f"--{name.replace('_', '-')}", str(value))]
    content = {"kind": KIND, "version": VERSION, "command": shlex.join(["oneshot-nas", "search", *words]), "arguments": kept}
    write_text(run.config, yaml.safe_dump(content, sort_keys=False, width=120))
    return kept


def record(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as they are written: paths and the storage URL absolute, its password masked."""
    storage = arguments.get("storage")
    paths = {name: str(Path(arguments[name]).expanduser().absolute()) for name in PATHS if arguments.get(name)}
    return {**arguments, **paths, "storage": masked(absolute_url(storage)) if storage else None}


def read_record(run: RunFolder) -> dict[str, Any]:
    """The content of a search's config.yaml. Raises: UserError when the folder holds another kind of run."""
    content = parse_yaml(read_text(run.config, "search record"), str(run.config))
    if not isinstance(content, dict) or content.get("kind", RECIPE) == RECIPE:
        raise UserError(f"{run.path} holds a training run, not a search; give the --out of `oneshot-nas search`")
    check_kind(content, str(run.config), KIND)
    if not isinstance(content.get("arguments"), dict):
        raise UserError(f"{run.config} has no 'arguments'; it was changed by hand")
    return content


def recorded(run: RunFolder) -> tuple[str | None, str]:
    """Return (storage URL or None for the run folder's own, study name) of a search's config.yaml. Raises: UserError."""
    arguments = read_record(run)["arguments"]
    storage = arguments.get("storage")
    return storage and str(storage), str(arguments.get("study", STUDY))


def is_exact(run: RunFolder) -> bool:
    """Whether the folder holds an exact search. Raises: UserError."""
    return read_record(run)["arguments"].get("algorithm") == EXACT


def locate(folder: str | Path, storage: str | None = None, study: str | None = None) -> tuple[str, str]:
    """Return (storage URL, study name) of a search's run folder; what is given goes before what is recorded.

    Raises: UserError when the folder is no search, or its storage needs a password that is not recorded.
    """
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise UserError(f"there is no run folder {folder}; give the --out of `oneshot-nas search`")
    place, name = recorded(run) if run.config.exists() else (None, STUDY)
    if run.config.exists() and storage is None and is_exact(run):
        raise UserError(f"{folder} is an exact search, which keeps no candidates; its best, top and front are in {run.result}")
    if storage is None and place and MASK in place:
        raise UserError(f"the history of {folder} is in {place}, whose password is not recorded; "
                        "give --storage with the whole URL")
    return absolute_url(storage or place or sqlite_url(run.study)), study or name


def open_run(folder: str | Path, storage: str | None = None, study: str | None = None) -> History:
    """The history of a search's run folder, read and never changed. Raises: UserError."""
    return read_history(*locate(folder, storage, study))
