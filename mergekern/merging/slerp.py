"""Spherical linear interpolation of two models: Shoemake, "Animating rotation with quaternion curves", 1985."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from mergekern.merging.mergekit_names import Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number
from mergekern.merging.span import cosine, merge_in_span
from mergekern.merging.whole_tensor import Blockwise, WeightedSum, WholeTensor

DEFAULTS = {"t": None}
# Up to this sin² θ the interpolation is linear, as mergekit's is: |cos θ| > 0.9995.
PARALLEL = 1.0 - 0.9995**2


def coefficients(gram: np.ndarray, weights: np.ndarray, parallel: float) -> np.ndarray:
    """Return the coefficients of two vectors, (…, 2), from their inner products, (…, 2, 2).

    Args:
        gram: inner products.
        weights: (2,); their shares of the sum say how far the result is from either.
        parallel: sin² of the angle up to which the interpolation is linear.
    """
    total = weights.sum()
    shares = weights / total if abs(total) >= 1e-6 else np.array([0.5, 0.5])
    cos = cosine(gram, 0, 1)
    angle = np.arccos(cos)[..., None]
    is_linear = (1.0 - cos * cos <= parallel)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(is_linear, shares, np.sin(shares * angle) / np.sin(angle))


def tensor(tensor: WholeTensor, weights: Sequence[float], t: float | None) -> WeightedSum | Blockwise:
    """Return what is done to each element."""
    return merge_in_span(tensor, weights, partial(coefficients, parallel=PARALLEL), "models")


def weigh(weights: Sequence[float], t: float | None) -> Sequence[float]:
    """Return the weights of the first and the second model."""
    return weights if t is None else (1.0 - t, t)


def slerp(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    t: float | None = None,
) -> torch.Tensor:
    """Return the point at the share t of the arc from the first of two models to the second; one tensor, float64.

    (sin((1−t)·θ)·x₁ + sin(t·θ)·x₂) / sin θ, where θ is the angle of the whole tensors x₁ and x₂; (1−t)·x₁ + t·x₂ where
    they are nearly parallel, |cos θ| > 0.9995, as fine-tunes of one base often are. A tensor of zeros counts as
    orthogonal to any other. In place of t, weights may say how far the result is from either model. The base is of no
    account.

    >>> models = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    >>> slerp(torch.zeros(2), models, t=1 / 3)
    tensor([0.8660, 0.5000], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weigh(weights or (1.0, 1.0), t), {"t": t})


METHOD = Method(
    "slerp", "Shoemake 1985", "the point between two models on their arc", DEFAULTS, tensor=tensor, most=2,
    without_base=lambda t: True, weigh=weigh, checks={"t": number(-np.inf, optional=True)},
    mergekit=Mergekit(
        "slerp", (Parameter("t", "weights", read=lambda t: (1.0 - t, t), write=lambda w: w[1] / sum(w)),), base="first",
    ),
)  # fmt: skip
