"""Merges in the span of the models: inner products -> coefficients -> weighted sum.

Spherical interpolation, its mean of many models and ModelStock all are Σ c·x, with coefficients c that depend on the
models through their inner products alone: of the whole tensor, or of each row or column by itself. A method of this
kind is one function, (Gram, weights) -> coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from mergekern.merging.whole_tensor import Block, Blockwise, WeightedSum, WholeTensor, sums

Along = Literal["tensor", "rows", "columns"]
Vectors = Literal["models", "deltas"]
# Inner products (…, N, N) and weights (N,) -> coefficients (…, N), all float64.
Coefficients = Callable[[np.ndarray, np.ndarray], np.ndarray]


def merge_in_span(
    tensor: WholeTensor, weights: Sequence[float], coefficients: Coefficients, of: Vectors, along: Along = "tensor"
) -> WeightedSum | Blockwise:
    """Return the merge of a tensor by coefficients of its inner products.

    Args:
        tensor: in the base and in N models.
        weights: one for each model.
        coefficients: function of inner products and weights.
        of: the vectors that are merged: the models, or their task vectors, whose merge is added to the base.
        along: whether coefficients are those of the whole tensor, or of each row or column. Vectors are always whole.
    """
    of_models, wanted = of == "models", np.array(weights, dtype=np.float64)
    if along == "tensor" or len(tensor.shape) < 2:
        found = coefficients(tensor.gram(of_models), wanted)
        return WeightedSum(tuple(found.tolist()), of_models)

    def vectors(block: Block) -> list[torch.Tensor]:
        return block.models if of_models else block.deltas

    of_columns = None
    if along == "columns":
        grams = np.zeros((tensor.columns, len(weights), len(weights)))
        for block in tensor.blocks(of_rows=True):
            grams += _grams(vectors(block), 0)
        of_columns = coefficients(grams, wanted)[None]

    def combine(block: Block) -> torch.Tensor:
        parts = vectors(block)
        found = coefficients(_grams(parts, 1), wanted)[:, None] if of_columns is None else of_columns
        total = torch.zeros_like(block.base) if of_models else block.base
        for model, part in enumerate(parts):
            total = total + torch.from_numpy(np.ascontiguousarray(found[..., model])).to(part.device) * part
        return total

    return Blockwise(combine, of_rows=True)


def _grams(parts: Sequence[torch.Tensor], axis: int) -> np.ndarray:
    """Return the inner products of the rows (axis 1) or columns (axis 0) of matrices, (rows or columns, N, N)."""
    grams = np.empty((parts[0].shape[1 - axis], len(parts), len(parts)))
    for i, first in enumerate(parts):
        for j in range(i + 1):
            grams[:, i, j] = grams[:, j, i] = sums(first * parts[j], axis)
    return grams


def cosine(gram: np.ndarray, i: int, j: int) -> np.ndarray:
    """Return the cosine of the angle of two vectors, (…); 0 where one of them is zero.

    >>> cosine(np.array([[[4.0, 3.0], [3.0, 9.0]], [[4.0, 0.0], [0.0, 0.0]]]), 0, 1)
    array([0.5, 0. ])
    """
    size = np.sqrt(gram[..., i, i] * gram[..., j, j])
    return np.clip(np.divide(gram[..., i, j], size, out=np.zeros_like(size), where=size > 0), -1.0, 1.0)
