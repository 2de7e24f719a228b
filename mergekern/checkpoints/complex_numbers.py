"""Complex tensors, such as tables of rotations: they may be there where nothing changes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.errors import CheckpointError


def refuse_changed_complex(base: Checkpoint, models: Sequence[Checkpoint]) -> None:
    """Raise CheckpointError unless the complex tensors of all models are those of the base, to the last bit.

    They have no task vector, and a merge holds the base's. Nothing is read where no model has any.
    """
    for model in models:
        for name in model.complex_names:
            if name not in base.complex_names:
                raise CheckpointError(
                    f"{model.source}: tensor {name!r} is complex, and {base.name!r} has none of this name; only real "
                    "tensors are compared and merged: remove it, or store it as real numbers"
                )
            if not _is_same(base.read_buffer(name), model.read_buffer(name)):
                raise CheckpointError(
                    f"{model.source}: tensor {name!r} is complex and differs from that of {base.name!r}; only real "
                    "tensors are compared and merged: store it as real numbers (torch.view_as_real) in all"
                )


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(values.contiguous().reshape(-1).view(torch.uint8) for values in (one, other)))
