"""Open one checkpoint: a safetensors file, a folder of Hugging Face or PEFT, a torch file, a mapping or a module."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mergekern.checkpoints import adapter, folders, hub
from mergekern.checkpoints.checkpoint import Checkpoint, FileState
from mergekern.checkpoints.configuration import read_configuration, read_json_object
from mergekern.checkpoints.folder_files import notes_on_submodels
from mergekern.checkpoints.no_model import GGUF, POINTER, describe_file, describe_folder
from mergekern.checkpoints.safetensors_file import SafetensorsFile
from mergekern.checkpoints.sharded import Sharded
from mergekern.checkpoints.sources import (
    ADAPTER_CONFIG,
    IO,
    SUFFIXES,
    TORCH_SUFFIXES,
    CheckpointLike,
    Source,
)
from mergekern.checkpoints.state_dict import StateDict
from mergekern.checkpoints.torch_file import load_torch_file, split_key
from mergekern.errors import CheckpointError

_LOOKED_FOR = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip


def open_checkpoint(given: CheckpointLike, name: str | None = None, *, io: IO = "mmap") -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        given: a path (`.safetensors`; a Hugging Face folder, whose weights are those that `from_pretrained` chooses; a
            PEFT folder with a LoRA adapter; a folder in which only one sub-folder is a model; `.pt`, `.pth`, `.bin`,
            `.ckpt`, of which "file.ckpt:key" names one of several state dicts); where no such path exists, the id of a
            model on the Hugging Face Hub, "org/name" or "org/name@revision"; a mapping name -> tensor or array, or a
            `torch.nn.Module`.
        name: what to call it; by default the file's stem, or "model".
        io: "mmap" maps files into memory; "pread" reads them into buffers, which is faster on network disks.

    float8 tensors are read as their values times their scales. What is no floating-point tensor takes no part, and is
    named in `notes`.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, or of a kind that is not supported; its weights are
            packed or quantised otherwise than in float8; it holds several state dicts.

    >>> import torch
    >>> open_checkpoint({"w": torch.zeros(2, 3), "steps": torch.tensor(7)}).tensors["w"].shape
    (2, 3)
    """
    source = Source.from_given(given, name)
    if source.kind == "module":
        return _finished(StateDict(source.given.state_dict(), source.name, type(source.given).__name__))
    if source.kind == "mapping":
        return _finished(StateDict(source.given, source.name, name or "mapping"))
    path, origin = (source.given, None) if source.kind == "path" else hub.fetch(source.given)
    try:
        checkpoint = _open_path(path, source.name, io)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if path.is_dir():
        checkpoint.notes += notes_on_submodels(path)
    checkpoint.origin = origin
    checkpoint.location = origin or os.path.abspath(path)
    return checkpoint


def _open_path(path: Path, name: str, io: IO) -> Checkpoint:
    if not path.exists() and split_key(path)[1] is None:
        what = f"; it is {describe_file(path)}" if path.is_symlink() else ""
        raise CheckpointError(f"{path}: no such file or folder{what}")
    return _open_folder(path, name, io) if path.is_dir() else _open_file(path, name, io)


def _open_file(path: Path, name: str, io: IO, config: Mapping[str, Any] = MappingProxyType({})) -> Checkpoint:
    return _finished(_stored(path, name, io), config)


def _finished(checkpoint: Checkpoint, config: Mapping[str, Any] = MappingProxyType({})) -> Checkpoint:
    checkpoint._finish(config)
    return checkpoint


def _stored(path: Path, name: str, io: IO) -> Checkpoint:
    """Return what a file stores; how it is to be read, the whole checkpoint says."""
    file, key = split_key(path)
    if not file.is_file():
        raise CheckpointError(
            f"{path}: no such file" if not file.exists() else f"{path}: no such file, but a device or pipe"
        )
    state = FileState.from_path(file)
    if folders.is_pointer(file):
        raise CheckpointError(f"{path}: not a readable {file.suffix[1:]} file but {POINTER}")
    checkpoint: Checkpoint
    if file.suffix == ".safetensors":
        checkpoint = SafetensorsFile(file, name, io)
    elif file.suffix in TORCH_SUFFIXES:
        tensors, notes = load_torch_file(file, key)
        checkpoint = StateDict(tensors, name, str(path))
        checkpoint.guard_mapped_files()
        checkpoint.notes += notes
    else:
        raise _unknown(path)
    checkpoint.files = {file: state}
    return checkpoint


def _unknown(path: Path) -> CheckpointError:
    if path.suffix == ".gguf":
        return CheckpointError(f"{path}: {GGUF}")
    return CheckpointError(f"{path}: unknown suffix; known are {', '.join(SUFFIXES)} and Hugging Face folders")


def _open_folder(folder: Path, name: str, io: IO) -> Checkpoint:
    weights = folders.find_weights(folder)
    if weights is None:
        raise CheckpointError(
            f"{folder}: none of {', '.join(_LOOKED_FOR)} is in this folder; it is {describe_folder(folder)}"
        )
    checkpoint = _open_weights(weights, name, io)
    checkpoint.notes += weights.notes
    return checkpoint


def _open_weights(weights: folders.Weights, name: str, io: IO) -> Checkpoint:
    folder = weights.folder
    if weights.kind == "adapter":
        return _open_adapter(folder, name, io)
    config = read_configuration(folder)
    if weights.kind == "file":
        return _open_file(folder / weights.files[0], name, io, config)
    if weights.kind == "index":
        return _finished(_open_index(folder / weights.files[0], name, io), config)
    shards = {file: _stored(folder / file, name, io) for file in weights.files}
    home = {key: file for file, shard in shards.items() for key in (*shard.tensors, *shard.buffers)}
    return _finished(Sharded(shards, home, name, str(folder)), config)


def _open_index(index: Path, name: str, io: IO) -> Sharded:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
        if not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise TypeError("shard names must be plain file names")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a usable shard index ({type(error).__name__}: {error})") from error
    if missing := [file for file in files if not (index.parent / file).is_file()]:
        raise CheckpointError(
            f"{index.parent / missing[0]}: no such file; {len(missing)} of the {len(files)} shards that {index.name} "
            "lists are missing; download or copy the folder again"
        )
    return Sharded({file: _stored(index.parent / file, name, io) for file in files}, weight_map, name, str(index))


def _open_adapter(folder: Path, name: str, io: IO) -> adapter.Adapter:
    path = folder / ADAPTER_CONFIG
    found = next((folder / file for file in folders.ADAPTER_FILES if (folder / file).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: a PEFT adapter without its weights, {' or '.join(folders.ADAPTER_FILES)}")
    config = read_json_object(path)
    inner = _open_file(found, name, io)
    opened = adapter.Adapter(inner, config, name, str(folder))
    opened.notes += inner.notes
    return opened
