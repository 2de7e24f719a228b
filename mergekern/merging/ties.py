"""TIES: Yadav et al., "TIES-Merging: Resolving interference when merging models", arXiv 2306.01708."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise, Scope, Trim
from mergekern.merging.mergekit_names import DENSITY, INT8_MASK, LAMBDA, WEIGHT, Mergekit
from mergekern.merging.method import Method, merge_elements
from mergekern.merging.option_checks import number, one_of

DEFAULTS = {"density": 0.2, "scale": 0.3, "scope": "tensor"}


def elements(density: float, scale: float, scope: Scope) -> Elementwise:
    """Return what is done to each element: trim × elect × rescale."""
    return Elementwise("elect", scale, Trim(keep=density), scope)


def ties(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    density: float = 0.2,
    scale: float = 0.3,
) -> torch.Tensor:
    """Return the TIES merge of one tensor, float64.

    Each τ keeps its `density` largest elements by magnitude: the ⌊density·d⌋ largest, what equals the last of them, and
    at least one. Each element takes the sign of its sum; where that is zero, the sign of the tensor's summed signs (+
    if they are balanced). The mean of the entries of that sign is scaled and added to the base. In a merge of whole
    models, `scope="model"` trims and counts signs over the whole vector, as in the paper; "tensor" over each tensor, as
    in the study.

    >>> deltas = [torch.tensor([4.0, 1.0, -2.0, 0.0]), torch.tensor([2.0, -3.0, 0.5, 0.1])]
    >>> ties(torch.zeros(4), deltas, density=0.5, scale=1.0)
    tensor([ 3., -3., -2.,  0.], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(density, scale, "tensor"), weights)


METHOD = Method(
    "ties", "arXiv 2306.01708", "θ₀ + scale·(trimmed, sign-elected, disjoint mean of τ)", DEFAULTS, elements,
    checks={"density": number(0, 1, open_low=True), "scale": number(-np.inf), "scope": one_of("tensor", "model")},
    mergekit=Mergekit("ties", (WEIGHT, DENSITY, INT8_MASK, LAMBDA)),
)  # fmt: skip
