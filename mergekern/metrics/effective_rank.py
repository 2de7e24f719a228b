"""Effective rank: how far the 2×D stack [τ_i; τ_j] is from one direction.

Its singular values s₁ ≥ s₂ are the square roots of the eigenvalues of the 2×2 Gram matrix; p = s/Σs.
"""

from __future__ import annotations

import numpy as np

from mergekern.metrics.geometry import Geometry
from mergekern.statistics import ZooStatistics

# The study leaves out tensors in which a task vector is shorter than this.
SHORTEST = 1e-10


def _stack_values(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return (s₁, s₂) of every pair; NaN where a task vector is zero.

    λ₁ = (a + b + √((a − b)² + 4c²))/2 and λ₂ = det/λ₁ with det = ab(1 − cos)(1 + cos), so that nothing
    cancels for nearly parallel vectors.
    """
    a, b = np.square(geometry.norm)[:, None], np.square(geometry.norm)[None, :]
    first = (a + b + np.sqrt((a - b) ** 2 + 4 * geometry.inner**2)) / 2
    apart = geometry.one_minus_cosine
    with np.errstate(invalid="ignore", divide="ignore"):
        second = a * b * apart * (2.0 - apart) / first
    first = np.where(np.isnan(second), np.nan, first)
    return np.sqrt(first), np.sqrt(second)


def _effective_rank(geometry: Geometry) -> np.ndarray:
    first, second = _stack_values(geometry)
    share = second / (first + second)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(1 - share) * np.log1p(-share) - np.where(share > 0, share * np.log(share), 0.0 * share)
    return np.exp(entropy)


def _score(rank: np.ndarray) -> np.ndarray:
    return np.clip(2.0 - rank, 0.0, 1.0)


def effective_rank(statistics: ZooStatistics) -> np.ndarray:
    """exp(−Σ p ln p), in [1, 2]."""
    return _effective_rank(Geometry.of(statistics))


def effective_rank_mergeability_score(statistics: ZooStatistics) -> np.ndarray:
    """clip(2 − effective rank, 0, 1)."""
    return _score(effective_rank(statistics))


def stable_rank(statistics: ZooStatistics) -> np.ndarray:
    """(Σs)²/Σs², the study's definition (not ‖A‖_F²/σ₁²)."""
    first, second = _stack_values(Geometry.of(statistics))
    return (first + second) ** 2 / (first**2 + second**2)


def spectral_gap(statistics: ZooStatistics) -> np.ndarray:
    """(s₁ − s₂)/s₁."""
    first, second = _stack_values(Geometry.of(statistics))
    return (first - second) / first


def singular_value_ratio(statistics: ZooStatistics) -> np.ndarray:
    """s₂/s₁."""
    first, second = _stack_values(Geometry.of(statistics))
    return second / first


def layerwise_effective_rank(statistics: ZooStatistics) -> np.ndarray:
    """Σ_l w_l er_l / Σ_l w_l with w_l = ‖τ_i^l‖ + ‖τ_j^l‖, over all tensors where both norms are ≥ 1e-10."""
    total = np.zeros((len(statistics.models),) * 2)
    weight = np.zeros_like(total)
    for layer in statistics.layers:
        geometry = Geometry.of(layer)
        moved = geometry.norm >= SHORTEST
        share = np.where(np.logical_and.outer(moved, moved), np.add.outer(geometry.norm, geometry.norm), 0.0)
        total += np.where(share > 0, share * _effective_rank(geometry), 0.0)
        weight += share
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / weight


def layerwise_effective_rank_mergeability_score(statistics: ZooStatistics) -> np.ndarray:
    """clip(2 − layerwise effective rank, 0, 1)."""
    return _score(layerwise_effective_rank(statistics))
