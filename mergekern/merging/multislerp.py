"""Multi-SLERP: the spherical mean of many models in one step, as mergekit has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from mergekern.errors import OptionError
from mergekern.merging.mergekit_names import WEIGHT, Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import one_of
from mergekern.merging.span import Vectors, merge_in_span
from mergekern.merging.whole_tensor import Blockwise, WeightedSum, WholeTensor

DEFAULTS = {"of": "models", "normalize": True}
# As in mergekit, lengths are this much longer where they divide.
EPSILON = 1e-8
# Share of the weights below which the sum of directions is rounding, and has no direction.
CANCELLED = 1e-7


def _epsilon(value: float) -> float:
    if not 0 <= value <= EPSILON:
        raise OptionError(f"eps is {value}; only up to {EPSILON} is supported: leave it out")
    return value


def coefficients(gram: np.ndarray, weights: np.ndarray, normalize: bool) -> np.ndarray:
    """Return the coefficients of N vectors, (N,), from their inner products, (N, N)."""
    weights = weights / weights.sum() if normalize else weights
    lengths = np.sqrt(np.diagonal(gram))
    directions = weights / (lengths + EPSILON)
    length = np.sqrt(max(directions @ gram @ directions, 0.0))
    if length <= CANCELLED * np.abs(weights).sum():
        return weights
    return directions * (weights @ lengths / length)


def tensor(tensor: WholeTensor, weights: Sequence[float], of: Vectors, normalize: bool) -> WeightedSum | Blockwise:
    """Return what is done to each element."""
    return merge_in_span(tensor, weights, partial(coefficients, normalize=normalize), of)


def multislerp(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    of: Vectors = "models",
    normalize: bool = True,
) -> torch.Tensor:
    """Return the mean direction of the models times their mean length; one tensor, float64.

    With u = x/|x| and w normalised to a sum of 1 unless `normalize=False`: Σ w·u / |Σ w·u| · Σ w·|x|. Where the
    directions cancel, the weighted mean of the models. `of="deltas"` merges task vectors, and adds the result to the
    base.

    >>> multislerp(torch.zeros(2), [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])])
    tensor([2.1213, 2.1213], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"of": of, "normalize": normalize})


METHOD = Method(
    "multislerp", "mergekit", "mean direction of the models × their mean length", DEFAULTS, tensor=tensor,
    without_base=lambda of, normalize: of == "models",
    checks={"of": one_of("models", "deltas"), "normalize": one_of(True, False)},
    mergekit=Mergekit(
        "multislerp",
        (WEIGHT, Parameter("normalize_weights", "normalize", True), Parameter("eps", None, EPSILON, read=_epsilon)),
        base="optional",
    ),
)  # fmt: skip
