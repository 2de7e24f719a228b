"""The Riemannian centre of mass on the sphere: Karcher, "Riemannian center of mass and mollifier smoothing", 1977."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from mergekern.merging.mergekit_names import Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import integer, number
from mergekern.merging.span import cosine, merge_in_span
from mergekern.merging.whole_tensor import Blockwise, WeightedSum, WholeTensor

DEFAULTS = {"max_iter": 10, "tol": 1e-5}


def coefficients(gram: np.ndarray, weights: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    """Return the coefficients of N vectors, (N,), from their inner products, (N, N).

    The mean and every step are combinations of the N directions, so that all is done on their coefficients.
    """
    weights = weights / weights.sum()
    lengths = np.sqrt(np.diagonal(gram))
    models = range(len(weights))
    cosines = np.array(
        [[1.0 if i == j and lengths[i] > 0 else float(cosine(gram, i, j)) for j in models] for i in models]
    )
    has_direction = lengths > 0
    own = np.where(has_direction, weights, 0.0)
    own = own / own.sum() if own.sum() > 0 else own
    mean, size = own, _length(own, cosines)
    if size <= tol:  # the directions cancel, or there are none
        return weights
    mean = mean / size
    for _ in range(max_iter):
        along = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(along)
        with np.errstate(divide="ignore", invalid="ignore"):
            pulls = np.where(has_direction & (angles >= tol), own * angles / np.sin(angles), 0.0)
        step = pulls - (pulls @ along) * mean
        size = _length(step, cosines)
        if size < tol:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
        mean = mean / _length(mean, cosines)
    return mean * (weights @ lengths) / np.where(has_direction, lengths, 1.0)


def _length(vector: np.ndarray, cosines: np.ndarray) -> float:
    """Return the length of a combination of directions."""
    return float(np.sqrt(max(vector @ cosines @ vector, 0.0)))


def tensor(tensor: WholeTensor, weights: Sequence[float], max_iter: int, tol: float) -> WeightedSum | Blockwise:
    """Return what is done to each element."""
    return merge_in_span(tensor, weights, partial(coefficients, max_iter=max_iter, tol=tol), "models")


def karcher(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
) -> torch.Tensor:
    """Return the Karcher mean of the models' directions times their mean length; one tensor, float64.

    The mean m minimises Σ w·θ², where θ is the angle of m and a model. From the normalised mean of the directions, up
    to `max_iter` steps g = Σ w·θ/sin θ·(u − cos θ·m) along the sphere, until |g| < tol. Where the directions cancel,
    the weighted mean of the models. The base is of no account.

    >>> karcher(torch.zeros(2), [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])], [2.0, 1.0])
    tensor([2.3094, 1.3333], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"max_iter": max_iter, "tol": tol})


METHOD = Method(
    "karcher", "Karcher 1977", "Riemannian mean of the models' directions × their mean length", DEFAULTS, tensor=tensor,
    without_base=lambda max_iter, tol: True, checks={"max_iter": integer(0), "tol": number(0, open_low=True)},
    mergekit=Mergekit("karcher", (Parameter("max_iter", "max_iter", 10), Parameter("tol", "tol", 1e-5)), base="model"),
)  # fmt: skip
