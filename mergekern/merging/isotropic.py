"""Isotropic merging (Iso-C): Marczak et al., "No task left behind", arXiv 2502.04959."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise
from mergekern.merging.matrices import Matrices, weighted_sum
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number, one_of

DEFAULTS = {"scale": 1.0, "truncate": True}


def elements(scale: float, truncate: bool | None) -> Elementwise:
    """Return what is done to tensors that are not matrices: the mean."""
    return Elementwise("mean", scale)


def matrix(matrices: Matrices, weights: Sequence[float], scale: float, truncate: bool | None) -> Any:
    """Return scale·mean(σ)·polar(Σ τ), with mean(σ) = tr(polarᵀ·Σ τ)/min(m, n)."""
    total = weighted_sum(matrices, weights, bool(truncate))
    factor = matrices.kernels.polar(total)
    factor *= scale * float(factor.ravel() @ total.ravel()) / min(matrices.shape)
    return factor


def isotropic(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
    truncate: bool | None = True,
) -> torch.Tensor:
    """Return the isotropic merge of one tensor, float64.

    The task matrices, each truncated to its ⌊min(m, n)/N⌋ leading singular triplets (`truncate=None`: not truncated, as
    first published), are summed, and the singular values of the sum replaced by their mean over all min(m, n). Null
    directions stay at zero. Tensors that are not matrices are averaged.

    >>> isotropic(torch.zeros(2, 2), [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0]))])
    tensor([[2.5000, 0.0000],
            [0.0000, 2.5000]], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"scale": scale, "truncate": truncate})


METHOD = Method(
    "isotropic", "arXiv 2502.04959", "θ₀ + scale·mean(σ)·polar(Σ τ), each τ truncated", DEFAULTS, elements, matrix,
    checks={"scale": number(-np.inf), "truncate": one_of(True, False, None)},
)  # fmt: skip
