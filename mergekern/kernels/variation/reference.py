"""The float64 oracle of `variation`: the formulas in NumPy, as they are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.combine import reference


def variances(base: torch.Tensor, tuned: Sequence[torch.Tensor]) -> np.ndarray:
    """Return the variance of each element over the models, (D,).

    >>> variances(torch.zeros(2), [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])])
    array([1., 0.])
    """
    return reference.variances(_deltas(base, tuned))


def energies(base: torch.Tensor, tuned: Sequence[torch.Tensor], least: float) -> np.ndarray:
    """Return the sum of squares of each model over the elements of at least some variance, (N,)."""
    deltas = _deltas(base, tuned)
    return np.where(reference.variances(deltas) >= least, deltas**2, 0.0).sum(axis=1)


def changes(base: torch.Tensor, tuned: Sequence[torch.Tensor], epsilon: float) -> np.ndarray:
    """Return how many elements each model changes together with others, and how many alone, (2, N).

    >>> changes(torch.zeros(3), [torch.tensor([2.0, 4.0, 1.0]), torch.tensor([0.0, 2.0, 0.0])], 0.5)
    array([[1, 1],
           [2, 0]])
    """
    changed = np.abs(_deltas(base, tuned)) > epsilon
    is_alone = changed.sum(axis=0) == 1
    return np.stack([(changed & ~is_alone).sum(axis=1), (changed & is_alone).sum(axis=1)])


def _deltas(base: torch.Tensor, tuned: Sequence[torch.Tensor]) -> np.ndarray:
    origin = base.to(torch.float64).numpy().ravel()
    return np.stack([tensor.to(torch.float64).numpy().ravel() - origin for tensor in tuned])
