"""`interference` on the CPU: products of bases by the C++ kernel of `overlap`, or by NumPy without the extension."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mergekern.kernels.interference import Triplets
from mergekern.kernels.native import extension

# (1, d, k) and (M, d, k) bases -> (1, M, k, k) products.
Products = Callable[[np.ndarray, np.ndarray], np.ndarray]


def native(triplets: Triplets, others: Triplets | None = None) -> np.ndarray:
    """Return the interference of all pairs by the C++ kernel, on the calling thread only; see the package's docstring.

    >>> one = np.array([[1.0], [0.0]], np.float32), np.array([[0.6], [0.8]], np.float32)
    >>> native(Triplets(np.array([[5.0], [10.0]]), np.stack(one), np.stack(one))).round(2)
    array([[10. ,  5.4],
           [ 5.4, 20. ]])
    """
    return _interference(triplets, others, extension.basis_products)


def numpy(triplets: Triplets, others: Triplets | None = None) -> np.ndarray:
    """Return the interference of all pairs by NumPy."""
    return _interference(triplets, others, _products)


def _products(bases: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.einsum("ida,jdb->ijab", bases.astype(np.float64), others.astype(np.float64), optimize=True)


def _interference(triplets: Triplets, others: Triplets | None, products: Products) -> np.ndarray:
    values, *sides = (np.ascontiguousarray(part) for part in triplets)
    other_values, *other_sides = (np.ascontiguousarray(part) for part in (others or triplets))
    out = np.zeros((len(values), len(other_values)))
    for i in range(len(values)):
        first = 0 if others is not None else i
        left, right = (
            products(side[i : i + 1], other[first:])[0] for side, other in zip(sides, other_sides, strict=True)
        )
        out[i, first:] = _norms(left, other_values[first:], right)
        out[i, first:] += _norms(_turned(left), values[i : i + 1], _turned(right))
    return out if others is not None else np.triu(out) + np.triu(out, 1).T


def _norms(left: np.ndarray, values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ‖L·diag(σ)·Rᵀ‖₁ of M matrices; its bits do not depend on M."""
    products = np.matmul(left * values[:, None, :], _turned(right))
    return np.abs(products).reshape(len(left), -1).sum(axis=1)


def _turned(matrices: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrices.transpose(0, 2, 1))
