"""Estimated errors of the metrics of subspaces, from those of the spectra that svd="randomized" found.

They hold whatever the signs of the errors are: those of a pair's two models add up, and an average over matrices has
the average of their errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mergekern.metrics.subspace import Frozen, SmallTensors, average
from mergekern.statistics import SpectrumStatistics, ZooStatistics


def singular_value_overlap_error(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
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

    return average(statistics, frozen, small_tensors, "values", "any", error)


def subspace_overlap_error(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """Estimated error of ‖U_iᵀU_j‖_F / k."""

    def error(spectrum: SpectrumStatistics) -> np.ndarray:
        return _of_root(spectrum, spectrum.left_top_overlap) / spectrum.k

    return average(statistics, frozen, small_tensors, "left", "top", error)


def right_subspace_overlap_top_k_error(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """Estimated error of ‖V_iᵀV_j‖_F / √k."""

    def error(spectrum: SpectrumStatistics) -> np.ndarray:
        return _of_root(spectrum, spectrum.right_top_overlap) / np.sqrt(spectrum.k)

    return average(statistics, frozen, small_tensors, "right", "top", error)


def interaction_matrix_overlap_top_k_error(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """Estimated error of ‖V_iᵀV_j‖_F² / k."""

    def error(spectrum: SpectrumStatistics) -> np.ndarray:
        return np.minimum(_of_overlap(spectrum) / spectrum.k, 1.0)

    return average(statistics, frozen, small_tensors, "right", "top", error)


def _of_overlap(spectrum: SpectrumStatistics) -> np.ndarray:
    """How far ‖V_iᵀV_j‖_F² can be off: tr(P_i P_j) moves by at most the sum of the sines by which P_i is turned."""
    assert spectrum.errors is not None
    turned = spectrum.errors.vectors.sum(axis=1)
    return np.add.outer(turned, turned)


def _of_root(spectrum: SpectrumStatistics, overlap: np.ndarray) -> np.ndarray:
    """How far ‖V_iᵀV_j‖_F can be off: by √2 times the root of the sum of squared sines, or as its square is."""
    assert spectrum.errors is not None
    turned = np.sqrt(2.0) * np.linalg.norm(spectrum.errors.vectors, axis=1)
    of_square = _of_overlap(spectrum)
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
