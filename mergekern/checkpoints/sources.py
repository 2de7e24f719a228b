"""What a user may give as a checkpoint or as a zoo, told apart in one place, before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from mergekern.checkpoints import hub
from mergekern.errors import CheckpointError, OptionError

IO = Literal["mmap", "pread"]
CheckpointLike: TypeAlias = str | os.PathLike[str] | Mapping[str, torch.Tensor | np.ndarray] | torch.nn.Module
"""A checkpoint as users give it: a path (`.safetensors`, a Hugging Face folder, a PEFT folder, a torch file), the id of
a model on the Hugging Face Hub where no such path exists, tensors or arrays by name, or a module."""
ZooLike: TypeAlias = str | os.PathLike[str] | Sequence[CheckpointLike] | Mapping[str, CheckpointLike]
"""Several models as users give them: a folder of checkpoints, a sequence of them, or a mapping name -> checkpoint."""

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
ADAPTER_CONFIG = "adapter_config.json"
# What a folder's weights may be called, in the order in which they are looked for.
FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
Kind = Literal["path", "hub", "mapping", "module"]


@dataclass(frozen=True)
class Source:
    """A checkpoint that was given, not yet opened.

    Attributes:
        kind: what `given` is; a path may not exist.
        given: the path, the id on the Hub, the mapping or the module.
        name: what the checkpoint is called in messages and tables.
    """

    kind: Kind
    given: Any
    name: str

    @staticmethod
    def from_given(given: CheckpointLike, name: str | None = None) -> Source:
        """Return the source of what a user gave as one checkpoint.

        Raises:
            CheckpointError: it is none of the things that a checkpoint may be.

        >>> Source.from_given("zoo/mnist.v2.safetensors").name
        'mnist.v2'
        >>> Source.from_given("org/model@v1.0")
        Source(kind='hub', given='org/model@v1.0', name='model@v1.0')
        """
        if isinstance(given, torch.nn.Module):
            return Source("module", given, name or "model")
        if isinstance(given, Mapping):
            return Source("mapping", given, name or "model")
        if isinstance(given, str | os.PathLike):
            text = os.fspath(given)
            if _is_on_hub(text):
                return Source("hub", text, name or text.partition("/")[2].replace("/", "-"))
            return Source("path", Path(given), name or _name_of(Path(given)))
        raise CheckpointError(
            f"a checkpoint is a path, a mapping name -> tensor, or a torch.nn.Module, not {type(given).__name__}"
        )


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path looks like a checkpoint, also of a kind that is refused and explained when it is opened."""
    if path.is_dir():
        return any((path / file).is_file() for file in (*FOLDER_FILES, ADAPTER_CONFIG))
    return path.suffix in (*SUFFIXES, ".gguf") and path.is_file()


def is_zoo_folder(given: Any) -> bool:
    """Tell whether a path is a folder of checkpoints, rather than one checkpoint."""
    return isinstance(given, str | os.PathLike) and Path(given).is_dir() and not is_checkpoint(Path(given))


def zoo_sources(checkpoints: ZooLike, base: CheckpointLike | None = None) -> tuple[list[Source], Any]:
    """Return the sources of the models of a zoo without its base, and the base found among them, or None.

    Args:
        checkpoints: a folder, a sequence of checkpoints, or a mapping name -> checkpoint.
        base: the base, where it is given beside the zoo; a path among the models that leads to it is no model.

    Raises:
        OptionError: a state dict in place of a zoo; a folder with two bases; something else than a zoo.
        CheckpointError: a path that is no folder, or a folder without checkpoints.
    """
    if isinstance(checkpoints, str | os.PathLike):
        return _folder_sources(Path(checkpoints), base)
    if isinstance(checkpoints, Mapping):
        if any(isinstance(value, torch.Tensor) for value in checkpoints.values()):
            raise OptionError(
                "`checkpoints` is a state dict (name -> tensor); give a mapping from model name to checkpoint"
            )
        return [Source.from_given(given, str(name)) for name, given in checkpoints.items()], None
    if isinstance(checkpoints, Sequence):
        return [
            Source.from_given(given, None if isinstance(given, str | os.PathLike) else f"model_{index}")
            for index, given in enumerate(checkpoints)
            if not _is_same(given, base)
        ], None
    raise OptionError(
        "`checkpoints` is a folder, a sequence of checkpoints, or a mapping name -> checkpoint, not "
        f"{type(checkpoints).__name__}"
    )


def named_sources(checkpoints: ZooLike) -> dict[str, Any]:
    """Return checkpoints by name; one path may stand for itself, other forms are those of a zoo.

    Raises:
        OptionError: two have one name, or they are given in none of these forms.

    >>> named_sources("zoo/mnist.safetensors")
    {'mnist': PosixPath('zoo/mnist.safetensors')}
    """
    if isinstance(checkpoints, str | os.PathLike) and not is_zoo_folder(checkpoints):
        checkpoints = [checkpoints]
    sources, _ = zoo_sources(checkpoints)
    if duplicates := duplicate_names(sources):
        raise OptionError(f"duplicate model names: {', '.join(duplicates)}; give a mapping name -> checkpoint")
    return {source.name: source.given for source in sources}


def duplicate_names(sources: Sequence[Source]) -> list[str]:
    """Return the names that several sources have, sorted."""
    names = [source.name for source in sources]
    return sorted({name for name in names if names.count(name) > 1})


def _is_on_hub(text: str) -> bool:
    return hub.is_hub_id(text) and Path(text).suffix not in SUFFIXES and not os.path.exists(text)


def _name_of(path: Path) -> str:
    """Return the name of a checkpoint at a path: a file's stem, a folder's name."""
    file, found, key = path.name.partition(":")  # one state dict of several in a torch file
    if found and Path(file).suffix in TORCH_SUFFIXES:
        return f"{Path(file).stem}:{key}"
    # Links keep their own name: those of a model hub's cache point to folders named by a hash.
    return path.stem if path.suffix in SUFFIXES else Path(os.path.abspath(path)).name


def _is_same(given: Any, base: Any) -> bool:
    """Tell whether a path is that of the base, or of the folder that the base's file lies in."""
    if not all(isinstance(path, str | os.PathLike) for path in (given, base)):
        return False
    path, base_path = Path(given).resolve(), Path(base).resolve()
    return path == base_path or (path == base_path.parent and base_path.is_file())


def _folder_sources(folder: Path, base: Any) -> tuple[list[Source], Path | None]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder of checkpoints")
    sources: list[Source] = []
    found_base: Path | None = None
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_checkpoint(path) or _is_same(path, base):
            continue
        source = Source.from_given(path)
        if source.name == "base":  # never a model, also where another base is given
            if found_base is not None and base is None:
                raise OptionError(f"{folder}: two bases, {found_base.name} and {path.name}; pass base=PATH")
            found_base = path
        else:
            sources.append(source)
    if not sources:
        raise CheckpointError(f"{folder}: no checkpoints in it ({', '.join(SUFFIXES)}, or Hugging Face folders)")
    return sources, found_base
