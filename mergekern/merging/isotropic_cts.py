"""Isotropic merging in common and task-specific subspaces (Iso-CTS): Marczak et al., arXiv 2502.04959."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergekern.kernels.spectrum import RANK_TOLERANCE
from mergekern.kernels.truncation import Triplets
from mergekern.merging.elementwise import Elementwise
from mergekern.merging.matrices import Matrices, weighted_sum
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number

DEFAULTS = {"scale": 1.0, "common_fraction": 0.8}


def elements(scale: float, common_fraction: float) -> Elementwise:
    """Return what is done to tensors that are not matrices: the mean."""
    return Elementwise("mean", scale)


def subspace_sizes(rank: int, models: int, common_fraction: float) -> tuple[int, int]:
    """Return the dimensions of the common subspace and of each task's own; they fill the rank.

    >>> subspace_sizes(48, 5, 0.8)
    (38, 2)
    """
    own = min(round((rank - int(rank * common_fraction)) / models), rank // models)
    return rank - own * models, own


def matrix(matrices: Matrices, weights: Sequence[float], scale: float, common_fraction: float) -> Any:
    """Return scale·mean(σ)·polar(U)·polar(V)ᵀ of the stacked common and task-specific directions."""
    rank, kernels = min(matrices.shape), matrices.kernels
    common_size, own_size = subspace_sizes(rank, len(matrices), common_fraction)
    sizes = [abs(weight) * _norm(matrices.delta(model)) for model, weight in enumerate(weights)]
    common = _above(kernels.leading(weighted_sum(matrices, weights, truncate=False), common_size), sum(sizes))
    own = []
    for model, weight in enumerate(weights):
        rest = weight * matrices.delta(model)
        rest -= common.left @ (common.left.T @ rest)
        own.append(_above(kernels.leading(rest, own_size), sizes[model]))
    mean = (float(common.values.sum()) + sum(float(part.values.sum()) for part in own)) / rank
    # The rest of a task is orthogonal to the common left subspace: only the own parts need a polar factor.
    left = kernels.stacked([common.left, kernels.polar(kernels.stacked([part.left for part in own]))])
    right = kernels.polar(kernels.stacked([common.right, *(part.right for part in own)]))
    return (scale * mean * left) @ right.T


def _norm(matrix: Any) -> float:
    return float(matrix.ravel() @ matrix.ravel()) ** 0.5


def _above(triplets: Triplets, size: float) -> Triplets:
    """Leave out triplets that are rounding errors of matrices of a size."""
    rank = int((triplets.values > RANK_TOLERANCE * size).sum())
    return Triplets(triplets.left[:, :rank], triplets.values[:rank], triplets.right[:, :rank])


def isotropic_cts(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
    common_fraction: float = 0.8,
) -> torch.Tensor:
    """Return the isotropic merge of one tensor in common and task-specific subspaces, float64.

    The leading directions of Σ τ, `common_fraction` of the rank, are kept; the rest is divided among the tasks, each
    of which adds the leading directions of what the common left subspace does not hold of it. Left and right directions
    are replaced by the nearest orthonormal ones, and every singular value by the mean. Tensors that
    are not matrices are averaged.

    >>> deltas = [torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])), torch.diag(torch.tensor([1.0, 2.0, 0.5, 0.2]))]
    >>> isotropic_cts(torch.zeros(4, 4), deltas, common_fraction=0.5).diag()
    tensor([1.8750, 1.8750, 1.8750, 0.0000], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"scale": scale, "common_fraction": common_fraction})


METHOD = Method(
    "isotropic_cts", "arXiv 2502.04959", "θ₀ + isotropic merge of common and task-specific directions", DEFAULTS,
    elements, matrix, checks={"scale": number(-np.inf), "common_fraction": number(0, 1)},
)  # fmt: skip
