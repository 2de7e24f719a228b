"""The float64 oracle of `interference`: the definition, with the stacked bases of both models."""

from __future__ import annotations

import numpy as np

from mergekern.kernels.interference import Triplets


def interference(triplets: Triplets) -> np.ndarray:
    """Return ‖(UᵀU − I) Σ (VᵀV − I)‖₁ of all pairs; see the package's docstring.

    >>> one = np.array([[1.0], [0.0]]), np.array([[0.6], [0.8]])
    >>> interference(Triplets(np.array([[5.0], [10.0]]), np.stack(one), np.stack(one))).round(2)
    array([[10. ,  5.4],
           [ 5.4, 20. ]])
    """
    models = range(len(triplets.values))
    return np.array([[_of_pair(triplets, i, j) for j in models] for i in models])


def _of_pair(triplets: Triplets, i: int, j: int) -> float:
    values, left, right = (np.concatenate([side[i], side[j]], axis=-1).astype(np.float64) for side in triplets)
    within = np.eye(len(values))
    return float(np.abs((left.T @ left - within) @ np.diag(values) @ (right.T @ right - within)).sum())
