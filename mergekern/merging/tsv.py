"""TSV-Merge: Gargiulo et al., "Task singular vectors: reducing task interference", arXiv 2412.00081."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise
from mergekern.merging.matrices import Matrices
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number

DEFAULTS = {"scale": 1.0}


def elements(scale: float) -> Elementwise:
    """Return what is done to tensors that are not matrices: the mean."""
    return Elementwise("mean", scale)


def matrix(matrices: Matrices, weights: Sequence[float], scale: float) -> Any:
    """Return scale·polar(U)·Σ·polar(V)ᵀ of the stacked leading triplets."""
    kept = [matrices.leading(model, matrices.truncated_rank()) for model in range(len(matrices))]
    spectra = [scale * weight * triplets.values for weight, triplets in zip(weights, kept, strict=True)]
    return matrices.kernels.polar_product([t.left for t in kept], spectra, [t.right for t in kept])


def tsv(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float] | None = None, *, scale: float = 1.0
) -> torch.Tensor:
    """Return the TSV merge of one tensor, float64.

    The leading ⌊min(m, n)/N⌋ singular triplets of each task matrix (at least one, none of its null space) are stacked
    side by side; U and V are replaced by the nearest matrices with orthonormal columns, and multiplied out. Weights
    multiply singular values: a model of weight 0 still has its directions among the others. Tensors that are not
    matrices are averaged.

    >>> tsv(torch.zeros(2, 2), [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0]))])
    tensor([[3., 0.],
            [0., 2.]], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"scale": scale})


METHOD = Method(
    "tsv", "arXiv 2412.00081", "θ₀ + scale·polar(U)·Σ·polar(V)ᵀ of each τ's leading singular triplets", DEFAULTS,
    elements, matrix, checks={"scale": number(-np.inf)},
)  # fmt: skip
