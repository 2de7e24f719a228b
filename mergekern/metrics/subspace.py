"""Subspace overlap: whether two models change a matrix along the same directions, averaged over all matrices.

A pair's average is over the matrices in which both task matrices are measurable: not zero (a frozen tensor has no
directions), of full rank for the bottom vectors, of rank ≥ k for the top ones; beyond the rank a singular vector is an
arbitrary choice. With `frozen="include"` a zero matrix counts, as in the published code, with the identity as its
singular vectors. A pair for which no matrix is left gets NaN.

A matrix with at most k rows has left vectors that span the whole space, so that its overlap is one constant, whatever
the models are; one with at most k columns has such right vectors. They count, as in the published code, unless
`small_tensors="exclude"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from mergekern.statistics import LayerStatistics, SpectrumStatistics, ZooStatistics

Frozen = Literal["exclude", "include"]
SmallTensors = Literal["include", "exclude"]
# What a metric compares: left or right singular vectors, or singular values.
Side = Literal["left", "right", "values"]
# The rank that a task matrix needs to be measured: at least 1, at least the k of the top vectors, or full.
Needed = Literal["any", "top", "full"]


def is_constant(layer: LayerStatistics, side: Side) -> bool:
    """Tell whether a matrix has the same value of a metric for any two models that change it."""
    if layer.spectrum is None:
        return False
    least = {"left": layer.shape[0], "right": layer.shape[-1], "values": min(layer.shape)}[side]
    return least <= (1 if side == "values" else layer.spectrum.k)


def average(
    statistics: ZooStatistics,
    frozen: Frozen,
    small_tensors: SmallTensors,
    side: Side,
    needed: Needed,
    value: Callable[[SpectrumStatistics], np.ndarray],
) -> np.ndarray:
    """Average value(spectrum) over the matrices in which both models have the rank that is needed."""
    total = np.zeros((len(statistics.models),) * 2)
    count = np.zeros_like(total)
    for layer in statistics.layers:
        if (spectrum := layer.spectrum) is None or (small_tensors == "exclude" and is_constant(layer, side)):
            continue
        least = {"any": 1, "top": spectrum.k, "full": min(layer.shape)}[needed]
        measurable = np.where(spectrum.rank == 0, frozen == "include", spectrum.rank >= least)
        both = np.logical_and.outer(measurable, measurable)
        total += np.where(both, value(spectrum), 0.0)
        count += both
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def singular_value_overlap(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """Cosine between the leading singular values; 0 for a zero matrix, where it is included."""

    def cosine(spectrum: SpectrumStatistics) -> np.ndarray:
        length = np.linalg.norm(spectrum.values, axis=1, keepdims=True)
        unit = spectrum.values / np.where(length > 0, length, 1.0)
        # Sums of a pair whose last bits do not depend on the other models, as those of BLAS would.
        return np.einsum("ip,jp->ij", unit, unit, optimize=False)

    return average(statistics, frozen, small_tensors, "values", "any", cosine)


def subspace_overlap(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """‖U_iᵀU_j‖_F / k of the top-k left vectors; equal subspaces give 1/√k, the largest value."""
    return average(statistics, frozen, small_tensors, "left", "top", lambda s: np.sqrt(s.left_top_overlap) / s.k)


def right_subspace_overlap_top_k(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """‖V_iᵀV_j‖_F / √k of the top-k right vectors; equal subspaces give 1."""
    return average(statistics, frozen, small_tensors, "right", "top", lambda s: np.sqrt(s.right_top_overlap / s.k))


def right_subspace_overlap_bottom_k(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """‖V_iᵀV_j‖_F / √k of the last k right vectors of the thin SVD; equal subspaces give 1."""
    return average(statistics, frozen, small_tensors, "right", "full", lambda s: np.sqrt(s.right_bottom_overlap / s.k))


def interaction_matrix_overlap_top_k(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """‖V_iᵀV_j‖_F² / k of the top-k right vectors: the mean squared cosine of their principal angles."""
    return average(statistics, frozen, small_tensors, "right", "top", lambda s: s.right_top_overlap / s.k)


def interaction_matrix_overlap_bottom_k(
    statistics: ZooStatistics, frozen: Frozen = "exclude", small_tensors: SmallTensors = "include"
) -> np.ndarray:
    """‖V_iᵀV_j‖_F² / k of the last k right vectors."""
    return average(statistics, frozen, small_tensors, "right", "full", lambda s: s.right_bottom_overlap / s.k)


# What each metric compares.
SIDES: dict[str, Side] = {
    "singular_value_overlap": "values",
    "subspace_overlap": "left",
    "right_subspace_overlap_top_k": "right",
    "right_subspace_overlap_bottom_k": "right",
    "interaction_matrix_overlap_top_k": "right",
    "interaction_matrix_overlap_bottom_k": "right",
}
