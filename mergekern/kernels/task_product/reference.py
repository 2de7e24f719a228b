"""The float64 oracle of `task_product`."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def task_product(
    pairs: Sequence[tuple[torch.Tensor | None, torch.Tensor]], vectors: torch.Tensor, *, transpose: bool = False
) -> torch.Tensor:
    """Return (tuned − base) V of every pair, or (tuned − base)ᵀ V; see the package's docstring.

    >>> tuned = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> task_product([(torch.ones(2, 2), tuned)], torch.ones(1, 2, 1, dtype=torch.float64))
    tensor([[[1.],
             [5.]]], dtype=torch.float64)
    """
    deltas = [tuned.double() if base is None else tuned.double() - base.double() for base, tuned in pairs]
    return torch.stack(
        [(delta.T if transpose else delta) @ some.double() for delta, some in zip(deltas, vectors, strict=True)]
    )
