"""What a merge gives: the tensors of its result, collected in memory or written to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergekern.checkpoints import Zoo
from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.dtypes import FLOAT8
from mergekern.checkpoints.writer import Entry, Writer
from mergekern.errors import OptionError

StateDict = dict[str, torch.Tensor]

# Of the weights in a Hugging Face folder that is not sharded.
_FOLDER_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Output:
    """Every tensor of a result: merged, tied to a merged one, or taken from the base.

    Attributes:
        base: the checkpoint that the result is laid out like.
        entries: the tensors that are stored, by name.
        aliases: tied names -> those that are stored.
        copied: names of what is taken from the base.
    """

    base: Checkpoint
    entries: dict[str, Entry]
    aliases: dict[str, str]
    copied: tuple[str, ...]

    @classmethod
    def of(cls, zoo: Zoo, dtype: torch.dtype | None) -> Output:
        """Return the plan of a zoo's merges, float tensors in a dtype, or each in the base's.

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
        return cls(base, entries, dict(zoo.tied), tuple(copied))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def folder(self) -> Path | None:
        """The Hugging Face folder that the base is, or the folder of its shards; None where it is a file."""
        path = Path(self.base.source)
        is_whole = path.name in _FOLDER_NAMES and (path.parent / "config.json").is_file()
        return path.parent if path.name.endswith(".index.json") or is_whole else None

    def folder_of(self, path: Path) -> Path | None:
        """Return the folder whose files go with a result at a path; None where that is to be a file."""
        return None if path.suffix == ".safetensors" else self.folder

    def in_memory(self) -> InMemory:
        """Return what collects one merge."""
        return InMemory(self)

    def copy_to(self, sink: Any) -> None:
        """Hand over what is taken from the base."""
        for name in self.copied:
            if name in self.base.tensors:
                sink.write(name, self.base.read(name).to(self.entries[name].dtype).reshape(-1))
            else:
                sink.write(name, self.base.read_buffer(name).reshape(-1))


class InMemory:
    """Collects a merged state dict; a `Sink`."""

    def __init__(self, plan: Output) -> None:
        self._plan = plan
        self._tensors = {entry.name: torch.empty(entry.shape, dtype=entry.dtype) for entry in plan.entries.values()}
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
    """Writes a merged checkpoint; a `Sink`."""

    def __init__(self, plan: Output, writer: Writer) -> None:
        self._entries, self.write = plan.entries, writer.write
        plan.copy_to(self)

    def dtype(self, name: str) -> torch.dtype:
        """See `Sink`."""
        return self._entries[name].dtype
