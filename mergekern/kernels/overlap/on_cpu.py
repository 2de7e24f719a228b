"""`overlap` on the CPU: the C++ kernel, or NumPy where the extension was not built."""

from __future__ import annotations

import numpy as np

from mergekern.kernels import lapack
from mergekern.kernels.native import extension

# Number of vectors in a tile of the NumPy path. Its product, 2048 × N·k float64, must fit in memory.
TILE_VECTORS = 2048


def native(bases: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Return ‖B_iᵀ C_j‖_F² of all pairs by the C++ kernel, on the calling thread only; see the package's docstring.

    The result for a pair depends on its own bases only, to the last bit, and not on their order.
    """
    return extension.overlap(np.ascontiguousarray(bases), None if others is None else np.ascontiguousarray(others))


def numpy(bases: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Return ‖B_iᵀ C_j‖_F² of all pairs by BLAS. The last bits of a pair depend on the number of models."""
    k = bases.shape[2]
    columns = _vectors(bases if others is None else others)
    every = np.ascontiguousarray(columns.reshape(-1, columns.shape[2]).T)
    out = np.empty((len(bases), len(columns)))
    step = max(1, TILE_VECTORS // k)
    for start in range(0, len(bases), step):
        some = _vectors(bases[start : start + step])
        product = lapack.multiply(some.reshape(-1, some.shape[2]), every)
        np.square(product, out=product)
        out[start : start + step] = product.reshape(-1, k, len(columns), k).sum(axis=(1, 3))
    return out if others is not None else (out + out.T) / 2


def _vectors(bases: np.ndarray) -> np.ndarray:
    """Return bases with contiguous vectors, (models, k, d) float64."""
    return np.ascontiguousarray(bases.transpose(0, 2, 1), dtype=np.float64)
