"""The run folder of a search: config.yaml, which says what was searched and where its history is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from oneshot_nas.config import RunFolder, parse_yaml
from oneshot_nas.errors import UserError
from oneshot_nas.files import VERSION, check_kind, read_text, write_text
from oneshot_nas.search.history import History, read_history
from oneshot_nas.search.storage import STUDY, absolute_url, masked, sqlite_url

KIND = "search"
MASK = "***"


def check_folder(run: RunFolder, storage: str | None, study: str) -> None:
    """Raise UserError when the run folder belongs to something else than this history."""
    if not run.config.exists():
        return
    record = read_record(run)
    before = record.get("storage"), record.get("study", STUDY)
    if before != (storage and masked(storage), study):
        raise UserError(f"{run.path} holds a search whose history is study '{before[1]}' in {before[0] or run.study}; "
                        "give the same --storage and --study to go on with it, or another --out")


def save_record(run: RunFolder, command: str, arguments: Mapping[str, Any], storage: str | None, study: str) -> None:
    """Write config.yaml: the command that repeats or resumes the search, all its arguments, and where its history is.

    A password in a storage URL is masked.
    """
    content = {"kind": KIND, "version": VERSION, "command": command, "storage": storage and masked(storage), "study": study,
               "arguments": dict(arguments)}
    write_text(run.config, yaml.safe_dump(content, sort_keys=False, width=120))


def read_record(run: RunFolder) -> dict[str, Any]:
    """The content of a search's config.yaml. Raises: UserError when the folder holds another kind of run."""
    content = parse_yaml(read_text(run.config, "search record"), str(run.config))
    if not isinstance(content, dict) or "kind" not in content:
        raise UserError(f"{run.path} holds a training run, not a search; give the --out of `oneshot-nas search`")
    check_kind(content, KIND, str(run.config))
    return content


def locate(folder: str | Path, storage: str | None = None, study: str | None = None) -> tuple[str, str]:
    """Return (storage URL, study name) of a search's run folder; what is given goes before what is recorded.

    Raises: UserError when the folder is no search, or its storage needs a password that is not recorded.
    """
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise UserError(f"there is no run folder {folder}; give the --out of `oneshot-nas search`")
    record = read_record(run) if run.config.exists() else {}
    recorded = record.get("storage")
    if storage is None and recorded and MASK in recorded:
        raise UserError(f"the history of {folder} is in {recorded}, whose password is not recorded; "
                        "give --storage with the whole URL")
    if storage is None:
        storage = str(recorded) if recorded else sqlite_url(run.study)
    return absolute_url(storage), study or str(record.get("study", STUDY))


def open_run(folder: str | Path, storage: str | None = None, study: str | None = None) -> History:
    """The history of a search's run folder, read and never changed. Raises: UserError."""
    return read_history(*locate(folder, storage, study))
