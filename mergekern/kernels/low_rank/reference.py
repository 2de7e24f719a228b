"""The float64 oracle of `low_rank`, which forms the task matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Factors of one model: left (r, m) and right (r, n).
Factors = tuple[np.ndarray, np.ndarray]


def inner(models: Sequence[Factors]) -> np.ndarray:
    """Return the inner products of all pairs; see the package's docstring.

    >>> one = np.eye(2)[:1], np.eye(3)[:1]
    >>> inner([one, (2 * one[0], one[1])])
    array([[1., 2.],
           [2., 4.]])
    """
    deltas = [left.T @ right for left, right in models]
    return np.array([[np.vdot(a, b) for b in deltas] for a in deltas])


def squared_distance(a: Factors, b: Factors) -> float:
    """Return ‖τ_a − τ_b‖².

    >>> squared_distance((np.ones((1, 2)), np.ones((1, 3))), (np.ones((1, 2)), np.zeros((1, 3))))
    6.0
    """
    return float(np.square(a[0].T @ a[1] - b[0].T @ b[1]).sum())
