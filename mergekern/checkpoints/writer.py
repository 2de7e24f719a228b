"""Write a checkpoint like its base: names, shapes, dtypes, shards and metadata, whole or not at all.

Everything goes to a workspace beside the target, and its space is reserved first, so that a full disk is found before
anything is computed; it is flushed and renamed at the end. A run killed at any moment leaves what was there before, or,
while a folder is replaced, nothing. The bytes depend on the tensors and the record alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mergekern.checkpoints.layout import INDEX_FILE, Entry, Layout
from mergekern.checkpoints.records import RECORD_FILE, WRITTEN_KEY, as_json, check_target, record_path
from mergekern.errors import OutputError


class Writer:
    """Writes the tensors of a layout, in any order and in parts.

    Args:
        path: the file, or the folder, to be.
        plan: what is written.
        record: what is kept of how it was made; `seal` may change values of it, not their lengths as JSON.
        overwrite: whether what is there is replaced.
        place: a workspace on the same disk, which the caller removes.

    Attributes:
        path: as given.
        temporary: the file or folder in the workspace, until it is moved.

    Raises:
        OutputError: something is there already, or cannot be replaced; no space is left; no such folder.
    """

    def __init__(self, path: Path, plan: Layout, record: Mapping[str, Any], overwrite: bool, place: Path) -> None:
        check_target(path, plan.is_folder, overwrite)
        self.path, self._plan, self._place = path, plan, place
        self.temporary = self._aside()
        self._files: dict[str, Path] = {}
        self._starts: dict[str, int] = {}
        self._places: dict[str, tuple[str, int, Entry]] = {}
        with as_output_errors(path):
            if plan.others is not None:
                self.temporary.mkdir()
                _write_others(self.temporary, plan.others)
            for file, entries in plan.files.items():
                self._open(file, entries, record)

    def _aside(self) -> Path:
        """Return a new path in the workspace. The name of the target may be too long for one with more in it."""
        return self._place / uuid.uuid4().hex

    def _open(self, file: str, entries: tuple[Entry, ...], record: Mapping[str, Any]) -> None:
        header = self._plan.header(file, record)
        self._files[file] = self.temporary / file if self._plan.is_folder else self.temporary
        at = self._starts[file] = len(header)
        for entry in entries:
            self._places[entry.name] = (file, at, entry)
            at += entry.nbytes
        with _opened(self._files[file], os.O_CREAT | os.O_EXCL) as descriptor:
            os.posix_fallocate(descriptor, 0, at)
            os.ftruncate(descriptor, at)

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Write elements [start, start + len) of a flattened tensor, in its dtype; from any thread."""
        file, at, entry = self._places[name]
        if values.dtype != entry.dtype:
            raise ValueError(f"{name!r} is written as {entry.dtype}, not {values.dtype}")
        content = memoryview(values.contiguous().reshape(-1).view(torch.uint8).numpy())
        at += start * entry.dtype.itemsize
        with as_output_errors(self.path), _opened(self._files[file]) as descriptor:
            while content:
                done = os.pwrite(descriptor, content, at)
                content, at = content[done:], at + done

    def seal(self, record: Mapping[str, Any]) -> None:
        """Write the record and flush everything; after this, `move` needs no room on the disk."""
        with as_output_errors(self.path):
            for file, path in self._files.items():
                header = self._plan.header(file, record)
                if len(header) != self._starts[file]:
                    raise ValueError("the record's length changed")
                with _opened(path) as descriptor:
                    os.pwrite(descriptor, header, 0)
                    os.fsync(descriptor)
            if self._plan.index is not None:
                _write_flushed(self.temporary / INDEX_FILE, self._plan.index_file())
            if self._plan.is_folder:
                names = sorted({RECORD_FILE, *os.listdir(self.temporary)})
                record = {**record, WRITTEN_KEY: names}
            _write_flushed(self._record_aside, record_text(record))

    @property
    def _record_aside(self) -> Path:
        return self.temporary / RECORD_FILE if self._plan.is_folder else Path(f"{self.temporary}.json")

    def move(self) -> None:
        """Move everything into place."""
        with as_output_errors(self.path):
            if not self._plan.is_folder:
                # The record first: a merge is never without one, and one without a merge is replaced by the next run.
                self._record_aside.replace(record_path(self.path))
                self.temporary.replace(self.path)
                return
            if os.path.lexists(self.path):
                self.path.rename(self._aside())
            self.temporary.rename(self.path)


def record_text(record: Mapping[str, Any]) -> bytes:
    """Return the content of the file that holds a record."""
    return (as_json(record, indent=2) + "\n").encode()


def _write_others(folder: Path, others: Mapping[str, Path | bytes]) -> None:
    for name, content in others.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    # Opened for each write: merge_all writes more files at a time than a process may hold open.
    descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def as_output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}); nothing was changed there") from error
