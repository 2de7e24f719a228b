"""The float64 oracle of `overlap`."""

from __future__ import annotations

import numpy as np


def overlap(bases: np.ndarray) -> np.ndarray:
    """Return ‖B_iᵀ B_j‖_F² of all pairs; see the package's docstring.

    >>> overlap(np.array([[[1.0], [0.0]], [[0.6], [0.8]]])).round(2)
    array([[1.  , 0.36],
           [0.36, 1.  ]])
    """
    bases = bases.astype(np.float64)
    return np.array([[np.square(a.T @ b).sum() for b in bases] for a in bases])
