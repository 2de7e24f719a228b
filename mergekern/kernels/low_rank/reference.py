"""The float64 oracle of `low_rank`: the matrices themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekern.kernels.low_rank import Comparison

# Factors of one model: left (r, m) and right (r, n).
Factors = tuple[np.ndarray, np.ndarray]


def compare(models: Sequence[Factors], k: int) -> Comparison:
    """Return what `on_cpu.compare` returns; see the package's docstring.

    >>> one = np.eye(2)[:1], np.eye(3)[:1]
    >>> compare([one, (2 * one[0], one[1])], 1).inner
    array([[1., 2.],
           [2., 4.]])
    """
    deltas = [left.T @ right for left, right in models]
    inner = np.array([[np.vdot(a, b) for b in deltas] for a in deltas])
    ranks = [min(k, len(left)) for left, _ in models]
    svds = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = [u[:, :rank] for (u, _, _), rank in zip(svds, ranks, strict=True)]
    right = [vt[:rank].T for (_, _, vt), rank in zip(svds, ranks, strict=True)]
    overlaps = (np.array([[np.square(a.T @ b).sum() for b in side] for a in side]) for side in (left, right))
    return Comparison(inner, *overlaps)


def squared_distance(a: Factors, b: Factors) -> float:
    """Return ‖τ_a − τ_b‖².

    >>> squared_distance((np.ones((1, 2)), np.ones((1, 3))), (np.ones((1, 2)), np.zeros((1, 3))))
    6.0
    """
    return float(np.square(a[0].T @ a[1] - b[0].T @ b[1]).sum())
