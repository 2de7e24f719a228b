"""truncation: the k leading singular triplets of a task matrix, in float64.

    τ ≈ left·diag(values)·rightᵀ,      left (m, k), values (k,) descending, right (n, k)

If fewer than k singular values exceed `RANK_TOLERANCE`·σ₁, there are only as many triplets: the directions of a null
space are arbitrary.

Backends: `on_cpu`, LAPACK, with the tridiagonal form by C++ if it was built; `on_torch`, any device.

Bytes: τ read twice. Flops, with s = min(m, n), l = max(m, n): s²l for the Gram matrix of the short side,
4/3 s³ for its tridiagonal form, 4s²k to transform back the k vectors, 2slk for those of the long side.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Triplets(NamedTuple):
    """The leading singular triplets of a matrix: left (m, k), values (k,) descending, right (n, k), float64.

    They are NumPy arrays on the CPU, and tensors on a device.
    """

    left: Any
    values: Any
    right: Any

    def matrix(self, weight: float = 1.0) -> Any:
        """Return weight·left·diag(values)·rightᵀ, (m, n)."""
        return (self.left * (weight * self.values)) @ self.right.T
