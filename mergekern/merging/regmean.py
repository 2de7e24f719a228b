"""RegMean: Jin et al., "Dataless knowledge fusion by merging weights of language models", arXiv 2212.09849."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise
from mergekern.merging.matrices import Matrices
from mergekern.merging.method import Method
from mergekern.merging.of_tensor import OfTensor
from mergekern.merging.option_checks import number

DEFAULTS = {"alpha": 0.9}
# Directions of the inputs with less than this share of the largest eigenvalue, once all inputs are scaled to length 1,
# count as those of no input.
LEAST = 1e-12


def elements(alpha: float) -> Elementwise:
    """Return what is done to tensors that are no weights of linear layers: the mean."""
    return Elementwise("mean")


def matrix(matrices: Matrices, weights: Sequence[float], alpha: float) -> Any:
    """Return the task matrix whose outputs are nearest to those of all models on their own inputs."""
    found = matrices.gathered
    assert found is not None
    deltas = [matrices.delta(model) for model in range(len(matrices))]
    deltas = [delta.T for delta in deltas] if found.of_rows else deltas
    mean = sum(weight * delta for weight, delta in zip(weights, deltas, strict=True)) / sum(weights)
    total, rest = None, None
    for weight, values, delta in zip(weights, found.values, deltas, strict=True):
        gram = weight * _scaled(_like(values, delta), alpha)
        part = (delta - mean) @ gram
        total = gram if total is None else total + gram
        rest = part if rest is None else rest + part
    merged = mean + _divided(rest, total, is_regular=alpha < 1.0)
    return merged.T if found.of_rows else merged


def _like(values: torch.Tensor, delta: Any) -> Any:
    """Return a tensor as task matrices are: as an array, or on their device; float64."""
    return values.double().numpy() if isinstance(delta, np.ndarray) else values.to(delta.device, torch.float64)


def _scaled(gram: Any, alpha: float) -> Any:
    """Return a matrix with all but its diagonal multiplied by alpha."""
    identity = np.eye(len(gram)) if isinstance(gram, np.ndarray) else torch.eye(len(gram)).to(gram)
    return gram * (alpha + (1.0 - alpha) * identity)


def _divided(rest: Any, total: Any, is_regular: bool) -> Any:
    """Return rest·total⁺ of a positive semidefinite matrix, which is scaled to a diagonal of ones first.

    Args:
        rest: (m, n).
        total: (n, n).
        is_regular: whether the scaled matrix is positive definite, but for inputs that are always zero.
    """
    arrays: Any = np if isinstance(total, np.ndarray) else torch
    diagonal = arrays.diagonal(total)
    is_used = diagonal > 0
    scale = arrays.where(is_used, 1.0 / arrays.sqrt(arrays.where(is_used, diagonal, 1.0)), 0.0)
    scaled = scale[:, None] * total * scale
    if is_regular:
        regular = scaled + arrays.diag(arrays.where(is_used, 0.0, 1.0))
        return arrays.linalg.solve(regular, (rest * scale).T).T * scale
    values, vectors = arrays.linalg.eigh(scaled)
    kept = values > LEAST * len(values) * values.max()
    return ((rest * scale) @ vectors[:, kept]) / values[kept] @ vectors[:, kept].T * scale


def regmean(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    grams: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    alpha: float = 0.9,
) -> torch.Tensor:
    """Return the RegMean merge of the weight (m, n) of one linear layer, float64.

    W = (Σ w·W·G)·(Σ w·G)⁻¹, the weight whose outputs are nearest to those of all models, each on its own inputs, in the
    least squares. G = XᵀX / rows, the inner products of the n inputs of the layer over all rows that pass through it
    (padding too), as in the authors' code; all but its diagonal is multiplied by `alpha`. In directions in which no
    model has inputs, the plain weighted mean. Tensors that are no weights of linear layers are averaged.

    Args:
        base: (m, n), any float dtype.
        deltas: tuned − base of each model.
        grams: G of each model, (n, n), before the scaling.
        weights: one for each model; 1 by default.
        alpha: from 0 (each input by itself) to 1.

    >>> models = [torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 3.0]])]
    >>> regmean(torch.zeros(1, 2), models, [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 1.0]))])
    tensor([[1.5000, 2.0000]], dtype=torch.float64)
    """
    matrices = Matrices([delta.double().numpy() for delta in deltas])
    matrices.gathered = OfTensor(list(grams), [1.0] * len(grams), False)
    return base.double() + torch.from_numpy(matrix(matrices, weights or [1.0] * len(deltas), alpha))


METHOD = Method(
    "regmean", "arXiv 2212.09849", "weights of linear layers whose outputs are nearest to all models'", DEFAULTS,
    elements, matrix, checks={"alpha": number(0, 1)}, needs="inputs",
)  # fmt: skip
