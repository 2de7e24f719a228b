"""Matrices with other rows: their own in another order, rows of other checkpoints, means of several, and padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from mergekern.checkpoints.checkpoint import Checkpoint

# Elements that are held at a time while the mean of all rows is taken.
_AT_A_TIME = 1 << 22


@dataclass(frozen=True, eq=False)
class RowsOf:
    """Rows of one tensor, for rows of a result.

    Attributes:
        checkpoint, name: the tensor.
        index: int64, (rows of the result,): which row of the tensor it is; -1 for none.
    """

    checkpoint: Checkpoint
    name: str
    index: torch.Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the rows of a tensor come from, if not simply from itself; of a vector, its elements.

    Attributes:
        own: int64, (rows,): the row of the tensor itself; -1 for those that come from elsewhere.
        others: where these come from: the mean of all that have such a row; zeros where none has.
        padding: how many rows come after them, each their mean.
    """

    own: torch.Tensor
    others: Sequence[RowsOf] = ()
    padding: int = 0

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.own) + self.padding


class Rearranged:
    """A tensor of a checkpoint with other rows; read in parts, nothing is held but the mean row.

    Args:
        checkpoint, name: the tensor.
        rows: its rows.

    >>> from mergekern.checkpoints import open_checkpoint
    >>> held = open_checkpoint({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    >>> Rearranged(held, "w", Rows(torch.tensor([1, 1, -1]), padding=1)).read(0, 8).view(4, 2)
    tensor([[3.0000, 4.0000],
            [3.0000, 4.0000],
            [0.0000, 0.0000],
            [2.0000, 2.6667]])
    """

    def __init__(self, checkpoint: Checkpoint, name: str, rows: Rows) -> None:
        self._checkpoint, self._name, self._rows = checkpoint, name, rows
        held = checkpoint.tensors[name]
        self._dtype, self._width = held.read_dtype, math.prod(held.shape[1:])

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor, in the dtype in which it is read."""
        first, last = start // self._width, -(-stop // self._width)
        known = len(self._rows.own)
        parts = [self._read_rows(min(first, known), min(last, known))]
        if last > known:
            parts.append(self._mean.expand(last - max(first, known), -1))
        return torch.cat(parts).reshape(-1)[start - first * self._width : stop - first * self._width]

    def read_columns(self, start: int, stop: int) -> torch.Tensor:
        """Return columns [start, stop) of a matrix."""
        count = self._rows.count
        rows = max(1, _AT_A_TIME // self._width)
        parts = [
            self.read(first * self._width, min(first + rows, count) * self._width).view(-1, self._width)[:, start:stop]
            for first in range(0, count, rows)
        ]
        return torch.cat(parts)

    def _read_rows(self, first: int, last: int) -> torch.Tensor:
        """Return rows that are no padding, (last - first, width)."""
        own = self._rows.own[first:last]
        elsewhere = own < 0
        if not elsewhere.any():
            return _gather(self._checkpoint, self._name, own)
        found = torch.empty((last - first, self._width), dtype=self._dtype)
        found[~elsewhere] = _gather(self._checkpoint, self._name, own[~elsewhere])
        total = torch.zeros((int(elsewhere.sum()), self._width), dtype=torch.float64)
        givers = torch.zeros((len(total), 1), dtype=torch.float64)
        for other in self._rows.others:
            index = other.index[first:last][elsewhere]
            total[index >= 0] += _gather(other.checkpoint, other.name, index[index >= 0]).to(torch.float64)
            givers[index >= 0] += 1
        found[elsewhere] = (total / givers.clamp(min=1)).to(self._dtype)
        return found

    @cached_property
    def _mean(self) -> torch.Tensor:
        known, rows = len(self._rows.own), max(1, _AT_A_TIME // self._width)
        total = torch.zeros(self._width, dtype=torch.float64)
        for first in range(0, known, rows):
            total += self._read_rows(first, min(first + rows, known)).sum(0, dtype=torch.float64)
        return (total / known).to(self._dtype)


def _gather(checkpoint: Checkpoint, name: str, index: torch.Tensor) -> torch.Tensor:
    """Return rows of a tensor, (rows, width); those that follow each other are read at once."""
    held = checkpoint.tensors[name]
    width = math.prod(held.shape[1:])
    if not len(index):
        return torch.empty((0, width), dtype=held.read_dtype)
    breaks = (index.diff() != 1).nonzero().flatten() + 1
    places = [0, *breaks.tolist(), len(index)]
    starts = index[places[:-1]].tolist()
    parts = [
        checkpoint.read_range(name, start * width, (start + stop - begin) * width)
        for start, (begin, stop) in zip(starts, pairwise(places), strict=True)
    ]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).view(-1, width)
