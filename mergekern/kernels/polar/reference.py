"""The float64 oracle of `polar`: a full SVD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekern.kernels.spectrum import RANK_TOLERANCE


def polar(matrix: np.ndarray) -> np.ndarray:
    """Return the orthogonal factor, (m, n) float64.

    >>> polar(np.array([[0.0, -2.0], [0.0, 0.0]]))
    array([[ 0., -1.],
           [ 0.,  0.]])
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > RANK_TOLERANCE * values.max(initial=0.0)
    return left[:, kept] @ right[kept]


def polar_product(left: Sequence[np.ndarray], weights: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """Return polar([L_1 … L_N])·diag(w_1 … w_N)·polar([R_1 … R_N])ᵀ.

    >>> polar_product([np.array([[0.0], [1.0]])], [np.array([3.0])], [np.array([[1.0], [0.0]])])
    array([[0., 0.],
           [3., 0.]])
    """
    return (polar(np.hstack(left)) * np.concatenate(weights)) @ polar(np.hstack(right)).T
