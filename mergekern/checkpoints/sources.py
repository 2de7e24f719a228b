"""What a user may give as a checkpoint, told apart in one place, before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from mergekern.checkpoints import hub
from mergekern.errors import CheckpointError

IO = Literal["mmap", "pread"]
CheckpointLike: TypeAlias = str | os.PathLike[str] | Mapping[str, torch.Tensor | np.ndarray] | torch.nn.Module
"""A checkpoint as users give it: a path (`.safetensors`, a Hugging Face folder, a PEFT folder, a torch file), the id of
a model on the Hugging Face Hub where no such path exists, tensors or arrays by name, or a module."""
ZooLike: TypeAlias = str | os.PathLike[str] | Sequence[CheckpointLike] | Mapping[str, CheckpointLike]
"""Several models as users give them: a folder of checkpoints, a sequence of them, or a mapping name -> checkpoint."""

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
ADAPTER_CONFIG = "adapter_config.json"
Kind = Literal["path", "hub", "mapping", "module"]


@dataclass(frozen=True)
class Source:
    """A checkpoint that was given, not yet opened.

    Attributes:
        kind: what `given` is; a path may not exist.
        given: the path, the id on the Hub, the mapping or the module.
        name: what the checkpoint is called in messages and tables.
        notes: what is to be said of how it was found.
    """

    kind: Kind
    given: Any
    name: str
    notes: tuple[str, ...] = field(default=(), repr=False)

    @staticmethod
    def from_given(given: CheckpointLike, name: str | None = None) -> Source:
        """Return the source of what a user gave as one checkpoint.

        Raises:
            CheckpointError: it is none of the things that a checkpoint may be, or a path that no file can have.

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
            check_path(text)
            if _is_on_hub(text):
                return Source("hub", text, name or text.partition("/")[2].replace("/", "-"))
            return Source("path", Path(given), name or _name_of(Path(given)))
        raise CheckpointError(
            f"a checkpoint is a path, a mapping name -> tensor, or a torch.nn.Module, not {type(given).__name__}"
        )


def check_path(text: str) -> None:
    """Raise CheckpointError for a path that no file can have, or whose name cannot be written to tables and records."""
    if "\0" in text:
        raise CheckpointError(f"{text!r}: a path holds no NUL character")
    if shown(text) != text:
        raise CheckpointError(f"{shown(text)}: the path is not valid UTF-8; rename the file or folder")


def shown(text: str) -> str:
    r"""Return a file's name as it can be printed and saved; bytes that are no UTF-8 as \xff.

    >>> shown("mod\udcffel")
    'mod\\xffel'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_on_hub(text: str) -> bool:
    return hub.is_hub_id(text) and Path(text).suffix not in SUFFIXES and not os.path.exists(text)


def _name_of(path: Path) -> str:
    """Return the name of a checkpoint at a path: a file's stem, a folder's name."""
    file, found, key = path.name.partition(":")  # one state dict of several in a torch file
    if found and Path(file).suffix in TORCH_SUFFIXES:
        return f"{Path(file).stem}:{key}"
    # Links keep their own name: those of a model hub's cache point to folders named by a hash.
    return path.stem if path.suffix in SUFFIXES else Path(os.path.abspath(path)).name
