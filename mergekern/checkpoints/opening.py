"""Open one checkpoint: a safetensors file, a folder of Hugging Face or PEFT, a torch file, a mapping or a module."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mergekern.checkpoints import adapter, hub
from mergekern.checkpoints.checkpoint import Checkpoint, FileState
from mergekern.checkpoints.configuration import read_configuration
from mergekern.checkpoints.folder_files import notes_on_submodels
from mergekern.checkpoints.safetensors_file import SafetensorsFile
from mergekern.checkpoints.sharded import Sharded
from mergekern.checkpoints.sources import (
    ADAPTER_CONFIG,
    FOLDER_FILES,
    IO,
    SUFFIXES,
    TORCH_SUFFIXES,
    CheckpointLike,
    Source,
)
from mergekern.checkpoints.state_dict import StateDict, load_torch_file
from mergekern.errors import CheckpointError


def open_checkpoint(given: CheckpointLike, name: str | None = None, *, io: IO = "mmap") -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        given: a path (`.safetensors`; a Hugging Face folder, sharded or not; a PEFT folder with a LoRA adapter; `.pt`,
            `.pth`, `.bin`, `.ckpt`); where no such path exists, the id of a model on the Hugging Face Hub, "org/name"
            or "org/name@revision"; a mapping name -> tensor or array, or a `torch.nn.Module`.
        name: what to call it; by default the file's stem, or "model".
        io: "mmap" maps files into memory; "pread" reads them into buffers, which is faster on network disks.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, or of a kind that is not supported.

    >>> import torch
    >>> open_checkpoint({"w": torch.zeros(2, 3), "steps": torch.tensor(7)}).tensors["w"].shape
    (2, 3)
    """
    source = Source.from_given(given, name)
    if source.kind == "module":
        return StateDict(source.given.state_dict(), source.name, type(source.given).__name__)
    if source.kind == "mapping":
        return StateDict(source.given, source.name, name or "mapping")
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
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return _open_folder(path, name, io) if path.is_dir() else _open_file(path, name, io)


def _open_file(path: Path, name: str, io: IO) -> Checkpoint:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    state = FileState.from_path(path)
    checkpoint: Checkpoint
    if path.suffix == ".safetensors":
        checkpoint = SafetensorsFile(path, name, io)
    elif path.suffix in TORCH_SUFFIXES:
        checkpoint = StateDict(load_torch_file(path), name, str(path))
    else:
        raise _unknown(path)
    checkpoint.files = {path: state}
    return checkpoint


def _unknown(path: Path) -> CheckpointError:
    if path.suffix == ".gguf":
        return CheckpointError(f"{path}: GGUF files hold quantised weights; give the checkpoint they were made from")
    return CheckpointError(f"{path}: unknown suffix; known are {', '.join(SUFFIXES)} and Hugging Face folders")


def _open_folder(folder: Path, name: str, io: IO) -> Checkpoint:
    found = next((folder / file for file in FOLDER_FILES if (folder / file).is_file()), None)
    if found is None:
        if (folder / ADAPTER_CONFIG).is_file():
            return _open_adapter(folder, name, io)
        raise CheckpointError(f"{folder}: none of {', '.join(FOLDER_FILES)} is in this folder")
    config = read_configuration(folder)
    if found.suffix != ".json":
        checkpoint = _open_file(found, name, io)
        checkpoint.config = config
        return checkpoint
    try:
        weight_map = json.loads(found.read_text("utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
        if not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise TypeError("shard names must be plain file names")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{found}: not a usable shard index ({type(error).__name__}: {error})") from error
    sharded = Sharded({file: _open_file(folder / file, name, io) for file in files}, weight_map, name, str(found))
    sharded.config = config
    return sharded


def _open_adapter(folder: Path, name: str, io: IO) -> adapter.Adapter:
    path = folder / ADAPTER_CONFIG
    found = next((folder / file for file in adapter.WEIGHT_FILES if (folder / file).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: a PEFT adapter without its weights, {' or '.join(adapter.WEIGHT_FILES)}")
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise TypeError("not a JSON object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a usable configuration ({type(error).__name__}: {error})") from error
    return adapter.Adapter(_open_file(found, name, io), config, name, str(folder))
