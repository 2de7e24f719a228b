"""`interference` in operators of torch, on any device: its products are matrix products, and what is left is small."""

from __future__ import annotations

import torch

# Vectors of the models whose pairs with all models are in memory at a time.
TILE_VECTORS = 1024


def interference(values: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the interference of all pairs, (N, N) float64, without waiting; see the package's docstring.

    Args:
        values: (N, k) leading singular values.
        left, right: (N, m, k) and (N, n, k) singular vectors.

    >>> one = torch.tensor([[[1.0], [0.0]], [[0.6], [0.8]]])
    >>> interference(torch.tensor([[5.0], [10.0]]), one, one).round(decimals=2)
    tensor([[10.0000,  5.4000],
            [ 5.4000, 20.0000]], dtype=torch.float64)
    """
    models, k = values.shape
    values, left, right = values.double(), left.double(), right.double()
    rows = []
    for start in range(0, models, step := max(1, TILE_VECTORS // k)):
        some = slice(start, start + step)
        of_left, of_right = _products(left[some], left), _products(right[some], right)
        mine, theirs = values[some, None, None, :], values[None, :, None, :]
        rows.append(_norms(of_left * theirs @ of_right.mT) + _norms(of_left.mT * mine @ of_right))
    found = torch.cat(rows)
    return found.triu() + found.triu(1).mT


def _products(some: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
    """Return B_iᵀ B_j of R models with all N, (R, N, k, k), by one product of matrices."""
    (models, size, k), others = some.shape, len(every)
    product = some.mT.reshape(models * k, size) @ every.mT.reshape(others * k, size).mT
    return product.view(models, k, others, k).transpose(1, 2)


def _norms(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.abs().sum(dim=(2, 3))
