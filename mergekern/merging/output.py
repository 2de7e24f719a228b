"""Results of merges: which tensors they have, and the sinks that take them, in memory or in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mergekern.checkpoints import Zoo
from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.configuration import CONFIG, configuration_of_result
from mergekern.checkpoints.dtypes import FLOAT8
from mergekern.checkpoints.folder_files import FolderFiles, folder_files
from mergekern.checkpoints.folders import SINGLE_FILES
from mergekern.checkpoints.layout import Entry, Layout, layout
from mergekern.checkpoints.tying import tying_of
from mergekern.checkpoints.writer import Writer
from mergekern.errors import OptionError

StateDict = dict[str, torch.Tensor]


class Sink(Protocol):
    """Takes the merged tensors of one merge."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which a tensor is taken."""

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Take elements [start, start + len) of a flattened tensor; a later call may replace them."""


@dataclass(frozen=True)
class OutputPlan:
    """Every tensor of a result: merged, tied to a merged one, or taken from the base.

    Attributes:
        base: the checkpoint that the result is laid out like.
        entries: the tensors that are stored, by name.
        aliases: tied name -> the name that is stored.
        copied: names of the tensors that are taken from the base.
        dtype: dtype of all float tensors; None where each has the base's.
        base_folders: sub-folders with weights that are the base's in every result.
    """

    base: Checkpoint
    entries: dict[str, Entry]
    aliases: dict[str, str]
    copied: tuple[str, ...]
    dtype: torch.dtype | None = None
    base_folders: tuple[str, ...] = ()

    @classmethod
    def like_base(cls, zoo: Zoo, dtype: torch.dtype | None) -> OutputPlan:
        """Return the plan of a zoo's merges: laid out like the base.

        Args:
            zoo: the base and the models that are merged.
            dtype: dtype of all float tensors; None for that of each in the base.

        Raises:
            OptionError: the base is float8, in which nothing is written.
        """
        base, merged = zoo.base, {tensor.name for tensor in zoo.tensors}
        names = [n for n in dict.fromkeys([*base.order, *base.tensors]) if n not in base.scales]
        entries, copied = {}, []
        for name in names:
            if name in zoo.tied:
                continue
            if name in base.tensors:
                stored = base.tensors[name]
                if dtype is None and stored.dtype in FLOAT8:
                    raise OptionError(
                        f"tensor {name!r} of the base is {stored.dtype}; merges are written in a wider type: pass "
                        "dtype='bfloat16'"
                    )
                entries[name] = Entry(name, dtype or stored.dtype, stored.shape)
            else:
                buffer = base.read_buffer(name)
                entries[name] = Entry(name, buffer.dtype, tuple(buffer.shape))
            if name not in merged:
                copied.append(name)
        return cls(base, entries, dict(zoo.tied), tuple(copied), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def is_tied(self) -> bool | None:
        """Whether the result ties head and embedding, where its configuration must say otherwise than the base's."""
        return tying_of(self.base, self.entries)

    @property
    def folder(self) -> Path | None:
        """Folder of the base, where that is a Hugging Face folder or in shards; None where it is a file."""
        path = Path(self.base.source)
        is_whole = path.name in SINGLE_FILES and (path.parent / "config.json").is_file()
        return path.parent if path.name.endswith(".index.json") or is_whole else None

    def folder_of(self, path: Path) -> Path | None:
        """Return the folder whose other files are copied to a result at a path; None where the result is a file."""
        return None if path.suffix == ".safetensors" else self.folder

    def beside(self, folder: Path) -> FolderFiles:
        """Return what lies beside the weights in the base's folder."""
        return folder_files(folder, {Path(self.base.source).name, *(path.name for path in self.base.files)})

    def layout_at(self, path: Path) -> Layout:
        """Return how the tensors are spread over files at a path, and the other files of a folder."""
        folder = self.folder_of(path)
        return self.layout_like(folder) if folder else layout(self.base, self.entries, self.aliases, None)

    def layout_like(self, folder: Path) -> Layout:
        """Return the layout of a folder like that of the base."""
        beside = self.beside(folder)
        others: dict[str, Path | bytes] = dict(beside.copied)
        for name in self.base_folders:
            others |= beside.submodels[name]
        dtype = str(self.dtype).removeprefix("torch.") if self.dtype else None
        config = configuration_of_result(self.base.config, dtype=dtype, is_tied=self.is_tied)
        if self.base.config and config != self.base.config:
            others[CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        return layout(self.base, self.entries, self.aliases, others)

    def in_memory(self) -> InMemory:
        """Return a sink that collects one merge."""
        return InMemory(self)

    def copy_to(self, sink: Sink) -> None:
        """Write the tensors that are taken from the base."""
        for name in self.copied:
            if name in self.base.tensors:
                sink.write(name, self.base.read(name).to(self.entries[name].dtype).reshape(-1))
            else:
                sink.write(name, self.base.read_buffer(name).reshape(-1))


class InMemory:
    """A `Sink` that collects a merged state dict."""

    def __init__(self, plan: OutputPlan) -> None:
        self._plan = plan
        self._tensors = {
            entry.name: torch.empty(entry.shape, dtype=entry.dtype, device="cpu") for entry in plan.entries.values()
        }
        plan.copy_to(self)

    def dtype(self, name: str) -> torch.dtype:
        """See `Sink`."""
        return self._tensors[name].dtype

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `Sink`."""
        self._tensors[name].view(-1)[start : start + values.numel()] = values

    def finished(self) -> StateDict:
        """Return the state dict, with every name of the base."""
        base, tied = self._plan.base, self._plan.aliases
        names = dict.fromkeys([*base.order, *base.tensors])
        return {name: self._tensors[tied.get(name, name)] for name in names if name not in base.scales}


class ToFile:
    """A `Sink` that writes a merged checkpoint."""

    def __init__(self, plan: OutputPlan, writer: Writer) -> None:
        self._entries, self._writer = plan.entries, writer
        plan.copy_to(self)

    def dtype(self, name: str) -> torch.dtype:
        """See `Sink`."""
        return self._entries[name].dtype

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `Sink`."""
        self._writer.write(name, values, start)
