"""Singular values where they lie too close to be told apart: how many there are, instead of which.

A Krylov subspace resolves the values that stand apart, and needs several vectors for each of those in a dense spectrum,
which the edge of noise is. It knows how many lie above a number long before: of b random vectors, the share of a Ritz
vector in them estimates how many singular values its Ritz value stands for (stochastic Lanczos quadrature: Ubaru, Chen
and Saad, 2017; Lin, Saad and Yang, 2016, who leave out what is resolved, as here).

    N(σ ≥ θ_i) ≈ Σ_{j<i} w_j + w_i/2,      w_j = s/b · ‖Ωᵀv_j‖² (Ω orthonormal), and 1 for values that are resolved

The j-th value is where N = j − ½, between two Ritz values by interpolation. Its error has two parts. The sum of M
weights is off by √(2M/b) on average, as a sum of χ² is. And a quadrature has steps: how far the value moved by the
newest block says how far it may move yet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Standard deviations of a count that the estimates allow for, and at which a count contradicts Ritz values: those see
# no more equal values than a block has vectors.
ALLOWED, CONTRADICTED = 2.0, 3.0
# Relative error below which a leading Ritz value counts as one.
RESOLVED = 0.003
# Share of the last change of a value, or of the largest among so many on either side, that may come yet.
YET_TO_COME, NEIGHBOURS = 0.8, 5
# No count tells a value better than this, relatively.
FINEST = 1e-5


class Quadrature(NamedTuple):
    """What a subspace says of the whole spectrum.

    Attributes:
        values: (p,) Ritz values θ, descending; of p < dimension the leading ones.
        weights: (p,) how many singular values each stands for.
        vectors: number of random vectors, b.
    """

    values: np.ndarray
    weights: np.ndarray
    vectors: int


class Counted(NamedTuple):
    """Singular values by counting.

    Attributes:
        values: (leading,) descending.
        errors: (leading,) estimated errors; infinite where a count says nothing, or a Ritz value is resolved.
        agrees: (leading,) whether the count bears out the Ritz values down to this one.
    """

    values: np.ndarray
    errors: np.ndarray
    agrees: np.ndarray


def count(newest: Quadrature, before: Quadrature, errors: np.ndarray, leading: int) -> Counted:
    """Return the leading singular values, by counting.

    Args:
        newest, before: quadratures of a subspace, and of the same without its newest block.
        errors: (p,) estimated errors of the newest Ritz values.
        leading: number of values, at most p.

    >>> known = Quadrature(np.array([3.0, 2.0, 1.0, 0.5]), np.array([1.0, 1.0, 3.0, 3.0]), 2)
    >>> count(known, known, np.array([1e-3, 1e-3, 0.5, 0.5]), 3).values
    array([3. , 2. , 1.5])
    """
    place = np.arange(1, len(newest.values) + 1)
    mass, spread = np.cumsum(newest.weights), CONTRADICTED * np.sqrt(2 * place / newest.vectors)
    agrees = (mass - newest.weights - spread <= place) & (place <= mass + spread)
    agrees = np.logical_and.accumulate(agrees)
    resolved = int(np.logical_and.accumulate(agrees & (errors <= RESOLVED * newest.values)).sum())

    at = np.arange(leading) + 0.5
    sway = ALLOWED * np.sqrt(2 * np.maximum(np.arange(leading) + 1 - resolved, 0) / newest.vectors)
    values = _value_at(at, newest, resolved)
    above = newest._replace(values=newest.values + np.where(place <= resolved, errors, 0.0))
    swayed = np.maximum(_value_at(at - sway, above, resolved) - values, values - _value_at(at + sway, newest, resolved))
    moved = np.pad(np.abs(values - _value_at(at, before, resolved)), NEIGHBOURS, mode="edge")
    moved = np.lib.stride_tricks.sliding_window_view(moved, 2 * NEIGHBOURS + 1).max(axis=1)
    found = np.maximum(np.hypot(swayed, YET_TO_COME * moved), FINEST * values)
    weights = _weights(newest, resolved)
    is_beyond = at + sway > weights[:-1].sum()
    is_above = (at - sway < weights[0]) & (resolved == 0)
    found[is_beyond | is_above] = np.inf
    found[:resolved] = np.inf
    return Counted(values, found, agrees[:leading])


def _weights(quadrature: Quadrature, resolved: int) -> np.ndarray:
    return np.append(np.ones(min(resolved, len(quadrature.weights))), quadrature.weights[resolved:])


def _value_at(counts: np.ndarray, quadrature: Quadrature, resolved: int) -> np.ndarray:
    """Return the numbers above which there are so many singular values."""
    weights = _weights(quadrature, resolved)
    return np.interp(counts, np.cumsum(weights) - weights / 2, quadrature.values)
