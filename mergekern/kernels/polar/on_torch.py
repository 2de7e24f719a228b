"""`polar` by matrix products only, in float64, on any torch device, for batches of matrices.

An odd polynomial of degree 5 acts on singular values only, p(A) = U·p(Σ)·Vᵀ, and takes three matrix products. Three
stages map every singular value to 1 or to 0:

1. Scaling: the singular values of A are brought to [0, 1], the largest to at least 1/p^(1/8), where p is the short
   side.
2. Fifteen polynomials map [3e-8, 1] to 1, up to the last bits. Each is the best approximation of 1 on the interval that
   contains the values. This composition is optimal: Amsel, Persson, Musco and Gower, "The Polar Express", arXiv
   2505.16932.
3. Smaller values grow by a factor of at most 2e8, the product of the fifteen slopes at 0. Rounding errors of 1e-16 in a
   null space thus become at most 2e-8. Two further steps, which have 0 as a second fixed point, map them to 0.

Singular values between 7e-10 and 1e-7 of the largest may become anything between 0 and 1. The other implementations
count them as zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mergekern.kernels.spectrum import RANK_TOLERANCE


class Step(NamedTuple):
    """The odd polynomial a·x + b·x³ + c·x⁵."""

    a: float
    b: float
    c: float


# The smallest scaled value that is mapped to 1. The norm used for scaling is at most p^(1/8) times the largest singular
# value (2.3 for p = 768, 2.8 for p = 4096), so that every value above RANK_TOLERANCE is mapped to 1.
_FLOOR = RANK_TOLERANCE / 3
# (5x³ − 3x⁵)/2 has slope 0 at its fixed points 0 and 1. The fixed point between them, (2/3)^½ = 0.82, is repelling.
_TO_ZERO = Step(0.0, 2.5, -1.5)
# The limit of the best polynomials as the interval shrinks to 1. It maps 1 − ε to 1 − 5/2·ε³.
_TO_ONE = Step(1.875, -1.25, 0.375)
# If ε is below this, the last step is _TO_ONE: 5/2·ε³ is far below the last bit of 1. The equations for the best
# polynomial become singular as the interval shrinks. At this ε they still give it to four digits (measured).
_NEARLY_ONE = 1e-7
# Number of exchange steps. After four the coefficients are exact to the last bits, from [3e-8, 1] to [0.9, 1]
# (measured).
_EXCHANGES = 8


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal factor, (..., m, n) float64, on the matrix's device, without waiting for it.

    >>> polar(torch.tensor([[0.0, -2.0], [0.0, 0.0]]))
    tensor([[ 0., -1.],
            [ 0.,  0.]], dtype=torch.float64)
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return polar(matrix.mT).mT
    if not matrix.numel():
        return matrix.double()
    factor = _scaled(matrix.double())
    for step in (*steps_to_one(_FLOOR), _TO_ZERO, _TO_ZERO):
        factor = _applied(step, factor)
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


def _scaled(columns: torch.Tensor) -> torch.Tensor:
    """Return matrices (..., m, p), scaled to singular values in [0, 1], the largest at least 1/p^(1/8)."""
    # The first scaling is by the largest element, so that no power leaves the range of float64.
    columns = columns / _positive(columns.abs().amax((-2, -1), keepdim=True))
    # σ₁ ≤ (Σσ⁸)^(1/8) = ‖(AᵀA)²‖_F^(1/4) ≤ p^(1/8)·σ₁
    gram = columns.mT @ columns
    return columns / _positive((gram @ gram).norm(dim=(-2, -1), keepdim=True)) ** 0.25


def _positive(norm: torch.Tensor) -> torch.Tensor:
    """Return the norm, or 1 for zero matrices, so that dividing by it is defined."""
    return torch.where(norm > 0, norm, 1.0)


def _applied(step: Step, columns: torch.Tensor) -> torch.Tensor:
    """Return A·(a·I + b·AᵀA + c·(AᵀA)²), which applies the polynomial to the singular values of A."""
    gram = columns.mT @ columns
    inner = step.b * gram + step.c * (gram @ gram)
    inner.diagonal(dim1=-2, dim2=-1).add_(step.a)
    return columns @ inner


@functools.cache
def steps_to_one(floor: float) -> tuple[Step, ...]:
    """Return polynomials whose composition maps [floor, 1] to 1, up to the last bits of float64.

    >>> x = np.geomspace(1e-6, 1, 1000)
    >>> for a, b, c in steps_to_one(1e-6):
    ...     x = a * x + b * x**3 + c * x**5
    >>> bool(np.abs(x - 1).max() < 1e-14)
    True
    """
    steps = []
    low, high = floor, 1.0  # the singular values lie in [low, high]
    while low < (1.0 - _NEARLY_ONE) * high:
        a, b, c = _nearest_to_one(low / high)
        steps.append(Step(a / high, b / high**3, c / high**5))
        # The polynomial has its minimum at `low`. It is as far below 1 there as it is above 1 at its maximum.
        x = low / high
        low = a * x + b * x**3 + c * x**5
        high = 2.0 - low
    return (*steps, _TO_ONE)


def _nearest_to_one(low: float) -> Step:
    """Return the best approximation of 1 on [low, 1] by an odd polynomial of degree 5, by the Remez exchange algorithm.

    Its error has equal size and alternating signs at four points: both ends, and two extrema between them. The
    iteration starts with the extrema at one quarter and three quarters of the interval.
    """
    extrema = np.array([3.0 * low + 1.0, low + 3.0]) / 4.0
    for _ in range(_EXCHANGES):
        x = np.array([low, *extrema, 1.0])
        a, b, c, _ = np.linalg.solve(np.stack([x, x**3, x**5, [1.0, -1.0, 1.0, -1.0]], axis=1), np.ones(4))
        root = np.sqrt(9.0 * b * b - 20.0 * a * c)  # p′(x) = a + 3b·x² + 5c·x⁴ is a quadratic in x²
        extrema = np.sqrt((-3.0 * b + np.array([-root, root])) / (10.0 * c))
    return Step(float(a), float(b), float(c))
