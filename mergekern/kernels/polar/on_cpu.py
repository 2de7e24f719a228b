"""`polar` on the CPU: the inverse root of the Gram matrix of the short side, from its eigenvectors, in float64.

An iteration of products takes 5 to 15 times 3 products of the short side; the eigenvectors cost as much as 4 of them.
"""

from __future__ import annotations

import numpy as np

from mergekern.kernels.eigen import leading_eigen
from mergekern.kernels.spectrum import RANK_TOLERANCE

# A Gram matrix holds σ² to 1e-16·σ₁², and turns directions by about 1e-16·(σ₁/σ)². What it resolves worse than 1e-6
# is taken from an SVD instead.
RESOLVED = 1e-5


def polar(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the orthogonal factor, (m, n), and the singular values, descending; both float64.

    >>> polar(np.array([[0.0, -2.0], [0.0, 0.0]]))[0]
    array([[ 0., -1.],
           [ 0.,  0.]])
    """
    if matrix.shape[0] < matrix.shape[1]:
        root, values = inverse_root(matrix.T)
        return root @ matrix, values
    root, values = inverse_root(matrix)
    return matrix @ root, values


def inverse_root(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return R = (XᵀX)^(−1/2), so that X·R is the orthogonal factor of X, and the singular values, descending.

    Args:
        columns: X (m, p), float64; null directions have no inverse and stay at zero.
    """
    values, vectors = resolved_eigen(columns)
    rank = int((values > RANK_TOLERANCE * values.max(initial=0.0)).sum())
    values[rank:] = 0.0
    root = vectors[:rank].T @ (vectors[:rank] / values[:rank, None])
    return root, values


def resolved_eigen(columns: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` largest singular values of X (m, p), descending, and the right singular vectors as rows.

    From the Gram matrix XᵀX where it resolves them, else from an SVD of X. Values that are zero to RANK_TOLERANCE
    may be returned as anything below it.
    """
    squares, vectors = leading_eigen(columns.T @ columns, count)
    largest = float(squares.max(initial=0.0))
    if ((squares > 0.5 * RANK_TOLERANCE**2 * largest) & (squares < RESOLVED**2 * largest)).any():
        _, values, vectors = np.linalg.svd(columns, full_matrices=columns.shape[0] < columns.shape[1])
        values = np.append(values, np.zeros(max(columns.shape[1] - len(values), 0)))
        return values[: len(squares)], vectors[: len(squares)]
    return np.sqrt(np.maximum(squares, 0.0)), vectors
