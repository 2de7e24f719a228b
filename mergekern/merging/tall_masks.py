"""TALL masks, consensus: Wang et al., "Localizing task information for improved model merging", arXiv 2405.07813."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise
from mergekern.merging.method import Method, merge_elements
from mergekern.merging.option_checks import integer, number

DEFAULTS = {"share": 0.4, "needed": None, "scale": 1.0}


def elements(share: float, needed: int | None, scale: float) -> Elementwise:
    """Return what is done to each element: agree × rescale."""
    return Elementwise("agree", scale, share=share, needed=needed)


def tall_masks(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    share: float = 0.4,
    needed: int | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Return θ₀ + scale·Σ τ where at least `needed` tasks claim the element, else θ₀; one tensor, float64.

    Task t claims it where |τ_t| > share·|Σ τ − τ_t|. `needed` is 2 by default, and 1 for a pair.

    >>> tall_masks(torch.zeros(2), [torch.tensor([4.0, 1.0]), torch.tensor([1.0, -1.0]), torch.tensor([-2.0, 0.1])])
    tensor([3.0000, 0.1000], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(share, needed, scale), weights)


METHOD = Method(
    "tall_masks", "arXiv 2405.07813", "θ₀ + Σ τ where at least two tasks' masks agree", DEFAULTS, elements,
    checks={"share": number(0), "needed": integer(1, optional=True), "scale": number(-np.inf)},
)  # fmt: skip
