"""Some tensors of a checkpoint, under other names and in another dtype, as if they were a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from mergekern.checkpoints.checkpoint import Change, Checkpoint
from mergekern.checkpoints.rows import Rearranged, Rows
from mergekern.checkpoints.stored import StoredTensor


@dataclass(frozen=True)
class Selected:
    """A tensor that is selected.

    Attributes:
        name: its name in the checkpoint.
        dtype: to which its values are cast when they are read; None for as they are.
        rows: its rows; None for as they are.
    """

    name: str
    dtype: torch.dtype | None = None
    rows: Rows | None = None


class Selection(Checkpoint):
    """Some tensors of a checkpoint, under other names; nothing is copied.

    Args:
        inner: the checkpoint.
        tensors: new name -> floating-point tensor, in the order of the new names.
        buffers: new name -> name of an integer, bool or complex tensor.

    >>> from mergekern.checkpoints import open_checkpoint
    >>> held = open_checkpoint({"layers.3.w": torch.ones(3, 2)})
    >>> first = Rows(torch.tensor([0]))
    >>> Selection(held, {"layers.0.w": Selected("layers.3.w", torch.bfloat16, first)}, {}).read("layers.0.w")
    tensor([[1., 1.]], dtype=torch.bfloat16)
    """

    def __init__(self, inner: Checkpoint, tensors: Mapping[str, Selected], buffers: Mapping[str, str]) -> None:
        super().__init__(inner.name, inner.source)
        self.origin, self.location = inner.origin, inner.location
        self.config, self.notes, self.files = inner.config, inner.notes, inner.files
        self._inner, self._cast = inner, set[str]()
        self._rearranged: dict[str, Rearranged] = {}
        for name, selected in tensors.items():
            stored = inner.tensors[selected.name]
            dtype = selected.dtype or stored.read_dtype
            shape = stored.shape
            if selected.rows is not None:
                shape = (selected.rows.count, *shape[1:])
                self._rearranged[selected.name] = Rearranged(inner, selected.name, selected.rows)
            self.tensors[name] = StoredTensor(selected.name, shape, dtype, (stored.storage, dtype, shape))
            if dtype != stored.dtype or selected.rows is not None:
                self._cast.add(selected.name)
        self._stored_buffers = dict(buffers)
        self.buffers = list(buffers)
        self.order = [*tensors, *buffers]

    def widen(self, name: str, dtype: torch.dtype) -> None:
        """Read a tensor, and those that are tied to it, in a dtype that holds all of its values."""
        storage = self.tensors[name].storage
        for each, tensor in self.tensors.items():
            if tensor.storage == storage:
                self.tensors[each] = replace(tensor, dtype=dtype, storage=(storage, dtype))
                self._cast.add(tensor.name)

    def change(self, name: str) -> Change:
        """See `Checkpoint`; what an adapter changes is read whole."""
        return "whole"

    def check_unchanged(self) -> None:
        """See `Checkpoint`."""
        self._inner.check_unchanged()

    def rounded(self, name: str, values: torch.Tensor, start: int) -> torch.Tensor:
        """See `Checkpoint`."""
        tensor = self.tensors[name]
        if tensor.name in self._cast:
            return values.to(tensor.dtype)
        return self._inner.rounded(tensor.name, values, start)

    def read_buffer(self, name: str) -> torch.Tensor:
        """See `Checkpoint`."""
        return self._inner.read_buffer(self._stored_buffers[name])

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        if found := self._rearranged.get(tensor.name):
            return found.read(start, stop).to(tensor.dtype)
        return self._inner.read_range(tensor.name, start, stop).to(tensor.dtype)

    def _read_columns(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        if found := self._rearranged.get(tensor.name):
            return found.read_columns(start, stop).to(tensor.dtype)
        return self._inner.read_columns(tensor.name, start, stop).to(tensor.dtype)
