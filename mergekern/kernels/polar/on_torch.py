"""`polar` by products of matrices alone, in float64, on any device that torch has, for batches of matrices.

An odd polynomial p(A) = U·p(Σ)·Vᵀ takes three products. Each step takes the polynomial of degree 5 that is nearest to 1
on the interval in which the singular values are known to lie, which no composition of such polynomials surpasses:
Amsel, Persson, Musco and Gower, "The Polar Express", arXiv 2505.16932. From [3e-8, 1] fifteen steps reach 1 to the last
bits. Smaller values grow by a factor of 2e8 at most, so that what rounding left of a null space stays small; two steps
of which 0 is a fixed point as well then take it back to 0.

Singular values from 1e-8 to 1e-7 of the largest, which decide on the rank elsewhere, may come out between 0 and 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.spectrum import RANK_TOLERANCE

Coefficients = tuple[float, float, float]  # a, b, c of a·x + b·x³ + c·x⁵

# The norm that scales is at most p^(1/8) times the largest singular value, 2.3 times at 768.
_FLOOR = RANK_TOLERANCE / 3
# (5x³ − 3x⁵)/2 leaves 1 and its slope there alone, and takes what is below 0.8 to 0.
_TO_ZERO = (0.0, 2.5, -1.5)
# Takes 1 − ε to 1 − 5/2·ε³.
_TO_ONE = (1.875, -1.25, 0.375)


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal factor, (..., m, n) float64, on the matrix's device, without waiting for the device.

    >>> polar(torch.tensor([[0.0, -2.0], [0.0, 0.0]]))
    tensor([[ 0., -1.],
            [ 0.,  0.]], dtype=torch.float64)
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return polar(matrix.mT).mT
    if not matrix.numel():
        return matrix.double()
    factor = matrix.double()
    factor = factor / _positive(factor.abs().amax((-2, -1), keepdim=True))
    # σ₁² ≤ ‖(AᵀA)²‖_F^½
    gram = factor.mT @ factor
    factor = factor / _positive((gram @ gram).norm(dim=(-2, -1), keepdim=True)) ** 0.25
    for a, b, c in (*coefficients(_FLOOR), _TO_ZERO, _TO_ZERO):
        gram = factor.mT @ factor
        inner = b * gram + c * (gram @ gram)
        inner.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = factor @ inner
    return factor


def polar_product(
    left: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], right: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return polar([L_1 … L_N])·diag(w_1 … w_N)·polar([R_1 … R_N])ᵀ; blocks (..., m, k_i), (..., k_i), (..., n, k_i).

    >>> polar_product([torch.tensor([[0.0], [1.0]])], [torch.tensor([3.0])], [torch.tensor([[1.0], [0.0]])])
    tensor([[0., 0.],
            [3., 0.]], dtype=torch.float64)
    """
    columns, values, rows = (torch.cat(list(blocks), -1) for blocks in (left, weights, right))
    return (polar(columns) * values.double()[..., None, :]) @ polar(rows).mT


def _positive(norm: torch.Tensor) -> torch.Tensor:
    return torch.where(norm > 0, norm, 1.0)


@functools.cache
def coefficients(floor: float) -> tuple[Coefficients, ...]:
    """Return the polynomials that take [floor, 1] to 1, one after the other, to the last bits of float64.

    >>> from numpy.polynomial import Polynomial
    >>> x = np.geomspace(1e-6, 1, 1000)
    >>> for a, b, c in coefficients(1e-6):
    ...     x = a * x + b * x**3 + c * x**5
    >>> bool(np.abs(x - 1).max() < 1e-14)
    True
    """
    found = []
    low, high = floor, 1.0
    while low < (1.0 - 1e-7) * high:
        a, b, c = _nearest_to_one(low / high)
        found.append((a / high, b / high**3, c / high**5))
        x = low / high
        low = a * x + b * x**3 + c * x**5
        high = 2.0 - low
    return (*found, _TO_ONE)


def _nearest_to_one(low: float) -> Coefficients:
    """Return the odd polynomial of degree 5 that is nearest to 1 on [low, 1], by Remez' exchange of extrema."""
    inner = np.array([3.0 * low + 1.0, low + 3.0]) / 4.0
    for _ in range(8):
        x = np.array([low, *inner, 1.0])
        a, b, c, _ = np.linalg.solve(np.stack([x, x**3, x**5, [1.0, -1.0, 1.0, -1.0]], axis=1), np.ones(4))
        root = np.sqrt(9.0 * b * b - 20.0 * a * c)  # p′ is a quadratic in x²
        inner = np.sqrt((-3.0 * b + np.array([-root, root])) / (10.0 * c))
    return float(a), float(b), float(c)
