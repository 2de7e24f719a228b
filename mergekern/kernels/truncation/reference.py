"""The float64 oracle of `truncation`: a full SVD."""

from __future__ import annotations

import numpy as np

from mergekern.kernels.spectrum import RANK_TOLERANCE
from mergekern.kernels.truncation import Triplets


def leading(matrix: np.ndarray, k: int) -> Triplets:
    """Return the k leading singular triplets of a matrix (m, n).

    >>> leading(np.diag([1.0, 3.0, 2.0]), 2).values
    array([3., 2.])
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    k = min(k, int((values > RANK_TOLERANCE * values.max(initial=0.0)).sum()))
    return Triplets(left[:, :k], values[:k], right[:k].T)
