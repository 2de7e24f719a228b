"""`overlap` on the CPU: inner products of the vectors of a tile of models, squared and summed in blocks."""

from __future__ import annotations

import numpy as np

from mergekern.kernels import vectors
from mergekern.kernels.vectors import InnerProducts, block_sums


def native(bases: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Return ‖B_iᵀ C_j‖_F² of all pairs by the C++ kernel; see the package's docstring.

    A pair depends on its own bases alone, to the last bit, and not on which of them is first.
    """
    return _overlap(bases, others, vectors.native)


def numpy(bases: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Return the same by BLAS: the last bits of a pair depend on how many models there are."""
    return _overlap(bases, others, vectors.by_blas)


def _overlap(bases: np.ndarray, others: np.ndarray | None, inner_products: InnerProducts) -> np.ndarray:
    k = bases.shape[2]
    tile = max(1, vectors.SIDE // k)
    rows = _tiles(bases, tile)
    columns = rows if others is None else _tiles(others, tile)
    out = np.empty((len(bases), len(bases if others is None else others)))
    for i, some in enumerate(rows):
        for j, more in enumerate(columns):
            at, there = slice(i * tile, (i + 1) * tile), slice(j * tile, (j + 1) * tile)
            if others is None and j < i:
                out[at, there] = out[there, at].T
                continue
            products = inner_products(some, None if some is more else more)
            starts = (np.arange(0, len(side), k) for side in (some, more))
            out[at, there] = block_sums(np.square(products, out=products), *starts)
    return out


def _tiles(bases: np.ndarray, tile: int) -> list[np.ndarray]:
    """Return the vectors of some models after those of others as rows, a tile of models at a time."""
    rows = np.ascontiguousarray(bases.transpose(0, 2, 1), dtype=np.float32)
    return [rows[start : start + tile].reshape(-1, rows.shape[2]) for start in range(0, len(rows), tile)]
