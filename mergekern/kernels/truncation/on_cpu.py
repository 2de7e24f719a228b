"""`truncation` on the CPU: leading eigenvectors of the Gram matrix of the short side, and a product with the matrix."""

from __future__ import annotations

import numpy as np

from mergekern.kernels.polar.on_cpu import resolved_eigen
from mergekern.kernels.spectrum import RANK_TOLERANCE
from mergekern.kernels.truncation import Triplets


def leading(matrix: np.ndarray, k: int) -> Triplets:
    """Return the k leading singular triplets of a matrix (m, n), float64; see the package's docstring.

    >>> leading(np.diag([1.0, 3.0, 2.0]), 2).values
    array([3., 2.])
    """
    of_rows = matrix.shape[0] < matrix.shape[1]
    columns = matrix.T if of_rows else matrix
    values, vectors = resolved_eigen(columns, min(k, columns.shape[1]))
    rank = int((values > RANK_TOLERANCE * values.max(initial=0.0)).sum())
    short = vectors[:rank].T
    long = columns @ (short / values[:rank])
    return Triplets(short, values[:rank], long) if of_rows else Triplets(long, values[:rank], short)
