"""The float64 oracle of `gram`: the formula, with all differences in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.kernels.gram import Gram


def gram(base: torch.Tensor | None, tuned: Sequence[torch.Tensor]) -> Gram:
    """Return the Gram of task vectors; see the package's docstring.

    >>> gram(torch.zeros(2), [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])]).inner
    array([[25.,  3.],
           [ 3.,  1.]])
    """
    wide = torch.stack([t.to(torch.float64) for t in tuned])
    delta = wide if base is None else wide - base.to(torch.float64)
    difference = wide[:, None] - wide[None, :]
    return Gram((delta @ delta.T).numpy(), difference.square().sum(-1).numpy())
