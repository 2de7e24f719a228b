"""How the tensors of a written checkpoint are spread over files, and the header of each file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.dtypes import WRITTEN_NAMES
from mergekern.checkpoints.records import METADATA_KEY, as_json
from mergekern.checkpoints.safetensors_file import SafetensorsFile
from mergekern.checkpoints.sharded import Sharded

INDEX_FILE = "model.safetensors.index.json"


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
        others: content of each other file of a folder, by its path there: bytes, or the file that is copied. None where
            the result is a file.
        index: what a shard index says beside the places of tensors; None without an index.
    """

    files: Mapping[str, tuple[Entry, ...]]
    metadata: Mapping[str, Mapping[str, str]]
    others: Mapping[str, Path | bytes] | None = None
    index: Mapping[str, Any] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the result is a folder."""
        return self.others is not None

    def header(self, file: str, record: Mapping[str, Any]) -> bytes:
        """Return the first bytes of a file, up to the first tensor: it decides all of the file but the values."""
        metadata = {**self.metadata[file], METADATA_KEY: as_json(record)}
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        at = 0
        for entry in self.files[file]:
            offsets = [at, at + entry.nbytes]
            header[entry.name] = {
                "dtype": WRITTEN_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets,
            }  # fmt: skip
            at = offsets[1]
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def index_file(self) -> bytes:
        """Return the content of the shard index."""
        assert self.index is not None
        places = {entry.name: file for file, entries in self.files.items() for entry in entries}
        total = sum(entry.nbytes for entries in self.files.values() for entry in entries)
        index = {"metadata": {**self.index, "total_size": total}, "weight_map": dict(sorted(places.items()))}
        return (json.dumps(index, indent=2) + "\n").encode()


def layout(
    base: Checkpoint,
    entries: Mapping[str, Entry],
    aliases: Mapping[str, str],
    others: Mapping[str, Path | bytes] | None,
) -> Layout:
    """Return the layout of a checkpoint that is stored as its base is.

    Args:
        base: whose files are followed.
        entries: the tensors, by name, in the order in which they are to lie. Those that the base lacks come to the last
            of its files.
        aliases: tied names that are not stored -> those that are.
        others: the other files of the result, where it is a folder; None writes all tensors to one file.
    """
    shards: Mapping[str, Checkpoint] = {"model.safetensors": base}
    homes = dict.fromkeys(entries, "model.safetensors")
    index = None
    if isinstance(base, Sharded) and others is not None:
        shards = {_as_safetensors(file): shard for file, shard in base.shards.items()}
        known, last = {*base.tensors, *base.buffers}, list(shards)[-1]
        homes = {name: _as_safetensors(base.shard_of(name)) if name in known else last for name in entries}
        index = _index_metadata(Path(base.source))
    metadata = {}
    stored = {entry.name for entry in entries.values()}
    for file, shard in shards.items():
        kept = shard.metadata if isinstance(shard, SafetensorsFile) else {}
        tied = {base.stored_name(alias): entries[name].name for alias, name in aliases.items() if homes[name] == file}
        # transformers refuses files without a format.
        metadata[file] = {"format": "pt"} | {k: v for k, v in kept.items() if k not in stored} | tied
    # Larger items first, as the library orders them: every tensor is then aligned to its dtype.
    by_size = sorted(entries, key=lambda name: -entries[name].dtype.itemsize)
    files = {file: tuple(entries[name] for name in by_size if homes[name] == file) for file in shards}
    return Layout(files, metadata, others, index)


def layout_by_size(
    entries: Mapping[str, Entry], aliases: Mapping[str, str], others: Mapping[str, Path | bytes] | None, most: int
) -> Layout:
    """Return the layout of a checkpoint in shards of some size, or in one file if it is no larger.

    Args:
        entries: the tensors, by name, in the order in which they are spread.
        aliases: tied names that are not stored -> those that are.
        others: the other files of the result, where it is a folder; None writes all tensors to one file.
        most: bytes of a shard; a larger tensor has one to itself.
    """
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries.values():
        if others is not None and shards[-1] and size + entry.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    count = len(shards)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    names = names if count > 1 else ["model.safetensors"]
    files, metadata = {}, {}
    for name, shard in zip(names, shards, strict=True):
        files[name] = tuple(sorted(shard, key=lambda entry: -entry.dtype.itemsize))
        held = {entry.name for entry in shard}
        metadata[name] = {"format": "pt"} | {alias: kept for alias, kept in aliases.items() if kept in held}
    return Layout(files, metadata, others, {} if count > 1 else None)


def _as_safetensors(file: str) -> str:
    path = Path(file)
    return file if path.suffix == ".safetensors" else path.stem.replace("pytorch_model", "model") + ".safetensors"


def _index_metadata(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8")).get("metadata", {})
    return found if isinstance(found, dict) else {}
