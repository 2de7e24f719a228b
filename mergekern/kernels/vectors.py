"""Inner products of vectors, and sums over blocks of them. Each depends on its own vectors only, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mergekern.kernels import lapack
from mergekern.kernels.native import extension, row_addresses

# (rows, columns or None for the rows themselves) -> (R, C).
InnerProducts = Callable[[np.ndarray, np.ndarray | None], np.ndarray]

# Vectors on one side of a tile of products. The chunks and sums of a tile fit a private cache of 2 MiB.
SIDE = 192


def native(rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Return <row, column> for all rows of two matrices, (R, C) float64, by the C++ kernel `gram` on this thread.

    Args:
        rows, columns: (R, d) and (C, d) float32 or float64, C-contiguous; None for the rows themselves.

    >>> native(np.eye(2), np.array([[3.0, 4.0]]))
    array([[3.],
           [4.]])
    """
    left = row_addresses(rows)
    right = left if columns is None else row_addresses(columns)
    out = np.empty((len(left), len(right)))
    for start in range(0, len(left), SIDE):
        some, at = left[start : start + SIDE], slice(start, start + SIDE)
        for other in range(0 if columns is not None else start, len(right), SIDE):
            there = slice(other, other + SIDE)
            split = 0 if columns is None and other == start else len(some)
            both = some + right[there] if split else some
            sums = np.zeros((len(both),) * 2)
            extension.add_gram((0, 0), both, rows.shape[1], split, 1, sums)
            out[at, there] = sums[: len(some), split:]
            if columns is None:
                out[there, at] = out[at, there].T
    return out


def by_blas(rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Return <row, column> for all rows by BLAS. The last bits of a product depend on the number of vectors."""
    wide = np.ascontiguousarray((rows if columns is None else columns).T, dtype=np.float64)
    out = lapack.multiply(np.ascontiguousarray(rows, dtype=np.float64), wide)
    return out if columns is not None else (out + out.T) / 2


inner_products: InnerProducts = by_blas if extension is None else native


def block_sums(values: np.ndarray, row_starts: np.ndarray, column_starts: np.ndarray) -> np.ndarray:
    """Return the sum over each block of a matrix. The transposed block has the same sum, to the last bit.

    >>> block_sums(np.arange(6.0).reshape(2, 3), np.array([0]), np.array([0, 1]))
    array([[ 3., 12.]])
    """
    by_rows = np.add.reduceat(np.add.reduceat(values, row_starts, axis=0), column_starts, axis=1)
    by_columns = np.add.reduceat(np.add.reduceat(values, column_starts, axis=1), row_starts, axis=0)
    return (by_rows + by_columns) / 2
