"""`variation` in operators of torch, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def variances(base: torch.Tensor, tuned: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the variance of each element over the models, (D,) on the device; see the package's docstring."""
    deltas = _deltas(base, tuned)
    mean = _sum(deltas) / len(deltas)
    return _sum([(delta - mean).square() for delta in deltas]) / len(deltas)


def energies(base: torch.Tensor, tuned: Sequence[torch.Tensor], least: float) -> np.ndarray:
    """Return the sum of squares of each model over the elements of at least some variance, (N,)."""
    varies = variances(base, tuned) >= least
    return np.array([float(torch.where(varies, delta.square(), 0.0).sum()) for delta in _deltas(base, tuned)])


def changes(base: torch.Tensor, tuned: Sequence[torch.Tensor], epsilon: float) -> np.ndarray:
    """Return how many elements each model changes together with others, and how many alone, (2, N)."""
    changed = torch.stack([delta.abs() > epsilon for delta in _deltas(base, tuned)])
    is_alone = changed.sum(0) == 1
    return torch.stack([(changed & ~is_alone).sum(1), (changed & is_alone).sum(1)]).cpu().numpy()


def _deltas(base: torch.Tensor, tuned: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    origin = base.double()
    return [tensor.double() - origin for tensor in tuned]


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a sum in the order of the models."""
    found = torch.zeros_like(parts[0])
    for part in parts:
        found = found + part
    return found
