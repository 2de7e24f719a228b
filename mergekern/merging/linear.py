"""Linear combinations of models: Wortsman et al., "Model soups", arXiv 2203.05482."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.errors import OptionError
from mergekern.merging.mergekit_names import WEIGHT, Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import one_of
from mergekern.merging.whole_tensor import WeightedSum, WholeTensor

DEFAULTS = {"normalize": True}


def tensor(tensor: WholeTensor, weights: Sequence[float], normalize: bool) -> WeightedSum:
    """Return what is done to each element."""
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise OptionError("the weights of linear sum to 0; give other weights, or normalize=False")
    return WeightedSum(tuple(weight / total for weight in weights), of_models=True)


def linear(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    normalize: bool = True,
) -> torch.Tensor:
    """Return Σ w x / Σ w of one tensor, float64, or Σ w x if it is not normalised; the base is of no account.

    >>> base, deltas = torch.ones(2), [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 2.0])]
    >>> linear(base, deltas, [1.0, 3.0])
    tensor([3.5000, 2.5000], dtype=torch.float64)
    >>> linear(base, deltas, [0.5, 0.25], normalize=False)
    tensor([2.0000, 1.2500], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"normalize": normalize})


METHOD = Method(
    "linear", "arXiv 2203.05482", "Σ w·x / Σ w of the models themselves", DEFAULTS, tensor=tensor, any_weight=True,
    without_base=lambda normalize: True, checks={"normalize": one_of(True, False)},
    mergekit=Mergekit("linear", (WEIGHT, Parameter("normalize", "normalize", True)), base="model"),
)  # fmt: skip
