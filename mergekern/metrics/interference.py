"""Interference: where two models change the same weights in opposite ways, by coordinates and along directions.

Counts and sums of single coordinates are added up over all tensors, so that every coordinate has the same weight.
"""

from __future__ import annotations

import numpy as np

from mergekern.metrics.geometry import Geometry
from mergekern.metrics.subspace import average
from mergekern.statistics import LayerStatistics, SpectrumStatistics, ZooStatistics
from mergekern.statistics.coordinates import CoordinateStatistics

# Below this share of its squared length, what is left of a task vector without its mean is rounding.
CONSTANT = 1e-12


def task_vector_sign_disagreement(statistics: ZooStatistics) -> np.ndarray:
    """Share of the coordinates that both models change that they change in opposite directions; NaN without any."""
    return _share(_sum(statistics, "opposite"), _sum(statistics, "shared"))


def task_vector_weighted_sign_disagreement(statistics: ZooStatistics) -> np.ndarray:
    """The same share, each coordinate with the weight |τ_i|·|τ_j|; NaN where all weights are 0.

    The weights of equal signs minus those of opposite ones are the inner product g, so that no coordinate is looked at
    again: (Σ|τ_i||τ_j| − g_ij) / 2 are the weights of opposite signs.
    """
    absolute = _sum(statistics, "absolute")
    return np.clip(_share((absolute - statistics.inner) / 2, absolute), 0.0, 1.0)


def ties_interference(statistics: ZooStatistics) -> np.ndarray:
    """Share of the coordinates that either model keeps after trimming that both keep with opposite signs.

    NaN where a task vector is zero.
    """
    kept = _sum(statistics, "kept_shared")
    own = np.where(np.diagonal(kept) > 0, np.diagonal(kept), np.nan)
    return _share(_sum(statistics, "kept_opposite"), np.add.outer(own, own) - kept)


def task_vector_pearson_correlation(statistics: ZooStatistics) -> np.ndarray:
    """Pearson correlation of the elements of two task vectors; NaN where one has the same value everywhere."""
    elements = sum(float(np.prod(layer.shape)) for layer in statistics.layers)
    sums = np.sum([_coordinates(layer).sums for layer in statistics.layers], axis=0)
    inner = statistics.inner - np.outer(sums, sums) / elements
    squares = np.diagonal(inner).copy()
    squares[squares <= CONSTANT * np.diagonal(statistics.inner)] = 0.0
    distance = statistics.squared_distance - np.subtract.outer(sums, sums) ** 2 / elements
    return Geometry(inner, np.sqrt(squares), np.maximum(distance, 0.0)).cosine


def singular_task_interference(statistics: ZooStatistics) -> np.ndarray:
    """Mean over matrices of ‖(UᵀU − I) Σ (VᵀV − I)‖₁ of the stacked leading triplets; arXiv 2412.00081.

    Matrices that one of the models leaves as they are, or changes with a rank below k, are left out.
    """

    def value(spectrum: SpectrumStatistics) -> np.ndarray:
        assert spectrum.interference is not None
        return spectrum.interference

    return average(statistics, "exclude", "include", "left", "top", value)


def _coordinates(layer: LayerStatistics) -> CoordinateStatistics:
    assert layer.coordinates is not None
    return layer.coordinates


def _sum(statistics: ZooStatistics, name: str) -> np.ndarray:
    """Return the sum over all tensors of one of the statistics of pairs."""
    return np.sum([getattr(_coordinates(layer), name) for layer in statistics.layers], axis=0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
