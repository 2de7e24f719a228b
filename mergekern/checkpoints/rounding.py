"""Rounding is not training: tensors that differ from the base only by the narrower dtype they are stored in.

A model that is saved as bfloat16 beside a float32 base differs from it everywhere, also where nothing was trained. A
tensor that equals the base rounded as the model stores it, value for value, counts as unchanged: `stream.Layer` gives
the base in its place, so that its task vector is zero in every statistic, sketch and merge. In a tensor that did change
the error of rounding is a part of the task vector; `rounding_energy` says how large it can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from mergekern.checkpoints.checkpoint import Checkpoint, StoredTensor

# Elements that are compared at first, and then at a time: of a tensor that was trained hardly any need be read.
_FIRST, _STEP = 1 << 12, 1 << 20


class Source(NamedTuple):
    """A tensor of one checkpoint, by the name that it has there."""

    checkpoint: Checkpoint
    name: str

    @property
    def stored(self) -> StoredTensor:
        """The tensor as the checkpoint describes it."""
        return self.checkpoint.tensors[self.name]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor."""
        return self.checkpoint.read_range(self.name, start, stop)

    def rounded(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Return values, elements from `start` on, as this checkpoint would hold them."""
        return self.checkpoint.rounded(self.name, values, start)


def may_round(wide: Source, narrow: Source) -> bool:
    """Tell whether to store the values of one tensor as another is stored can change them; nothing is read."""
    if narrow.checkpoint.change(narrow.name) != "whole":
        return False
    if wide.stored.scale and narrow.stored.scale:
        return False  # both are quantised, by scales of their own
    return narrow.stored.scale is not None or not holds(narrow.stored.dtype, wide.stored.read_dtype)


def holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Tell whether a dtype holds every finite value of another one.

    >>> holds(torch.float32, torch.bfloat16), holds(torch.bfloat16, torch.float16), holds(torch.float16, torch.bfloat16)
    (True, False, False)
    """
    ours, theirs = torch.finfo(dtype), torch.finfo(other)
    smallest = (info.smallest_normal * info.eps for info in (ours, theirs))
    return ours.eps <= theirs.eps and ours.max >= theirs.max and next(smallest) <= next(smallest)


def equals_rounded(wide: Source, narrow: Source) -> bool:
    """Tell whether a tensor is another one rounded as it is stored, value for value; it stops where they differ.

    Values that are finite in one of the two only, as where a conversion overflowed, are different.

    >>> from mergekern.checkpoints import open_checkpoint
    >>> base = Source(open_checkpoint({"w": torch.tensor([1.0, 1e-3])}, "base"), "w")
    >>> equals_rounded(base, Source(open_checkpoint({"w": torch.tensor([1.0, 1e-3]).bfloat16()}, "a"), "w"))
    True
    """
    for start, stop in _ranges(wide.stored.count):
        values, held = wide.read(start, stop), narrow.read(start, stop)
        if not same_values(narrow.rounded(values, start), held):
            return False
        if not torch.equal(_decoded(values).isfinite(), _decoded(held).isfinite()):
            return False
    return True


def same_values(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors have the same values; NaN is the same as NaN, and 0 as -0.

    >>> same_values(torch.tensor([0.0, float("nan")]), torch.tensor([-0.0, float("nan")], dtype=torch.float16))
    True
    """
    first, second = _decoded(first), _decoded(second)
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def is_finite(source: Source) -> bool:
    """Tell whether all values of a tensor are finite."""
    return all(_decoded(source.read(start, stop)).isfinite().all() for start, stop in _ranges(source.stored.count))


def rounding_energy(wide: Source, narrow: Source) -> float:
    """Return the sum of squares of what rounding takes from a tensor: ‖wide − rounded(wide)‖²; NaN and Inf excepted."""
    total = 0.0
    for start in range(0, wide.stored.count, _STEP):
        values = wide.read(start, min(start + _STEP, wide.stored.count))
        with np.errstate(invalid="ignore"):  # infinity less itself
            lost = values.double().numpy() - narrow.rounded(values, start).double().numpy()
        # By NumPy, on one thread: torch's sums depend on the number of threads.
        total += float(np.square(lost, where=np.isfinite(lost), out=np.zeros_like(lost)).sum())
    return total


def note_rounding(base: Checkpoint, models: Sequence[Checkpoint], tensors: Sequence[Sequence[str]]) -> None:
    """Say of each model in how many tensors its dtype rounds the values of the base; nothing is read.

    Args:
        base, models: what the models are compared with, and the models, which get the notes.
        tensors: names of each tensor, in the base, then in each model.
    """
    for position, model in enumerate(models):
        found: dict[tuple[torch.dtype, torch.dtype], int] = {}
        for names in tensors:
            of_base, own = Source(base, names[0]), Source(model, names[1 + position])
            if may_round(of_base, own):
                dtypes = own.stored.dtype, of_base.stored.dtype
                found[dtypes] = found.get(dtypes, 0) + 1
        for (narrow, wide), count in found.items():
            note = (
                f"{count} of {len(tensors)} tensors are stored as {_name(narrow)}, and as {_name(wide)} in the "
                "base; those that equal the rounded base count as unchanged, and in others rounding alone moves a "
                f"value by up to {50 * torch.finfo(narrow).eps:.2g} % of it"
            )
            if note not in model.notes:
                model.notes.append(note)


def _ranges(count: int) -> Iterator[tuple[int, int]]:
    start, step = 0, _FIRST
    while start < count:
        yield start, min(start + step, count)
        start, step = start + step, _STEP


def _decoded(values: torch.Tensor) -> torch.Tensor:
    """Return values in a dtype that torch compares."""
    return values if values.dtype.itemsize > 1 else values.float()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
