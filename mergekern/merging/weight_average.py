"""Weight averaging: Wortsman et al., "Model soups", arXiv 2203.05482."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.merging.elementwise import Elementwise
from mergekern.merging.mergekit_names import WEIGHT, Mergekit, Parameter
from mergekern.merging.method import Method, merge_elements


def elements() -> Elementwise:
    """Return what is done to each element."""
    return Elementwise("mean")


def weight_average(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Return θ₀ + Σ w τ / Σ w of one tensor, float64.

    >>> weight_average(torch.ones(2), [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 2.0])])
    tensor([3., 2.], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(), weights)


METHOD = Method(
    "weight_average", "arXiv 2203.05482", "θ₀ + mean τ", {}, elements,
    mergekit=Mergekit("linear", (WEIGHT, Parameter("normalize", None, True)), base="model"),
)  # fmt: skip
