"""Correlations that are NaN, without a warning, for constant values and for fewer than two values."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

# Relative to the size of the values: rounding that remains of a constant after its mean is subtracted.
ROUNDING = 1e-13


def pearson_r(a: np.ndarray, b: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return Pearson's r of two (n,) arrays, in [-1, 1]; NaN where either is constant.

    Args:
        a, b: (n,) values.
        weights: (n,) non-negative weights of the n points; all 1 if None.

    >>> round(pearson_r(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 7.0])), 4)
    0.9934
    >>> pearson_r(np.array([1.0, 1.0]), np.array([1.0, 2.0]))
    nan
    """
    weights = np.ones(len(a)) if weights is None else weights
    total = weights.sum()
    if len(a) < 2 or not total > 0:
        return float("nan")
    centred = [values - weights @ values / total for values in (a, b)]
    norms = [float(np.sqrt(weights @ values**2)) for values in centred]
    for norm, values in zip(norms, (a, b), strict=True):
        if not norm > ROUNDING * np.sqrt(total) * np.abs(values).max():
            return float("nan")
    return float(np.clip((weights * centred[0]) @ centred[1] / (norms[0] * norms[1]), -1, 1))


def pearson_of_columns(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (k,) correlations of each column of (n, k) with y, (n,), as `pearson_r` returns one.

    >>> pearson_of_columns(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]), np.array([2.0, 4.0, 7.0])).round(4).tolist()
    [0.9934, nan]
    """
    values = np.column_stack([columns, y])
    if len(y) < 2:
        return np.full(columns.shape[1], np.nan)
    centred = values - values.mean(0)
    norms = np.sqrt((centred**2).sum(0))
    norms[~(norms > ROUNDING * np.sqrt(len(y)) * np.abs(values).max(0))] = np.nan
    return np.clip(centred[:, -1] @ centred[:, :-1] / (norms[-1] * norms[:-1]), -1, 1)


def spearman_rho(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation of two (n,) arrays, in [-1, 1]; NaN where either is constant.

    >>> round(spearman_rho(np.array([1.0, 2.0, 3.0]), np.array([1.0, 27.0, 8.0])), 4)
    0.5
    """
    return pearson_r(rankdata(a), rankdata(b))
