"""The oracle of `polar`: a full SVD in float64."""

from __future__ import annotations

import numpy as np

from mergekern.kernels.spectrum import RANK_TOLERANCE


def polar(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the orthogonal factor, (m, n), and the singular values, descending; both float64.

    >>> polar(np.array([[0.0, -2.0], [0.0, 0.0]]))[0]
    array([[ 0., -1.],
           [ 0.,  0.]])
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > RANK_TOLERANCE * values.max(initial=0.0)
    return left[:, kept] @ right[kept], values
