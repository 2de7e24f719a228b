"""gram: inner products and squared distances of N task vectors, one tensor at a time.

    inner[i, j]            = <τ_i, τ_j>,      τ_i = tuned_i − base
    squared_distance[i, j] = ‖τ_i − τ_j‖²

Inputs: base (D,) or None for zero, tuned N × (D,), each in its own storage dtype (float64, float32, float16,
bfloat16, float8_e4m3fn, float8_e5m2). Outputs: two (N, N) float64 matrices, symmetric. The difference is exact
and the sums are float64.

Bytes: (N + 1)·D·itemsize read once. Flops: N(N + 1)·D.

Why squared distances are a result of their own: for models that differ by 1e-6 of their norm,
g_ii + g_jj − 2 g_ij keeps three digits at best. Where it cancels below `CANCELLATION` it is replaced by the sum of
(tuned_i − tuned_j)², in which the base does not appear.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Float64 sums over a tensor are good to about 1e-15 of g_ii + g_jj; a difference below this share of it
# would be off by more than 1e-7 relative.
CANCELLATION = 1e-8


class Gram(NamedTuple):
    """Inner products and squared distances of N task vectors, (N, N) float64 each; sums over tensors add up."""

    inner: np.ndarray
    squared_distance: np.ndarray


def distances_from_inner(inner: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return squared distances from inner products, and the pairs i < j for which cancellation spoils them.

    >>> distances_from_inner(np.array([[4.0, 1.0], [1.0, 9.0]]))[0]
    array([[ 0., 11.],
           [11.,  0.]])
    """
    square = np.diagonal(inner)
    size = square[:, None] + square[None, :]
    with np.errstate(invalid="ignore"):  # infinite weights are reported by the caller
        distance = np.maximum(size - 2.0 * inner, 0.0)
    np.fill_diagonal(distance, 0.0)
    spoilt = np.triu(distance <= CANCELLATION * size, 1) & (size > 0)
    return distance, [(int(i), int(j)) for i, j in np.argwhere(spoilt)]
