"""Task arithmetic: Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise
from mergekern.merging.mergekit_names import INT8_MASK, LAMBDA, WEIGHT, Mergekit, Parameter
from mergekern.merging.method import Method, merge_elements
from mergekern.merging.option_checks import number, one_of

DEFAULTS = {"scale": 0.3, "normalize": False}


def elements(scale: float, normalize: bool) -> Elementwise:
    """Return what is done to each element."""
    return Elementwise("mean" if normalize else "sum", scale)


def task_arithmetic(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    scale: float = 0.3,
    normalize: bool = False,
) -> torch.Tensor:
    """Return θ₀ + scale·Σ w τ of one tensor, float64; with `normalize` divided by Σ w. Negative weights forget a task.

    >>> task_arithmetic(torch.zeros(2), [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 2.0])], scale=0.5)
    tensor([2., 1.], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(scale, normalize), weights)


METHOD = Method(
    "task_arithmetic", "arXiv 2212.04089", "θ₀ + scale·Σ τ", DEFAULTS, elements,
    any_weight=lambda scale, normalize: not normalize, least=1,
    checks={"scale": number(-np.inf), "normalize": one_of(True, False)},
    mergekit=Mergekit("task_arithmetic", (WEIGHT, Parameter("normalize", "normalize", False), INT8_MASK, LAMBDA)),
)  # fmt: skip
