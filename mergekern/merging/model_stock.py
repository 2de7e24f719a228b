"""Model Stock: Jang et al., "Model Stock: All we need is just a few fine-tuned models", arXiv 2403.19522."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch

from mergekern.merging.mergekit_names import Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import one_of
from mergekern.merging.span import Along, cosine, merge_in_span
from mergekern.merging.whole_tensor import Blockwise, WeightedSum, WholeTensor

DEFAULTS = {"along": "tensor", "clip": False}


def coefficients(gram: np.ndarray, weights: np.ndarray, clip: bool) -> np.ndarray:
    """Return the coefficients of N task vectors, (…, N), from their inner products, (…, N, N)."""
    models = len(weights)
    pairs = list(combinations(range(models), 2))
    cos = sum(cosine(gram, i, j) for i, j in pairs) / len(pairs)
    below = 1.0 + (models - 1) * cos
    t = np.where(below < 1e-6, 0.0, models * cos / np.where(below < 1e-6, 1.0, below))
    t = np.clip(t, 0.0, 1.0) if clip else t
    return t[..., None] * (weights / weights.sum())


def tensor(tensor: WholeTensor, weights: Sequence[float], along: Along, clip: bool) -> WeightedSum | Blockwise:
    """Return what is done to each element."""
    return merge_in_span(tensor, weights, partial(coefficients, clip=clip), "deltas", along)


def model_stock(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    along: Along = "tensor",
    clip: bool = False,
) -> torch.Tensor:
    """Return θ₀ + t·mean τ of one tensor, float64, with t = N·c/(1 + (N−1)·c) of the mean cosine c of two task vectors.

    The nearer the models are to one direction, the nearer the result is to their mean. `along="rows"` has a t for each
    row of a matrix, which is a filter or a neuron; vectors are always whole. Where c is negative, of which the paper
    has no case, so is t, as in mergekit: the result then lies on the other side of the base, and far from it where 1 +
    (N−1)·c is small. `clip=True` keeps t from 0 to 1. A task vector of zero counts as orthogonal to the others.

    Weights weigh the mean, not the angle.

    >>> model_stock(torch.zeros(2), [torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0**0.5])])
    tensor([1.0000, 0.5774], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"along": along, "clip": clip})


METHOD = Method(
    "model_stock", "arXiv 2403.19522", "θ₀ + t·mean τ, t by the angles of the task vectors", DEFAULTS, tensor=tensor,
    checks={"along": one_of("tensor", "rows"), "clip": one_of(True, False)},
    mergekit=Mergekit(
        "model_stock",
        (
            Parameter("filter_wise", "along", False, read=lambda rows: "rows" if rows else "tensor",
                      write=lambda along: along == "rows"),
        ),
        fixed=(("clip", False),),
    ),
)  # fmt: skip
