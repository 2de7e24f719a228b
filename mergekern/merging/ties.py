"""TIES: Yadav et al., "TIES-Merging: Resolving interference when merging models", arXiv 2306.01708."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from mergekern.kernels.combine import Consensus
from mergekern.merging.elementwise import Elementwise, PerModel, Scope, Trim, each
from mergekern.merging.mergekit_names import DENSITY, INT8_MASK, LAMBDA, NORMALIZE, WEIGHT, Mergekit
from mergekern.merging.method import Method, merge_elements
from mergekern.merging.option_checks import number, one_of

Aggregate = Literal["mean", "sum", "max"]
Sign = Literal["mass", "count"]

DEFAULTS = {"density": 0.2, "scale": 0.3, "scope": "tensor", "aggregate": "mean", "sign": "mass"}
ELECTED: dict[Aggregate, Consensus] = {"mean": "elect", "sum": "elect_sum", "max": "elect_max"}


def elements(density: PerModel, scale: float, scope: Scope, aggregate: Aggregate, sign: Sign) -> Elementwise:
    """Return what is done to each element: trim × elect × rescale."""
    trims = each(density, lambda share: Trim(keep=share))
    return Elementwise(ELECTED[aggregate], scale, trims, scope, by_count=sign == "count")


def ties(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    density: PerModel = 0.2,
    scale: float = 0.3,
    aggregate: Aggregate = "mean",
    sign: Sign = "mass",
) -> torch.Tensor:
    """Return the TIES merge of one tensor, float64.

    Each τ keeps its `density` largest elements by magnitude: the ⌊density·d⌋ largest, what equals the last of them, and
    at least one. Each element takes the sign of its sum (`sign="count"`: the sign that more models have); where that is
    zero, the sign of the tensor's summed signs (+ if they are balanced). The mean of the entries of that sign, their
    sum, or the largest, is scaled and added to the base. In a merge of whole models, `scope="model"` trims and counts
    signs over the whole vector, as in the paper; "tensor" over each tensor, as in the study. A tuple of densities has
    one for each model.

    A negative weight turns its τ around before the vote, which subtracts a task; it needs `aggregate="sum"` or "max": a
    mean would divide by it again.

    >>> deltas = [torch.tensor([4.0, 1.0, -2.0, 0.0]), torch.tensor([2.0, -3.0, 0.5, 0.1])]
    >>> ties(torch.zeros(4), deltas, density=0.5, scale=1.0)
    tensor([ 3., -3., -2.,  0.], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(density, scale, "tensor", aggregate, sign), weights)


METHOD = Method(
    "ties", "arXiv 2306.01708", "θ₀ + scale·(trimmed, sign-elected, disjoint mean of τ)", DEFAULTS, elements,
    any_weight=lambda aggregate, **_: aggregate != "mean", least=1, per_model=("density",),
    checks={
        "density": number(0, 1, open_low=True), "scale": number(-np.inf), "scope": one_of("tensor", "model"),
        "aggregate": one_of("mean", "sum", "max"), "sign": one_of("mass", "count"),
    },
    mergekit=Mergekit(
        "ties", (WEIGHT, DENSITY, NORMALIZE, INT8_MASK, LAMBDA), fixed=(("scope", "tensor"), ("sign", "mass")),
    ),
)  # fmt: skip
