"""Products ΔW = s·B·A of thin factors, in blocks of rows; and matrices of a low rank instead of large ones. Float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from mergekern.kernels.low_rank import on_cpu as low_rank
from mergekern.kernels.trim.on_cpu import kth_largest
from mergekern.kernels.truncation.on_cpu import leading
from mergekern.merging.adapters.elements import Elements
from mergekern.merging.elementwise import mask_key

# Rows of products that are computed together: 8 MB for matrices of 4096 columns.
ROWS = 256


class Update(NamedTuple):
    """What one adapter adds to a module: weight·scale·B·A.

    Attributes:
        b, a: factors (m, r) and (r, n), float64.
        scale: s of the adapter.
        weight: what the adapter weighs in the merge.
        content: hash of module and factors, of which random masks are functions.
    """

    b: np.ndarray
    a: np.ndarray
    scale: float = 1.0
    weight: float = 1.0
    content: str = ""

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of the first row, rows of s·B·A); every time the same bits."""
        for start in range(0, len(self.b), ROWS):
            yield start, (self.b[start : start + ROWS] @ self.a) * self.scale

    def key(self, seed: int, what: str) -> int:
        """Return the key of a random mask of one of its arrays."""
        return mask_key(seed, what, self.content)


class Merged(NamedTuple):
    """Merged factors b (m, r) and a (r, n), float64, whose product is ΔW.

    Attributes:
        square: ‖ΔW‖² before it was approximated by one of rank r; 0 where it was not.
        lost: ‖ΔW − B·A‖².
    """

    b: np.ndarray
    a: np.ndarray
    square: float = 0.0
    lost: float = 0.0


def truncated_sum(b: np.ndarray, a: np.ndarray, rank: int) -> Merged:
    """Return the best approximation of rank r to B·A, B (m, R) and A (R, n), without forming it.

    B = Q_b·T_b and Aᵀ = Q_a·T_a by QR; the SVD of the small T_b·T_aᵀ gives that of the product. The result has
    B = U_r·Σ_r and A = V_rᵀ. R may be any number; r is at most min(R, m, n).

    >>> found = truncated_sum(np.eye(2), np.diag([3.0, 4.0]), 1)
    >>> np.abs(found.b @ found.a), found.square, found.lost
    (array([[0., 0.],
           [0., 4.]]), 25.0, 9.0)
    """
    count = min(*b.shape, a.shape[1])
    left, right = np.empty((count, len(b))), np.empty((count, a.shape[1]))
    values = low_rank.thin_svd(np.ascontiguousarray(b.T), a.copy(), left, right)
    squares = np.square(values)
    merged = np.ascontiguousarray((left[:rank] * values[:rank, None]).T)
    return Merged(merged, right[:rank].copy(), float(squares.sum()), float(squares[rank:].sum()))


def merged_product(updates: Sequence[Update], elements: Elements) -> np.ndarray:
    """Return ΔW (m, n) of what `elements` does to the products W_i. Of those only some rows are held at a time.

    >>> Elements(density=0.5).kept(4)
    2
    >>> one = Update(np.array([[1.0], [3.0]]), np.array([[1.0, -2.0]]), weight=2.0)
    >>> merged_product([one], Elements(density=0.5))
    array([[  0.,   0.],
           [  6., -12.]])
    """
    rows, columns = len(updates[0].b), updates[0].a.shape[1]
    thresholds = [_threshold(update, elements.kept(rows * columns)) for update in updates]
    keys = [update.key(elements.seed, "product") for update in updates]
    weights = [update.weight for update in updates]
    out = np.empty((rows, columns))
    for blocks in zip(*(update.blocks() for update in updates), strict=True):
        start = blocks[0][0]
        thinned = [
            elements.thinned(block, threshold, key, start * columns)
            for (_, block), threshold, key in zip(blocks, thresholds, keys, strict=True)
        ]
        out[start : start + ROWS] = elements.merged(thinned, weights)
    return out


def _threshold(update: Update, kept: int | None) -> float:
    """Return the least magnitude of the largest elements of s·B·A."""
    if kept is None or kept == 0:
        return 0.0 if kept is None else np.inf

    def blocks() -> Iterator[tuple[None, torch.Tensor]]:
        for _, block in update.blocks():
            yield None, torch.from_numpy(block.reshape(-1))

    return kth_largest(blocks, len(update.b) * update.a.shape[1], kept)


def truncated(matrix: np.ndarray, rank: int) -> Merged:
    """Return the best approximation of rank r to a matrix (m, n), which is overwritten by the difference.

    Where fewer singular values are above 1e-7 of the largest, the other columns of B and rows of A are zeros.

    >>> found = truncated(np.diag([1.0, 3.0]), 1)
    >>> (found.b @ found.a).round(12), round(found.square, 12), round(found.lost, 12)
    (array([[0., 0.],
           [0., 3.]]), 10.0, 1.0)
    """
    square = float(np.square(matrix).sum())
    b, a = np.zeros((len(matrix), rank)), np.zeros((rank, matrix.shape[1]))
    if square:
        found = leading(matrix, rank)
        b[:, : len(found.values)] = found.left * found.values
        a[: len(found.values)] = found.right.T
        for start in range(0, len(matrix), ROWS):
            matrix[start : start + ROWS] -= b[start : start + ROWS] @ a
    return Merged(b, a, square, float(np.square(matrix).sum()))
