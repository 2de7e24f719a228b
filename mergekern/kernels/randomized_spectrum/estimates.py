"""When an iteration ends, and the errors of what it found: the formulas of the package's docstring, for one matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mergekern.kernels.randomized_spectrum import ROUNDING_OF_VALUES, ROUNDING_OF_VECTORS
from mergekern.kernels.randomized_spectrum.counted import Quadrature, count
from mergekern.kernels.spectrum import RANK_TOLERANCE, Estimates

# How far rounding moves τᵀτ, relative to σ₁².
ROUNDING = {np.dtype(np.float32): 2.4e-7, np.dtype(np.float64): 2e-15}
# Squares of singular values that are closer than this, relatively, count as equal: stored weights resolve no less.
CLOSEST = 1e-7
# The leading values are known well enough where their profile is turned by at most so many times the tolerance: the
# cosine of two profiles at an angle of 1/20, which is 0.9988, then moves by the tolerance.
OF_PROFILE = 10


class Ritz(NamedTuple):
    """The Ritz pairs of a subspace, p of them.

    Attributes:
        squares: (p,) θ², descending.
        residuals: (p,) ρ.
        outside: μ².
        counts: quadratures of the subspace and of the same without its newest block, of one that began at random.
    """

    squares: np.ndarray
    residuals: np.ndarray
    outside: float
    counts: tuple[Quadrature, Quadrature] | None = None


class Leading(NamedTuple):
    """What the left vectors, or a last pass, tell of the k leading pairs.

    Attributes:
        values: (k,) singular values, descending.
        residuals: (k,) lengths of what the subspace leaves of τᵀτv − σ²v.
        coupled: (k, p − k) products of what it does not leave with the other Ritz vectors; zeros without a last pass.
    """

    values: np.ndarray
    residuals: np.ndarray
    coupled: np.ndarray


def is_good(ritz: Ritz, k: int, leading: int, tolerance: float) -> bool:
    """Tell whether the estimates, without rounding, meet the tolerance: of k vectors and of the leading values."""
    within = of_vectors(ritz, ritz.squares[:k], ritz.residuals[:k], np.zeros(k))
    values, errors = of_leading(ritz, leading)
    turned = np.linalg.norm(errors) <= OF_PROFILE * tolerance * np.linalg.norm(values)
    return bool(within.mean() <= tolerance / 2 and turned)


def by_rounding(ritz: Ritz, k: int, dtype: np.dtype) -> np.ndarray:
    """Return the sines (k,) by which rounding of products may turn the leading vectors out of their span."""
    squares = ritz.squares
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = ROUNDING[dtype] * squares[0] + CLOSEST * squares[:k]
        return np.nan_to_num(moved / np.maximum(squares[:k] - squares[k], 0.0), nan=1.0)


def conclude(ritz: Ritz, found: Leading, leading: int, dtype: np.dtype) -> tuple[np.ndarray, int, Estimates]:
    """Return the leading singular values, the rank among what is found, and the estimated errors.

    Args:
        ritz: the Ritz pairs before the last pass.
        found: what the last pass tells.
        leading: number of values.
        dtype: dtype of the products.
    """
    top, k = found.values, len(found.values)
    coupled = found.coupled.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        coupled /= np.maximum(np.square(top)[:, None] - ritz.squares[None, k:], 0.0)
    rounding = np.hypot(np.linalg.norm(np.nan_to_num(coupled, nan=1.0, posinf=1.0, neginf=1.0), axis=1),
                        by_rounding(ritz, k, dtype))  # fmt: skip
    squares, residuals = ritz.squares.copy(), ritz.residuals.copy()
    squares[:k], residuals[:k] = np.square(top), found.residuals
    values, errors = of_leading(ritz._replace(squares=squares, residuals=residuals), leading)
    estimates = Estimates(
        errors + _of_rounding(values, ROUNDING[dtype]),
        of_vectors(ritz, np.square(top), found.residuals, rounding),
    )
    bound = np.full(max(k, len(values)), RANK_TOLERANCE * top[0])
    bound[: len(values)] = np.maximum(bound[: len(values)], estimates.values)
    return values, int((np.concatenate([top, values[k:]]) > bound).sum()), estimates


def of_leading(ritz: Ritz, leading: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading singular values and their estimated errors: Ritz values, or by counting where that is nearer.

    A count that contradicts Ritz values takes their place: there are more equal values than they see.
    """
    values, errors = np.sqrt(ritz.squares), of_values(ritz, ritz.residuals)
    if ritz.counts is not None:
        counted = count(*ritz.counts, errors[: len(ritz.counts[0].values)], leading)
        is_believed = counted.agrees | np.isinf(counted.errors)
        is_counted = counted.errors < np.where(is_believed, errors[:leading], np.inf)
        values[:leading] = np.where(is_counted, np.maximum(counted.values, values[:leading]), values[:leading])
        errors[:leading] = np.where(is_counted, counted.errors, errors[:leading])
    return np.minimum.accumulate(values[:leading]), errors[:leading]


def of_values(ritz: Ritz, residuals: np.ndarray) -> np.ndarray:
    """Return the estimated errors of the leading Ritz values, from their residuals."""
    squares = ritz.squares[: len(residuals)]
    value = np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        second = 1.5 * np.square(residuals) / (value * np.maximum(squares - ritz.outside, 0.0))
    return np.fmin(np.sqrt(2.0) * residuals / value, np.where(squares > ritz.outside, second, np.inf))


def of_vectors(ritz: Ritz, squares: np.ndarray, residuals: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Return the estimated sines of the leading vectors with the true span.

    Args:
        ritz: Ritz values and vectors of the subspace.
        squares, residuals: (k,) θ² and ρ of the leading vectors.
        rounding: (k,) sines by rounding alone.
    """
    k = len(squares)
    behind, their_residuals = ritz.squares[k:], ritz.residuals[k:]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        direct = residuals / np.maximum(squares - ritz.outside, 0.0)
        by_way = their_residuals / np.maximum(squares[:, None] - behind, 0.0)
        found = 1.5 * np.hypot(direct * np.sqrt(1.0 + np.square(by_way).sum(axis=1)), rounding) + ROUNDING_OF_VECTORS
    return np.minimum(1.0, np.nan_to_num(found, nan=1.0, posinf=1.0))


def _of_rounding(values: np.ndarray, rounding: float) -> np.ndarray:
    """Return how far rounding moves singular values: half of what it moves a square, over the value."""
    moved = rounding * values[0] ** 2
    moved = np.minimum(np.sqrt(moved), moved / (2 * np.maximum(values, np.finfo(np.float64).tiny)))
    return moved + ROUNDING_OF_VALUES * values[0]
