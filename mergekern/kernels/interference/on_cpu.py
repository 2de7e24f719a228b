"""`interference` on the CPU: products of bases by the C++ kernel of `overlap`, or by NumPy without the extension."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mergekern.kernels.interference import Triplets
from mergekern.kernels.native import extension

# Vectors on each side of a tile of pairs, whose products are in memory at a time.
TILE_VECTORS = 128
# (R, d, k) and (C, d, k) bases -> (R, C, k, k) products.
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
    mine, theirs = (Triplets(*map(np.ascontiguousarray, some)) for some in (triplets, others or triplets))
    out = np.zeros((len(mine.values), len(theirs.values)))
    step = max(1, TILE_VECTORS // mine.values.shape[1])
    for i in range(0, len(mine.values), step):
        for j in range(0 if others is not None else i, len(theirs.values), step):
            some, more = (Triplets(*(part[at : at + step] for part in each)) for each, at in ((mine, i), (theirs, j)))
            out[i : i + step, j : j + step] = _of_tile(some, more, products)
    return out if others is not None else np.triu(out) + np.triu(out, 1).T


def _of_tile(some: Triplets, more: Triplets, products: Products) -> np.ndarray:
    """Return the interference of R models with C others, (R, C)."""
    pairs, k = (len(some.values), len(more.values)), some.values.shape[1]
    left, right = (products(*sides).reshape(-1, k, k) for sides in zip(some[1:], more[1:], strict=True))
    norms = _norms(left, np.tile(more.values, (pairs[0], 1)), right)
    return (norms + _norms(_turned(left), np.repeat(some.values, pairs[1], axis=0), _turned(right))).reshape(pairs)


def _norms(left: np.ndarray, values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ‖L·diag(σ)·Rᵀ‖₁ of M matrices; its bits do not depend on M."""
    products = np.matmul(left * values[:, None, :], _turned(right))
    return np.abs(products).reshape(len(left), -1).sum(axis=1)


def _turned(matrices: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrices.transpose(0, 2, 1))
