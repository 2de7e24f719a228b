"""DARE: Yu et al., "Language models are super Mario", arXiv 2311.03099; and its composition with TIES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise, Scope, Trim
from mergekern.merging.mergekit_names import DROPPED, INT8_MASK, LAMBDA, WEIGHT, Mergekit
from mergekern.merging.method import Method, merge_elements
from mergekern.merging.option_checks import integer, number, one_of

Mask = Literal["random", "magnitude"]

DEFAULTS = {"rate": 0.9, "mask": "random", "seed": 0, "scale": 1.0, "scope": "tensor"}
TIES_DEFAULTS = {**DEFAULTS, "scale": 0.3}


def elements(rate: float, mask: Mask, seed: int, scale: float, scope: Scope) -> Elementwise:
    """Return what is done to each element: drop × rescale × mean."""
    factor = scale / (1.0 - rate)
    if mask == "magnitude":
        return Elementwise("mean", factor, Trim(drop=rate), scope)
    return Elementwise("mean", factor, scope=scope, drop=rate, seed=seed)


def elements_of_ties(rate: float, mask: Mask, seed: int, scale: float, scope: Scope) -> Elementwise:
    """Return what is done to each element: drop × rescale × elect."""
    factor = scale / (1.0 - rate)
    if mask == "magnitude":
        return Elementwise("elect", factor, Trim(drop=rate), scope)
    return Elementwise("elect", factor, scope=scope, drop=rate, seed=seed)


def dare(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    rate: float = 0.9,
    mask: Mask = "random",
    seed: int = 0,
    scale: float = 1.0,
) -> torch.Tensor:
    """Return the DARE merge of one tensor, float64.

    Each τ loses the share `rate` of its elements, at random (each by a Bernoulli draw) or the ⌊rate·d⌋ smallest; what
    is left is divided by 1 − rate, and the mean added to the base. Random masks are functions of the seed, the tensor's
    name (empty here), the content of the model's tensor and the element's index: the order and the names of the models
    do not matter, and models that are equal in a tensor share its mask.

    >>> deltas = [torch.tensor([4.0, 1.0, -2.0, 0.0]), torch.tensor([2.0, -3.0, 0.5, 0.1])]
    >>> dare(torch.zeros(4), deltas, rate=0.5, mask="magnitude")
    tensor([ 6., -3., -2.,  0.], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(rate, mask, seed, scale, "tensor"), weights)


_CHECKS = {
    "rate": number(0, 1, open_high=True), "mask": one_of("random", "magnitude"), "seed": integer(0),
    "scale": number(-np.inf), "scope": one_of("tensor", "model"),
}  # fmt: skip
METHOD = Method(
    "dare", "arXiv 2311.03099", "θ₀ + mean of τ with 90 % dropped and the rest rescaled", DEFAULTS, elements,
    checks=_CHECKS, mergekit=Mergekit("dare_linear", (WEIGHT, DROPPED, INT8_MASK, LAMBDA)),
)  # fmt: skip
DARE_TIES = Method(
    "dare_ties", "arXiv 2311.03099 with 2306.01708", "TIES of τ thinned by DARE", TIES_DEFAULTS, elements_of_ties,
    checks=_CHECKS, mergekit=Mergekit("dare_ties", (WEIGHT, DROPPED, INT8_MASK, LAMBDA)),
)  # fmt: skip
