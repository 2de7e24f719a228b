"""`overlap` on the CPU: one symmetric product a tile of models, squared and summed in blocks."""

from __future__ import annotations

import numpy as np

from mergekern.kernels import lapack

# Columns of one tile of the product: at most 2048 × N·k float64 lie in memory.
TILE_COLUMNS = 2048


def overlap(bases: np.ndarray) -> np.ndarray:
    """Return ‖B_iᵀ B_j‖_F² of all pairs; see the package's docstring."""
    models, _, k = bases.shape
    columns = np.ascontiguousarray(bases.transpose(0, 2, 1), dtype=np.float64)  # model, column, d
    every = columns.reshape(models * k, -1).T.copy()
    out = np.empty((models, models))
    tile = max(1, TILE_COLUMNS // k)
    for start in range(0, models, tile):
        some = columns[start : start + tile].reshape(-1, columns.shape[2])
        product = lapack.multiply(some, every)
        np.square(product, out=product)
        blocks = product.reshape(-1, k, models, k).sum(axis=(1, 3))
        out[start : start + tile] = blocks
    return (out + out.T) / 2
