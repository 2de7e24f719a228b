"""DARE: Yu et al., "Language models are super Mario", arXiv 2311.03099; and its composition with TIES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from mergekern.kernels.combine import Consensus
from mergekern.merging.elementwise import Elementwise, PerModel, Rescale, Scope, Trim, each
from mergekern.merging.mergekit_names import (
    DROPPED,
    INT8_MASK,
    LAMBDA,
    RESCALE_NORM,
    UNNORMALIZED,
    WEIGHT,
    Mergekit,
)
from mergekern.merging.method import Method, merge_elements
from mergekern.merging.option_checks import integer, number, one_of
from mergekern.merging.ties import ELECTED, Aggregate

Mask = Literal["random", "magnitude"]

DEFAULTS = {
    "rate": 0.9, "mask": "random", "seed": 0, "scale": 1.0, "scope": "tensor", "rescale": "density",
    "aggregate": "mean",
}  # fmt: skip
TIES_DEFAULTS = {**DEFAULTS, "scale": 0.3}


def elements(
    rate: PerModel, mask: Mask, seed: int, scale: float, scope: Scope, rescale: Rescale, aggregate: Aggregate,
    consensus: dict[Any, Consensus] | None = None,
) -> Elementwise:  # fmt: skip
    """Return what is done to each element: drop × rescale × mean or sum."""
    factor, multipliers = scale, None
    if rescale == "density" and isinstance(rate, tuple):
        multipliers = tuple(1.0 / (1.0 - own) for own in rate)
    elif rescale == "density" and not isinstance(rate, tuple):
        factor = scale / (1.0 - rate)
    trim = each(rate, lambda share: Trim(drop=share)) if mask == "magnitude" else None
    return Elementwise(
        (consensus or {"mean": "mean", "sum": "sum"})[aggregate], factor, trim, scope,
        drop=0.0 if mask == "magnitude" else rate, seed=seed, multipliers=multipliers, keeps_norm=rescale == "norm",
    )  # fmt: skip


def elements_of_ties(
    rate: PerModel, mask: Mask, seed: int, scale: float, scope: Scope, rescale: Rescale, aggregate: Aggregate
) -> Elementwise:
    """Return what is done to each element: drop × rescale × elect."""
    return elements(rate, mask, seed, scale, scope, rescale, aggregate, ELECTED)


def dare(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    rate: PerModel = 0.9,
    mask: Mask = "random",
    seed: int = 0,
    scale: float = 1.0,
    rescale: Rescale = "density",
    aggregate: Literal["mean", "sum"] = "mean",
) -> torch.Tensor:
    """Return the DARE merge of one tensor, float64.

    Each τ loses the share `rate` of its elements, at random (each by a Bernoulli draw) or the ⌊rate·d⌋ smallest; what
    is left is divided by 1 − rate, and the mean, or the sum, added to the base. `rescale="norm"` instead brings the sum
    of its magnitudes back to what it was, as mergekit does; "none" leaves it. A tuple of rates has one for each model.

    Random masks are functions of the seed, the tensor's name (empty here), the content of the model's tensor and the
    element's index: the order and the names of the models do not matter, and models that are equal in a tensor share
    its mask.

    >>> deltas = [torch.tensor([4.0, 1.0, -2.0, 0.0]), torch.tensor([2.0, -3.0, 0.5, 0.1])]
    >>> dare(torch.zeros(4), deltas, rate=0.5, mask="magnitude")
    tensor([ 6., -3., -2.,  0.], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(rate, mask, seed, scale, "tensor", rescale, aggregate), weights)


_CHECKS = {
    "rate": number(0, 1, open_high=True), "mask": one_of("random", "magnitude"), "seed": integer(0),
    "scale": number(-np.inf), "scope": one_of("tensor", "model"), "rescale": one_of("density", "norm", "none"),
}  # fmt: skip
_PARAMETERS = (WEIGHT, DROPPED, RESCALE_NORM, UNNORMALIZED, INT8_MASK, LAMBDA)
_FIXED = (("scope", "tensor"), ("mask", "random"))
METHOD = Method(
    "dare", "arXiv 2311.03099", "θ₀ + mean of τ with 90 % dropped and the rest rescaled", DEFAULTS, elements,
    any_weight=lambda aggregate, **_: aggregate != "mean", least=1, per_model=("rate",),
    checks={**_CHECKS, "aggregate": one_of("mean", "sum")},
    mergekit=Mergekit("dare_linear", _PARAMETERS, _FIXED),
)  # fmt: skip
DARE_TIES = Method(
    "dare_ties", "arXiv 2311.03099 with 2306.01708", "TIES of τ thinned by DARE", TIES_DEFAULTS, elements_of_ties,
    any_weight=lambda aggregate, **_: aggregate != "mean", least=1, per_model=("rate",),
    checks={**_CHECKS, "aggregate": one_of("mean", "sum", "max")},
    mergekit=Mergekit("dare_ties", _PARAMETERS, _FIXED),
)  # fmt: skip
