"""The record of how a checkpoint was made, which lies in it and beside it; and whether a checkpoint may be written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mergekern._internal.text import listed
from mergekern.errors import OutputError

METADATA_KEY = "mergekern"
RECORD_FILE = "mergekern.json"
# In the record of a folder: the names of what was written there.
WRITTEN_KEY = "files"
# What every record has, by which it is told from other files of its name.
_KEYS = frozenset({"version", "method", "base", "models"})
_MINE = "only what mergekern wrote is replaced"


def as_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """Return a record as it is written."""
    return json.dumps(record, indent=indent, ensure_ascii=True)


def record_path(path: Path) -> Path:
    """Return where the record of a merged checkpoint lies.

    >>> record_path(Path("merged.safetensors")).name
    'merged.mergekern.json'
    """
    return path / RECORD_FILE if path.suffix != ".safetensors" else path.with_suffix(f".{RECORD_FILE}")


def is_merged(path: Path) -> bool:
    """Tell whether mergekern wrote what is at a path: a .safetensors file or a folder."""
    if path.is_dir():
        return _is_record_file(path / RECORD_FILE)
    try:
        with safe_open(path, "np") as file:
            return _is_record((file.metadata() or {}).get(METADATA_KEY, ""))
    except (OSError, SafetensorError):
        return False


def check_target(path: Path, is_folder: bool, overwrite: bool) -> None:
    """Raise OutputError unless a checkpoint may be written here."""
    if not is_folder and path.suffix != ".safetensors":
        raise OutputError(f"{path}: a merged checkpoint is a .safetensors file, like its base; give such a name")
    if not Path(os.path.abspath(path)).parent.is_dir():
        raise OutputError(f"{path}: the folder it is to lie in does not exist")
    beside = record_path(path)
    if not is_folder and os.path.lexists(beside) and not _is_record_file(beside):
        raise OutputError(f"{beside}: is there, and the record of {path.name} would replace it; {_MINE}")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputError(f"{path}: is there already; pass overwrite=True (--overwrite) to replace it")
    is_empty = path.is_dir() and not any(path.iterdir())
    if is_folder and not is_empty and not is_merged(path):
        raise OutputError(f"{path}: is there and holds no {RECORD_FILE} of a merge; {_MINE}")
    if is_folder and (added := _added(path)):
        raise OutputError(f"{path}: holds {listed(added)}, which mergekern did not write; move that away first")
    if not is_folder and not path.is_file():
        raise OutputError(f"{path}: is a folder, and a file is to be written; give another name")
    if not is_folder and not is_merged(path):
        raise OutputError(f"{path}: is there and holds no record of a merge; {_MINE}")


def _added(folder: Path) -> list[str]:
    """Return what somebody else added to the folder of a merge; records of older versions do not tell."""
    try:
        written = json.loads((folder / RECORD_FILE).read_text("utf-8")).get(WRITTEN_KEY)
    except FileNotFoundError:
        return []
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return [] if written is None else [name for name in names if name not in written]


def check_name(path: Path) -> None:
    """Raise OutputError where a file system cannot hold the name of a checkpoint to be, or of its record."""
    parents = Path(os.path.abspath(path)).parents
    try:
        there = next(parent for parent in parents if parent.is_dir())
        for each in (path, record_path(path)):
            # The second place for where the folder is yet to be made.
            for place in (each, there / each.name):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.lstat(place)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); give a shorter path") from error


def _is_record_file(path: Path) -> bool:
    try:
        return path.is_file() and _is_record(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False


def _is_record(text: str) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= _KEYS
