"""`truncation` on any device that torch has: eigenvectors of the float64 Gram matrix of the short side."""

from __future__ import annotations

import torch

from mergekern.kernels.polar.on_cpu import RESOLVED
from mergekern.kernels.spectrum import RANK_TOLERANCE
from mergekern.kernels.truncation import Triplets


def leading(matrix: torch.Tensor, k: int) -> Triplets:
    """Return the k leading singular triplets of a matrix (m, n), on its device; see the package's docstring.

    If the Gram matrix does not resolve all of them, they come from an SVD.

    >>> leading(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2).values
    tensor([3., 2.], dtype=torch.float64)
    """
    if matrix.shape[0] < matrix.shape[1]:
        left, values, right = leading(matrix.mT, k)
        return Triplets(right, values, left)
    columns = matrix.double()
    squares, vectors = torch.linalg.eigh(columns.mT @ columns)
    squares, vectors = squares.flip(0)[:k].clamp(min=0.0), vectors.flip(1)[:, :k]
    values, largest = squares.sqrt(), squares[:1].sqrt()
    is_weak = (values < RESOLVED * largest) & (values > RANK_TOLERANCE / 10 * largest)
    if is_weak.any():
        _, values, rows = torch.linalg.svd(columns, full_matrices=False)
        values, vectors = values[:k], rows[:k].mT
    rank = int((values > RANK_TOLERANCE * largest).sum())
    vectors, values = vectors[:, :rank], values[:rank]
    return Triplets(columns @ (vectors / values), values, vectors)
