"""Write a checkpoint like its base: names, shapes, dtypes, shards and metadata, whole or not at all.

Everything goes to a temporary file or folder beside the target, whose space is reserved first, so that a full disk is
found before anything is computed; it is flushed and renamed at the end. A run killed at any moment leaves what was
there before, or, while a folder is replaced, nothing. The bytes depend on the tensors and the record alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergekern._internal.files import write_atomically
from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.configuration import CONFIG, read_configuration, with_tying
from mergekern.checkpoints.dtypes import WRITTEN_NAMES
from mergekern.checkpoints.safetensors_file import SafetensorsFile
from mergekern.checkpoints.sharded import Sharded
from mergekern.checkpoints.sources import SUFFIXES
from mergekern.errors import OutputError

METADATA_KEY = "mergekern"
RECORD_FILE = "mergekern.json"
INDEX_FILE = "model.safetensors.index.json"
# Weights in other formats, which must not lie beside merged ones; everything else in a folder is copied.
_OTHER_WEIGHTS = (*SUFFIXES, ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".index.json")


@dataclass(frozen=True)
class Entry:
    """One tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """How tensors are spread over files.

    Attributes:
        files: the entries of each file, by file name.
        metadata: metadata of each file.
        folder: the base's folder where the result is a folder; its other files are copied.
        index: what a shard index says beside the places of tensors; None without an index.
        is_tied: whether config.json is to say that head and embedding are tied; None for what the base's says.
    """

    files: Mapping[str, tuple[Entry, ...]]
    metadata: Mapping[str, Mapping[str, str]]
    folder: Path | None = None
    index: Mapping[str, Any] | None = None
    is_tied: bool | None = None


def layout(
    base: Checkpoint,
    entries: Mapping[str, Entry],
    aliases: Mapping[str, str],
    folder: Path | None,
    is_tied: bool | None = None,
) -> Layout:
    """Return the layout of a checkpoint that is stored as its base is.

    Args:
        base: whose files are followed.
        entries: the tensors, by name, in the order in which they are to lie.
        aliases: tied names that are not stored -> those that are.
        folder: the base's folder, where the result is a folder too; else all tensors go to one file.
        is_tied: see `Layout`.
    """
    shards: Mapping[str, Checkpoint] = {"model.safetensors": base}
    homes = dict.fromkeys(entries, "model.safetensors")
    index = None
    if isinstance(base, Sharded) and folder is not None:
        shards = {_as_safetensors(file): shard for file, shard in base.shards.items()}
        homes = {name: _as_safetensors(base.shard_of(name)) for name in entries}
        index = _index_metadata(Path(base.source))
    metadata = {}
    for file, shard in shards.items():
        kept = shard.metadata if isinstance(shard, SafetensorsFile) else {}
        tied = {alias: name for alias, name in aliases.items() if homes[name] == file}
        # transformers refuses files without a format.
        metadata[file] = {"format": "pt"} | {k: v for k, v in kept.items() if k not in entries} | tied
    # Larger items first, as the library orders them: every tensor is then aligned to its dtype.
    by_size = sorted(entries.values(), key=lambda entry: -entry.dtype.itemsize)
    files = {file: tuple(e for e in by_size if homes[e.name] == file) for file in shards}
    return Layout(files, metadata, folder, index, is_tied)


def _as_safetensors(file: str) -> str:
    path = Path(file)
    return file if path.suffix == ".safetensors" else path.stem.replace("pytorch_model", "model") + ".safetensors"


def _index_metadata(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8")).get("metadata", {})
    return found if isinstance(found, dict) else {}


class Writer:
    """Writes the tensors of a layout, in any order and in parts.

    Args:
        path: the file, or the folder, to be.
        plan: what is written.
        record: what is kept of how it was made; `finish` may change values of it, not their lengths as JSON.
        overwrite: whether what is there is replaced.

    Raises:
        OutputError: something is there already, or cannot be replaced; no space is left; no such folder.
    """

    def __init__(self, path: Path, plan: Layout, record: Mapping[str, Any], overwrite: bool) -> None:
        check_target(path, plan.folder is not None, overwrite)
        self.path, self._plan = path, plan
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._files: dict[str, Path] = {}
        self._starts: dict[str, int] = {}
        self._places: dict[str, tuple[str, int, Entry]] = {}
        try:
            with _as_output_errors(path):
                if plan.folder is not None:
                    self._temporary.mkdir()
                for file, entries in plan.files.items():
                    self._open(file, entries, record)
        except BaseException:
            self.abort()
            raise

    def _open(self, file: str, entries: tuple[Entry, ...], record: Mapping[str, Any]) -> None:
        header = self._header(file, record)
        self._files[file] = self._temporary / file if self._plan.folder is not None else self._temporary
        at = self._starts[file] = len(header)
        for entry in entries:
            self._places[entry.name] = (file, at, entry)
            at += entry.nbytes
        with _opened(self._files[file], os.O_CREAT | os.O_EXCL) as descriptor:
            os.posix_fallocate(descriptor, 0, at)
            os.ftruncate(descriptor, at)

    def _header(self, file: str, record: Mapping[str, Any]) -> bytes:
        metadata = {**self._plan.metadata[file], METADATA_KEY: _json(record)}
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        at = 0
        for entry in self._plan.files[file]:
            offsets = [at, at + entry.nbytes]
            header[entry.name] = {
                "dtype": WRITTEN_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets,
            }  # fmt: skip
            at = offsets[1]
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Write elements [start, start + len) of a flattened tensor, in its dtype; from any thread."""
        file, at, entry = self._places[name]
        if values.dtype != entry.dtype:
            raise ValueError(f"{name!r} is written as {entry.dtype}, not {values.dtype}")
        content = memoryview(values.contiguous().reshape(-1).view(torch.uint8).numpy())
        at += start * entry.dtype.itemsize
        with _as_output_errors(self.path), _opened(self._files[file]) as descriptor:
            while content:
                done = os.pwrite(descriptor, content, at)
                content, at = content[done:], at + done

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record and move everything into place."""
        with _as_output_errors(self.path):
            for file, path in self._files.items():
                header = self._header(file, record)
                if len(header) != self._starts[file]:
                    raise ValueError("the record's length changed")
                with _opened(path) as descriptor:
                    os.pwrite(descriptor, header, 0)
                    os.fsync(descriptor)
            if self._plan.folder is None:
                self._temporary.replace(self.path)
                write_atomically(record_path(self.path), (_json(record, indent=2) + "\n").encode())
            else:
                self._finish_folder(self._plan.folder, record)

    def _finish_folder(self, base: Path, record: Mapping[str, Any]) -> None:
        for path in sorted(base.iterdir()):
            if path.is_file() and not path.name.endswith((*_OTHER_WEIGHTS, RECORD_FILE)):
                shutil.copyfile(path, self._temporary / path.name)
        if self._plan.is_tied is not None and (self._temporary / CONFIG).is_file():
            config = with_tying(read_configuration(self._temporary), self._plan.is_tied)
            (self._temporary / CONFIG).write_text(_json(config, indent=2) + "\n", "utf-8")
        (self._temporary / RECORD_FILE).write_text(_json(record, indent=2) + "\n", "utf-8")
        if self._plan.index is not None:
            total = sum(entry.nbytes for _, _, entry in self._places.values())
            places = {name: file for name, (file, _, _) in sorted(self._places.items())}
            index = {"metadata": {**self._plan.index, "total_size": total}, "weight_map": places}
            (self._temporary / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        if self.path.exists():
            old = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
            self.path.rename(old)
            self._temporary.rename(self.path)
            shutil.rmtree(old)
        else:
            self._temporary.rename(self.path)

    def abort(self) -> None:
        """Remove what was written so far; nothing happens after `finish`."""
        if self._temporary.is_dir():
            shutil.rmtree(self._temporary)
        else:
            self._temporary.unlink(missing_ok=True)


def record_path(path: Path) -> Path:
    """Return where the record of a merged checkpoint lies.

    >>> record_path(Path("merged.safetensors")).name
    'merged.mergekern.json'
    """
    return path / RECORD_FILE if path.suffix != ".safetensors" else path.with_suffix(f".{RECORD_FILE}")


def check_target(path: Path, is_folder: bool, overwrite: bool) -> None:
    """Raise OutputError unless a checkpoint may be written here."""
    if not is_folder and path.suffix != ".safetensors":
        raise OutputError(f"{path}: a merged checkpoint is a .safetensors file, like its base; give such a name")
    if not Path(os.path.abspath(path)).parent.is_dir():
        raise OutputError(f"{path}: the folder it is to lie in does not exist")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputError(f"{path}: is there already; pass overwrite=True (--overwrite) to replace it")
    is_empty = path.is_dir() and not any(path.iterdir())
    if is_folder and not is_empty and not (path / RECORD_FILE).is_file():
        raise OutputError(f"{path}: is there and holds no {RECORD_FILE}; only what mergekern wrote is replaced")
    if not is_folder and not path.is_file():
        raise OutputError(f"{path}: is a folder, and a file is to be written; give another name")


@contextlib.contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    # Opened for each write: merge_all writes more files at a time than a process may hold open.
    descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}); nothing was changed there") from error


def _json(record: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(record, indent=indent, ensure_ascii=True)
