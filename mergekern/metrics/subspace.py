"""Subspace overlap: whether two models change a matrix along the same directions, averaged over all matrices.

A pair's average is over the matrices in which both task matrices are measurable: not zero (a frozen tensor has no
directions), of full rank for the bottom vectors, of rank ≥ k for the top ones; beyond the rank a singular vector is an
arbitrary choice. With `frozen="include"` a zero matrix counts, as in the published code, with the identity as its
singular vectors. A pair for which no matrix is left gets NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from mergekern.statistics import SpectrumStatistics, ZooStatistics

Frozen = Literal["exclude", "include"]
# The rank that a task matrix needs to be measured: at least 1, at least the k of the top vectors, or full.
Needed = Literal["any", "top", "full"]


def _average(
    statistics: ZooStatistics, frozen: Frozen, needed: Needed, value: Callable[[SpectrumStatistics], np.ndarray]
) -> np.ndarray:
    """Average value(spectrum) over the matrices in which both models have the rank that is needed."""
    total = np.zeros((len(statistics.models),) * 2)
    count = np.zeros_like(total)
    for layer in statistics.layers:
        if (spectrum := layer.spectrum) is None:
            continue
        least = {"any": 1, "top": spectrum.k, "full": min(layer.shape)}[needed]
        measurable = np.where(spectrum.rank == 0, frozen == "include", spectrum.rank >= least)
        both = np.logical_and.outer(measurable, measurable)
        total += np.where(both, value(spectrum), 0.0)
        count += both
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def singular_value_overlap(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """Cosine between the leading singular values; 0 for a zero matrix, where it is included."""

    def cosine(spectrum: SpectrumStatistics) -> np.ndarray:
        length = np.linalg.norm(spectrum.values, axis=1, keepdims=True)
        unit = spectrum.values / np.where(length > 0, length, 1.0)
        # Sums of a pair whose last bits do not depend on the other models, as those of BLAS would.
        return np.einsum("ip,jp->ij", unit, unit, optimize=False)

    return _average(statistics, frozen, "any", cosine)


def subspace_overlap(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """‖U_iᵀU_j‖_F / k of the top-k left vectors; equal subspaces give 1/√k."""
    return _average(statistics, frozen, "top", lambda s: np.sqrt(s.left_top_overlap) / s.k)


def right_subspace_overlap_top_k(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """‖V_iᵀV_j‖_F / √k of the top-k right vectors; equal subspaces give 1."""
    return _average(statistics, frozen, "top", lambda s: np.sqrt(s.right_top_overlap / s.k))


def right_subspace_overlap_bottom_k(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """‖V_iᵀV_j‖_F / √k of the last k right vectors of the thin SVD; equal subspaces give 1."""
    return _average(statistics, frozen, "full", lambda s: np.sqrt(s.right_bottom_overlap / s.k))


def interaction_matrix_overlap_top_k(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """‖V_iᵀV_j‖_F² / k of the top-k right vectors: the mean squared cosine of their principal angles."""
    return _average(statistics, frozen, "top", lambda s: s.right_top_overlap / s.k)


def interaction_matrix_overlap_bottom_k(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """‖V_iᵀV_j‖_F² / k of the last k right vectors."""
    return _average(statistics, frozen, "full", lambda s: s.right_bottom_overlap / s.k)


# Estimated errors of the metrics, from those of the spectra. They hold whatever the signs of the errors are: those of a
# pair's two models add up, and an average over matrices has the average of their errors.


def singular_value_overlap_error(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """How far the cosine can be off where each profile may be turned by the angle that its errors allow."""

    def error(spectrum: SpectrumStatistics) -> np.ndarray:
        assert spectrum.errors is not None
        length = np.linalg.norm(spectrum.values, axis=1)
        moved = np.linalg.norm(spectrum.errors.values, axis=1)
        turned = np.arcsin(np.minimum(1.0, moved / np.where(length > 0, length, 1.0)))
        both = np.add.outer(turned, turned)
        unit = spectrum.values / np.where(length > 0, length, 1.0)[:, None]
        cosine = np.clip(np.einsum("ip,jp->ij", unit, unit, optimize=False), 0.0, 1.0)
        angle = np.arccos(cosine)
        least, most = np.cos(np.minimum(angle + both, np.pi / 2)), np.cos(np.maximum(angle - both, 0.0))
        return np.maximum(cosine - least, most - cosine)

    return _average(statistics, frozen, "any", error)


def subspace_overlap_error(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """Of ‖U_iᵀU_j‖_F / k."""
    return _average(statistics, frozen, "top", lambda s: _error_of_root(s, s.left_top_overlap) / s.k)


def right_subspace_overlap_top_k_error(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """Of ‖V_iᵀV_j‖_F / √k."""
    return _average(statistics, frozen, "top", lambda s: _error_of_root(s, s.right_top_overlap) / np.sqrt(s.k))


def interaction_matrix_overlap_top_k_error(statistics: ZooStatistics, frozen: Frozen = "exclude") -> np.ndarray:
    """Of ‖V_iᵀV_j‖_F² / k."""
    return _average(statistics, frozen, "top", lambda s: np.minimum(_error_of_overlap(s) / s.k, 1.0))


def _error_of_overlap(spectrum: SpectrumStatistics) -> np.ndarray:
    """How far ‖V_iᵀV_j‖_F² can be off: tr(P_i P_j) moves by at most the sum of the sines by which P_i is turned."""
    assert spectrum.errors is not None
    turned = spectrum.errors.vectors.sum(axis=1)
    return np.add.outer(turned, turned)


def _error_of_root(spectrum: SpectrumStatistics, overlap: np.ndarray) -> np.ndarray:
    """How far ‖V_iᵀV_j‖_F can be off: by √2 times the root of the sum of squared sines, or as its square is."""
    assert spectrum.errors is not None
    turned = np.sqrt(2.0) * np.linalg.norm(spectrum.errors.vectors, axis=1)
    of_square = _error_of_overlap(spectrum)
    root = np.sqrt(overlap)
    below = root - np.sqrt(np.maximum(overlap - of_square, 0.0))
    above = np.sqrt(np.minimum(overlap + of_square, spectrum.k)) - root
    return np.minimum(np.add.outer(turned, turned), np.maximum(below, above))


ERRORS: dict[str, Callable[..., np.ndarray]] = {
    "singular_value_overlap": singular_value_overlap_error,
    "subspace_overlap": subspace_overlap_error,
    "right_subspace_overlap_top_k": right_subspace_overlap_top_k_error,
    "interaction_matrix_overlap_top_k": interaction_matrix_overlap_top_k_error,
}
