"""Merge probes: what a merge method does to two models on samples of their own tasks, each alone or both together.

ℓ_i and A_i are the mean loss and the accuracy on the calibration samples of task i, with its head; M(τ_i, τ_j) is the
merge of two models by the method, and M(τ_i, 0), the solo probe, its merge of one model with the base. Loss is measured
as the increase over the loss of the single model θ_i, accuracy as a share of its accuracy. Unlike all other metrics, a
merge probe belongs to one merge method.
"""

from __future__ import annotations

import numpy as np

from mergekern.statistics.merges import MergeStatistics

LOSS, ACCURACY = 0, 1


def solo_loss_mean(statistics: MergeStatistics) -> np.ndarray:
    """Mean over i and j of ℓ_i(M(τ_i, 0)) − ℓ_i(θ_i)."""
    return _mean(_of_solo(_added_loss(statistics.solo, statistics.single)))


def solo_loss_worst(statistics: MergeStatistics) -> np.ndarray:
    """The larger of the two."""
    return np.maximum(*_of_solo(_added_loss(statistics.solo, statistics.single)))


def solo_accuracy_mean(statistics: MergeStatistics) -> np.ndarray:
    """Mean over i and j of A_i(M(τ_i, 0)) / A_i(θ_i)."""
    return _mean(_of_solo(_kept_accuracy(statistics.solo, statistics.single)))


def solo_accuracy_worst(statistics: MergeStatistics) -> np.ndarray:
    """The smaller of the two."""
    return np.minimum(*_of_solo(_kept_accuracy(statistics.solo, statistics.single)))


def direct_loss_mean(statistics: MergeStatistics) -> np.ndarray:
    """Mean over i and j of ℓ_i(M(τ_i, τ_j)) − ℓ_i(θ_i)."""
    return _mean(_of_direct(_added_loss(statistics.direct, statistics.single[:, None])))


def direct_loss_worst(statistics: MergeStatistics) -> np.ndarray:
    """The larger of the two."""
    return np.maximum(*_of_direct(_added_loss(statistics.direct, statistics.single[:, None])))


def direct_accuracy_mean(statistics: MergeStatistics) -> np.ndarray:
    """Mean over i and j of A_i(M(τ_i, τ_j)) / A_i(θ_i)."""
    return _mean(_of_direct(_kept_accuracy(statistics.direct, statistics.single[:, None])))


def direct_accuracy_worst(statistics: MergeStatistics) -> np.ndarray:
    """The smaller of the two."""
    return np.minimum(*_of_direct(_kept_accuracy(statistics.direct, statistics.single[:, None])))


def _added_loss(merged: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Return ℓ(merged) − ℓ(single), NaN where either is not finite."""
    losses = np.where(np.isfinite(merged[..., LOSS]), merged[..., LOSS], np.nan)
    return losses - np.where(np.isfinite(single[..., LOSS]), single[..., LOSS], np.nan)


def _kept_accuracy(merged: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Return A(merged) / A(single), NaN where the single model classifies no sample correctly."""
    whole = np.where(single[..., ACCURACY] > 0, single[..., ACCURACY], np.nan)
    return merged[..., ACCURACY] / whole


def _of_solo(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the value of the first model of each pair, (N, N), and that of the second."""
    first = np.broadcast_to(values[:, None], (len(values),) * 2)
    return first, first.T


def _of_direct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values, values.T


def _mean(both: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return (both[0] + both[1]) / 2
