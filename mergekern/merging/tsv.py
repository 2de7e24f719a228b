"""TSV-Merge: Gargiulo et al., "Task singular vectors: reducing task interference", arXiv 2412.00081."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.polar.on_cpu import inverse_root
from mergekern.merging.matrices import Matrices
from mergekern.merging.recipe import Method, Recipe, merge_matrix, number

DEFAULTS = {"scale": 1.0}


def elements(scale: float) -> Recipe:
    """Return the recipe of tensors that are not matrices: the mean."""
    return Recipe("mean", scale)


def matrix(matrices: Matrices, weights: Sequence[float], scale: float) -> np.ndarray:
    """Return scale·polar(U)·Σ·polar(V)ᵀ of the stacked leading triplets."""
    k = matrices.truncated_rank()
    kept = [matrices.leading(model, k) for model in range(len(matrices))]
    left, right = (np.hstack(vectors) for vectors in zip(*((t.left, t.right) for t in kept), strict=True))
    values = np.concatenate([weight * t.values for weight, t in zip(weights, kept, strict=True)])
    if not len(values):
        return np.zeros(matrices.shape)
    # The roots are as small as the number of triplets; the long sides are multiplied once.
    inner = inverse_root(left)[0] * (scale * values) @ inverse_root(right)[0]
    return multiply_cheaply(left, inner, right.T)


def multiply_cheaply(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a·b·c in the order that takes fewer operations."""
    return (a @ b) @ c if a.shape[0] <= c.shape[1] else a @ (b @ c)


def tsv(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float] | None = None, *, scale: float = 1.0
) -> torch.Tensor:
    """Return the TSV merge of one tensor, float64.

    Of each task matrix the leading ⌊min(m, n)/N⌋ singular triplets (at least one, none of its null space) are stacked
    side by side; U and V are replaced by the nearest matrices with orthonormal columns, and multiplied out. Other
    tensors are averaged.

    >>> tsv(torch.zeros(2, 2), [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0]))])
    tensor([[3., 0.],
            [0., 2.]], dtype=torch.float64)
    """
    return merge_matrix(base, deltas, METHOD, weights, scale=scale)


METHOD = Method(
    "tsv", "arXiv 2412.00081", "θ₀ + scale·polar(U)·Σ·polar(V)ᵀ of each τ's leading singular triplets", DEFAULTS,
    elements, matrix, checks={"scale": number(-np.inf)},
)  # fmt: skip
