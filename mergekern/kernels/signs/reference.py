"""The float64 oracle of `signs`: the formulas, with all task vectors in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.kernels.signs import Signs


def signs(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], thresholds: Sequence[float]) -> Signs:
    """Return the agreement of signs of task vectors; see the package's docstring.

    >>> found = signs(None, [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])], [2.0, 0.0])
    >>> found.shared.tolist(), found.opposite[0].tolist(), found.kept_opposite[0].tolist()
    ([[2.0, 2.0], [2.0, 3.0]], [0.0, 1.0], [0.0, 1.0])
    """
    wide = torch.stack([t.to(torch.float64) for t in tuned])
    delta = wide if base is None else wide - base.to(torch.float64)
    is_kept = delta.abs() >= torch.tensor(list(thresholds), dtype=torch.float64)[:, None]
    matrices = []
    for sign in (delta.sign(), delta.sign() * is_kept):
        products = sign[:, None] * sign[None, :]
        matrices += [(products != 0).sum(-1).double().numpy(), (products < 0).sum(-1).double().numpy()]
    matrices.append((delta.abs() @ delta.abs().T).numpy())
    return Signs(delta.sum(-1).numpy(), *matrices)
