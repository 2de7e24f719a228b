"""The task matrices of one tensor, as matrix methods see them: whole, or truncated and then kept for other merges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekern.kernels.truncation import Triplets
from mergekern.kernels.truncation import on_cpu as truncation


class Matrices:
    """N task matrices of one shape.

    Attributes:
        shape: (m, n).
    """

    def __init__(self, deltas: Sequence[np.ndarray]) -> None:
        self._deltas = deltas
        self.shape = deltas[0].shape

    def __len__(self) -> int:
        return len(self._deltas)

    def delta(self, model: int) -> np.ndarray:
        """Return the task matrix of a model, (m, n) float64; not to be written to."""
        return self._deltas[model]

    def leading(self, model: int, k: int) -> Triplets:
        """Return the k leading singular triplets of the task matrix of a model."""
        return truncation.leading(self.delta(model), k)

    def truncated_rank(self) -> int:
        """Return ⌊min(m, n)/N⌋, at least 1: what each model gets of the rank there is."""
        return max(1, min(self.shape) // len(self))


def weighted_sum(matrices: Matrices, weights: Sequence[float], truncate: bool) -> np.ndarray:
    """Return Σ w_i·τ_i, in the order of the models, of the truncated or of the full task matrices."""
    total = np.zeros(matrices.shape)
    k = matrices.truncated_rank()
    for model, weight in enumerate(weights):
        delta = matrices.leading(model, k).matrix() if truncate else matrices.delta(model)
        total += weight * delta
    return total
