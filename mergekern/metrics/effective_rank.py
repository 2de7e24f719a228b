"""Effective rank: how far the n×D stack of n task vectors is from one direction; n = 2 for the pairwise metrics.

Its singular values s₁ ≥ … ≥ s_n are the square roots of the eigenvalues of the n×n Gram matrix; p = s/Σs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mergekern.metrics.geometry import Geometry
from mergekern.statistics import ZooStatistics

# As the study does, tensors in which a task vector is shorter than this are left out.
SHORTEST = 1e-10


def rank_of_values(values: np.ndarray) -> np.ndarray:
    """exp(−Σ p ln p) of singular values (..., n), in [1, n]; NaN stays NaN.

    >>> rank_of_values(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])).round(12)
    array([3., 1.])
    """
    # Imported where it is used: scipy.special takes 0.2 s.
    from scipy.special import xlogy

    share = values / values.sum(axis=-1, keepdims=True)
    return np.clip(np.exp(-xlogy(share, share).sum(axis=-1)), 1.0, values.shape[-1])


def stable_rank_of_values(values: np.ndarray) -> np.ndarray:
    """(Σs)²/Σs² of singular values (..., n), in [1, n]."""
    # Scaled by a power of 2, which changes no digit, so that the squares do not overflow.
    unit = np.ldexp(values, -np.frexp(values.max(axis=-1, keepdims=True))[1])
    return np.clip(unit.sum(axis=-1) ** 2 / (unit**2).sum(axis=-1), 1.0, values.shape[-1])


def gap_of_values(values: np.ndarray) -> np.ndarray:
    """(s₁ − s₂)/s₁ of singular values (..., n), in [0, 1]."""
    return (values[..., 0] - values[..., 1]) / values[..., 0]


def ratio_of_values(values: np.ndarray) -> np.ndarray:
    """s_n/s₁ of singular values (..., n), in [0, 1]."""
    return values[..., -1] / values[..., 0]


def score_of_rank(rank: np.ndarray, models: int = 2) -> np.ndarray:
    """(n − effective rank)/(n − 1), clipped to [0, 1]: 1 for one direction, 0 for n orthogonal ones of one length."""
    return np.clip((models - rank) / (models - 1), 0.0, 1.0)


def pair_values(geometry: Geometry) -> np.ndarray:
    """Return the singular values (N, N, 2) of the stack of every pair; NaN where a task vector is zero.

    λ₁ = (a + b + √((a − b)² + 4c²))/2 and λ₂ = det/λ₁ with det = ab(1 − cos)(1 + cos), so that nothing
    cancels for nearly parallel vectors. All are scaled by a power of 4, which changes no digit, so that squares of
    squared lengths neither overflow nor vanish.
    """
    square = np.square(geometry.norm)
    half = np.frexp(np.maximum.outer(square, square))[1] // 2
    a, b, inner = (np.ldexp(each, -2 * half) for each in (square[:, None], square[None, :], geometry.inner))
    first = (a + b + np.sqrt((a - b) ** 2 + 4 * inner**2)) / 2
    apart = geometry.one_minus_cosine
    with np.errstate(invalid="ignore", divide="ignore"):
        second = a * b * apart * (2.0 - apart) / first
    first = np.where(np.isnan(second), np.nan, first)
    return np.ldexp(np.sqrt(np.stack([first, second], axis=-1)), half[:, :, None])


def stack_values(geometry: Geometry, groups: np.ndarray) -> np.ndarray:
    """Return the singular values (G, n) of the stack of each group; NaN where a task vector of it is zero.

    Args:
        geometry: N vectors.
        groups: (G, n) positions of the members of each group.

    The stack is turned into √n times its mean and n − 1 differences, an orthogonal change that leaves its singular
    values as they are; the Gram matrix of the differences comes from the squared distances, in which nothing has
    cancelled for nearly equal vectors.

    >>> stack_values(Geometry(np.eye(3), np.ones(3), 2 - 2 * np.eye(3)), np.array([[0, 1, 2]])).round(12)
    array([[1., 1., 1.]])
    """
    members = groups[:, :, None], groups[:, None, :]
    # Imported where it is used: scipy.linalg takes 0.2 s.
    from scipy.linalg import helmert

    turn = helmert(groups.shape[1], full=True)
    gram = turn @ geometry.inner[members] @ turn.T
    gram[:, 1:, 1:] = -turn[1:] @ geometry.squared_distance[members] @ turn[1:].T / 2
    scale = np.sqrt(np.clip(np.diagonal(gram, axis1=1, axis2=2), 0.0, None))[:, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.nan_to_num(gram / (scale * scale.swapaxes(1, 2)), nan=0.0, posinf=0.0, neginf=0.0)
    eigenvalues, vectors = np.linalg.eigh(unit)
    root = scale * vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))[:, None, :]
    values = np.linalg.svd(root, compute_uv=False)
    return np.where((geometry.norm[groups] > 0).all(axis=1)[:, None], values, np.nan)


def layerwise_rank(
    statistics: ZooStatistics, rank: Callable[[Geometry], np.ndarray], total: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return Σ_l w_l er_l / Σ_l w_l over the tensors in which no model of a group is shorter than 1e-10.

    Args:
        statistics: the layers of a zoo.
        rank: geometry of one tensor -> effective rank of every group.
        total: lengths (N,) of one tensor's task vectors -> their sum w_l over every group.
    """
    numerator, denominator = np.zeros(()), np.zeros(())
    for layer in statistics.layers:
        geometry = Geometry.from_statistics(layer)
        share = total(np.where(geometry.norm >= SHORTEST, geometry.norm, -np.inf))
        share = np.where(np.isfinite(share), share, 0.0)
        numerator = numerator + np.where(share > 0, share * rank(geometry), 0.0)
        denominator = denominator + share
    with np.errstate(invalid="ignore", divide="ignore"):
        return numerator / denominator


def effective_rank(statistics: ZooStatistics) -> np.ndarray:
    """exp(−Σ p ln p), in [1, 2]."""
    return rank_of_values(pair_values(Geometry.from_statistics(statistics)))


def effective_rank_mergeability_score(statistics: ZooStatistics) -> np.ndarray:
    """clip(2 − effective rank, 0, 1)."""
    return score_of_rank(effective_rank(statistics))


def stable_rank(statistics: ZooStatistics) -> np.ndarray:
    """(Σs)²/Σs², the study's definition (not ‖A‖_F²/σ₁²)."""
    return stable_rank_of_values(pair_values(Geometry.from_statistics(statistics)))


def spectral_gap(statistics: ZooStatistics) -> np.ndarray:
    """(s₁ − s₂)/s₁."""
    return gap_of_values(pair_values(Geometry.from_statistics(statistics)))


def singular_value_ratio(statistics: ZooStatistics) -> np.ndarray:
    """s₂/s₁."""
    return ratio_of_values(pair_values(Geometry.from_statistics(statistics)))


def layerwise_effective_rank(statistics: ZooStatistics) -> np.ndarray:
    """Σ_l w_l er_l / Σ_l w_l with w_l = ‖τ_i^l‖ + ‖τ_j^l‖, over all tensors where both norms are ≥ 1e-10."""
    return layerwise_rank(statistics, lambda g: rank_of_values(pair_values(g)), lambda norm: np.add.outer(norm, norm))


def layerwise_effective_rank_mergeability_score(statistics: ZooStatistics) -> np.ndarray:
    """clip(2 − layerwise effective rank, 0, 1)."""
    return score_of_rank(layerwise_effective_rank(statistics))
