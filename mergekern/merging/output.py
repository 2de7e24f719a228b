"""Results of merges: which tensors they have, and the sinks that take them, in memory or in a file."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from mergekern.checkpoints import Zoo
from mergekern.checkpoints.adapter import Adapter
from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.configuration import CONFIG, configuration_of_result
from mergekern.checkpoints.dtypes import FLOAT8
from mergekern.checkpoints.folder_files import FolderFiles, folder_files
from mergekern.checkpoints.folders import SINGLE_FILES
from mergekern.checkpoints.layout import Entry, Layout, layout
from mergekern.checkpoints.tying import tying_of
from mergekern.checkpoints.writer import Writer
from mergekern.errors import OptionError
from mergekern.merging.owners import BASE, configuration_of_owner, files_of_owner, heads_of_owner

StateDict = dict[str, torch.Tensor]


class Sink(Protocol):
    """Takes the merged tensors of one merge."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which a tensor is taken."""

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Take elements [start, start + len) of a flattened tensor; a later call may replace them."""


@dataclass(frozen=True)
class OutputPlan:
    """Every tensor of a result: merged, tied to a merged one, or taken from its owner.

    Attributes:
        owner: the checkpoint whose names, heads and other tensors that are not merged the result has.
        base: the checkpoint that the merged tensors are like.
        entries: the tensors that are stored, by their names in the owner.
        aliases: tied name -> the name that is stored.
        copied: names of the tensors that are taken from the owner.
        dtype: dtype of all float tensors; None where each has the base's.
        config: config.json of the owner.
        names: merged tensors that the owner calls otherwise than the zoo, by their names in the zoo.
        own_folders: sub-folders with weights that are the owner's in every result.
    """

    owner: Checkpoint
    base: Checkpoint
    entries: dict[str, Entry]
    aliases: dict[str, str]
    copied: tuple[str, ...]
    dtype: torch.dtype | None
    config: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    own_folders: tuple[str, ...] = ()

    @classmethod
    def like_base(cls, zoo: Zoo, dtype: torch.dtype | None) -> OutputPlan:
        """Return the plan of a zoo's merges that are laid out like the base; see `like`."""
        return cls.like(zoo, BASE, dtype)

    @classmethod
    def like(cls, zoo: Zoo, position: int, dtype: torch.dtype | None) -> OutputPlan:
        """Return the plan of a zoo's merges: laid out like one of its checkpoints.

        Args:
            zoo: the base and the models that are merged.
            position: where the owner is among `Zoo.checkpoints`.
            dtype: dtype of all float tensors; None for that of each in the base.

        Raises:
            OptionError: the base is float8, in which nothing is written.
        """
        owner, heads = zoo.checkpoints[position], zoo.heads
        own_heads = heads_of_owner(owner, zoo.base, heads)
        names = {tensor.name: tensor.names[position] for tensor in zoo.tensors}
        merged = {own: name for name, own in names.items()}
        aliases = _aliases(zoo, owner, names, own_heads)
        entries, copied = {}, []
        for name in dict.fromkeys([*owner.order, *owner.tensors]):
            if name in owner.scales or name in aliases or (name in heads and name not in own_heads):
                continue
            if name in owner.tensors:
                like = zoo.base.tensors[merged[name]] if name in merged else owner.tensors[name]
                if dtype is None and like.dtype in FLOAT8:
                    whose = "the base" if name in merged or owner is zoo.base else repr(owner.name)
                    raise OptionError(
                        f"tensor {name!r} of {whose} is {like.dtype}; merges are written in a wider type: pass "
                        "dtype='bfloat16'"
                    )
                entries[name] = Entry(owner.stored_name(name), dtype or like.dtype, like.shape)
            else:
                buffer = owner.read_buffer(name)
                entries[name] = Entry(owner.stored_name(name), buffer.dtype, tuple(buffer.shape))
            if name not in merged:
                copied.append(name)
        config = configuration_of_owner(owner, zoo.base, heads)
        renamed = {name: own for name, own in names.items() if name != own}
        return cls(owner, zoo.base, entries, aliases, tuple(copied), dtype, config, renamed)

    def has(self, name: str) -> bool:
        """Tell whether the result has a tensor of the zoo: all, but for counters of batches that the owner lacks."""
        return self.names.get(name, name) in self.entries

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def is_tied(self) -> bool | None:
        """Whether the result ties head and embedding, where its configuration must say otherwise than the owner's."""
        return tying_of(self.owner, self.entries)

    @property
    def like_whom(self) -> Checkpoint:
        """The checkpoint whose files the result has: the owner, or the base of an owner that is an adapter."""
        return self.base if isinstance(self.owner, Adapter) else self.owner

    @property
    def folder(self) -> Path | None:
        """Folder of that, where it is a Hugging Face folder or in shards; None where it is a file."""
        path = Path(self.like_whom.source)
        is_whole = path.name in SINGLE_FILES and (path.parent / "config.json").is_file()
        return path.parent if path.name.endswith(".index.json") or is_whole else None

    def folder_of(self, path: Path) -> Path | None:
        """Return the folder whose other files are copied to a result at a path; None where the result is a file."""
        return None if path.suffix == ".safetensors" else self.folder

    def beside(self, folder: Path) -> FolderFiles:
        """Return what lies beside the weights in the folder."""
        whom = self.like_whom
        return folder_files(folder, {Path(whom.source).name, *(path.name for path in whom.files)})

    def layout_at(self, path: Path) -> Layout:
        """Return how the tensors are spread over files at a path, and the other files of a folder."""
        folder = self.folder_of(path)
        return self.layout_like(folder) if folder else layout(self.like_whom, self.entries, self.aliases, None)

    def layout_like(self, folder: Path) -> Layout:
        """Return the layout of a folder like that of the owner."""
        beside = self.beside(folder)
        others: dict[str, Path | bytes] = dict(beside.copied)
        others |= files_of_owner(self.owner, self.base, beside.copied)[0]
        for name in self.own_folders:
            others |= beside.submodels[name]
        config = self.configuration
        if self.config and config != self.like_whom.config:
            others[CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        return layout(self.like_whom, self.entries, self.aliases, others)

    @property
    def configuration(self) -> dict[str, Any]:
        """config.json as it is true of the result."""
        return configuration_of_result(self.config, dtype=self._dtype_said, is_tied=self.is_tied)

    @property
    def _dtype_said(self) -> str | None:
        """The dtype that config.json says, where it is not that of the owner's."""
        if self.dtype is None and self.owner is self.base:
            return None
        found = {entry.dtype for entry in self.entries.values() if entry.dtype.is_floating_point}
        dtype = self.dtype or max(found, key=lambda each: each.itemsize, default=None)
        return str(dtype).removeprefix("torch.") if dtype else None

    def in_memory(self) -> InMemory:
        """Return a sink that collects one merge."""
        return InMemory(self)

    def in_memory_of(self, models: Sequence[int]) -> InMemory:
        """Return a sink that collects a merge of some models: the same for all."""
        return self.in_memory()

    def copy_to(self, sink: Sink) -> None:
        """Write the tensors that are taken from the owner."""
        for name in self.copied:
            if name in self.owner.tensors:
                sink.write(name, self.owner.read(name).to(self.entries[name].dtype).reshape(-1))
            else:
                sink.write(name, self.owner.read_buffer(name).reshape(-1))


def _aliases(zoo: Zoo, owner: Checkpoint, names: Mapping[str, str], own_heads: Set[str]) -> dict[str, str]:
    """Return the names of an owner that are not stored, each with the one that is: of merged tensors, and of heads."""
    aliases = {name: names[kept] for name, kept in zoo.tied.items() if name in owner.tensors}
    firsts: dict[Hashable, str] = {}
    for name in dict.fromkeys([*owner.order, *owner.tensors]):
        if name in own_heads:
            first = firsts.setdefault(owner.tensors[name].storage, name)
            aliases |= {name: first} if first != name else {}
    return aliases


class InMemory:
    """A `Sink` that collects a merged state dict."""

    def __init__(self, plan: OutputPlan) -> None:
        self._plan = plan
        self._tensors = {
            name: torch.empty(entry.shape, dtype=entry.dtype, device="cpu") for name, entry in plan.entries.items()
        }
        plan.copy_to(self)

    def dtype(self, name: str) -> torch.dtype:
        """See `Sink`."""
        return self._tensors[self._plan.names.get(name, name)].dtype

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `Sink`."""
        if self._plan.has(name):
            self._tensors[self._plan.names.get(name, name)].view(-1)[start : start + values.numel()] = values

    def finished(self) -> StateDict:
        """Return the state dict, with every name of the owner's file."""
        owner, tied = self._plan.owner, self._plan.aliases
        kept = {name: tied.get(name, name) for name in dict.fromkeys([*owner.order, *owner.tensors])}
        return {owner.stored_name(name): self._tensors[of] for name, of in kept.items() if of in self._tensors}


class ToFile:
    """A `Sink` that writes a merged checkpoint."""

    def __init__(self, plan: OutputPlan, writer: Writer) -> None:
        self._plan, self._writer = plan, writer
        plan.copy_to(self)

    def dtype(self, name: str) -> torch.dtype:
        """See `Sink`."""
        return self._plan.entries[self._plan.names.get(name, name)].dtype

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `Sink`."""
        if self._plan.has(name):
            self._writer.write(self._plan.entries[self._plan.names.get(name, name)].name, values, start)


class Several:
    """A `Sink` that gives the merged tensors of one merge to several results, which differ in their owners."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def dtype(self, name: str) -> torch.dtype:
        """See `Sink`."""
        return self._sinks[0].dtype(name)

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `Sink`."""
        for sink in self._sinks:
            sink.write(name, values, start)
