"""What is known of one tensor of a checkpoint before it is read."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch

from mergekern.checkpoints.dtypes import WIDENED


@dataclass(frozen=True)
class StoredTensor:
    """A floating-point tensor of a checkpoint.

    `storage` identifies the memory behind it: tensors of one checkpoint with equal `storage` are tied.
    `scale` names the tensor that holds the scales of a float8 tensor, if there is one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: Hashable
    scale: str | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def read_dtype(self) -> torch.dtype:
        """The dtype that reads return: float32 for scaled or unusual float8, else the stored one."""
        return torch.float32 if self.scale or self.dtype in WIDENED else self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor as read."""
        return self.count * self.read_dtype.itemsize
