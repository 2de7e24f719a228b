"""The task matrices of one tensor, as matrix methods see them: whole, or truncated and then kept for other merges.

The methods are written in operators that NumPy arrays and tensors share (`@`, `*`, `.T`, slices), and in the kernels
that come with the matrices, so that one rule serves the processor and a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mergekern.kernels.polar import on_cpu as polar_on_cpu
from mergekern.kernels.polar import on_torch as polar_on_torch
from mergekern.kernels.truncation import Triplets
from mergekern.kernels.truncation import on_cpu as truncation_on_cpu
from mergekern.kernels.truncation import on_torch as truncation_on_torch
from mergekern.merging.of_tensor import OfTensor


class MatrixKernels(NamedTuple):
    """The kernels that matrix methods are made of.

    Attributes:
        leading: (matrix, k) -> Triplets.
        polar: (matrix) -> its orthogonal factor.
        polar_product: (left, weights, right) -> polar(left)·diag(weights)·polar(right)ᵀ, each a sequence of blocks.
        stacked: blocks of columns side by side.
    """

    leading: Callable[[Any, int], Triplets]
    polar: Callable[[Any], Any]
    polar_product: Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any]
    stacked: Callable[[list[Any]], Any]


ON_CPU = MatrixKernels(
    truncation_on_cpu.leading, polar_on_cpu.polar, polar_on_cpu.polar_product, np.hstack
)  # fmt: skip
ON_TORCH = MatrixKernels(
    truncation_on_torch.leading, polar_on_torch.polar, polar_on_torch.polar_product, torch.hstack
)  # fmt: skip


class Matrices:
    """N task matrices of one shape.

    Args:
        deltas: N task matrices, (m, n) float64.
        kernels: for NumPy arrays or for tensors, as the matrices are.

    Attributes:
        shape: (m, n).
        kernels: for these matrices.
        gathered: what runs of the models gave of the tensor, for methods that need it.
    """

    gathered: OfTensor | None = None

    def __init__(self, deltas: Sequence[Any], kernels: MatrixKernels = ON_CPU) -> None:
        self._deltas, self.kernels = deltas, kernels
        self.shape = tuple(deltas[0].shape)

    def __len__(self) -> int:
        return len(self._deltas)

    def delta(self, model: int) -> Any:
        """Return the task matrix of a model, (m, n) float64; not to be written to."""
        return self._deltas[model]

    def leading(self, model: int, k: int) -> Triplets:
        """Return the k leading singular triplets of the task matrix of a model."""
        return self.kernels.leading(self.delta(model), k)

    def truncated_rank(self) -> int:
        """Return ⌊min(m, n)/N⌋, at least 1: the share of the rank that each model gets."""
        return max(1, min(self.shape) // len(self))


def weighted_sum(matrices: Matrices, weights: Sequence[float], truncate: bool) -> Any:
    """Return Σ w_i·τ_i of the truncated or of the full task matrices, summed in the order of the models."""
    k = matrices.truncated_rank()
    total = None
    for model, weight in enumerate(weights):
        part = matrices.leading(model, k).matrix(weight) if truncate else weight * matrices.delta(model)
        if total is None:
            total = part
        else:
            total += part
    return total
