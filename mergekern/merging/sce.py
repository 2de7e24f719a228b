"""SCE (select, calculate, erase): Wan et al., "FuseChat: Knowledge fusion of chat models", arXiv 2408.07990."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.merging.mergekit_names import INT8_MASK, Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number
from mergekern.merging.whole_tensor import Block, Blockwise, WholeTensor, total

DEFAULTS = {"density": 1.0}
# The least that the weights of an element are taken to sum to, as in mergekit.
LEAST = 1e-6


def variance(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the variance of each element over the models."""
    mean = _sum(deltas) / len(deltas)
    return _sum([(delta - mean).square() for delta in deltas]) / len(deltas)


def tensor(tensor: WholeTensor, weights: Sequence[float], density: float) -> Blockwise:
    """Return what is done to each element, after elements are selected and the models' weights are calculated."""
    threshold = 0.0
    if density < 1.0:
        varying = sum(int(variance(block.deltas).count_nonzero()) for block in tensor.blocks())
        k = int(density * varying)
        threshold = tensor.kth_largest(lambda block: variance(block.deltas), k) if k else np.inf

    def selected(block: Block) -> list[torch.Tensor]:
        deltas = block.deltas
        if threshold == 0.0:
            return deltas
        is_selected = variance(deltas) >= threshold
        return [torch.where(is_selected, delta, 0.0) for delta in deltas]

    squares = np.zeros(len(weights))
    for block in tensor.blocks():
        squares += [total(delta.square()) for delta in selected(block)]
    squares = squares * weights if (squares * weights).sum() > 0 else np.array(weights)
    shares = squares / squares.sum()

    def combine(block: Block) -> torch.Tensor:
        deltas = selected(block)
        signs = torch.where(_sum([w * delta for w, delta in zip(weights, deltas, strict=True)]) >= 0, 1.0, -1.0)
        agree = [delta * signs > 0 for delta in deltas]
        parts = zip(shares.tolist(), deltas, agree, strict=True)
        change = _sum([torch.where(is_kept, share * delta, 0.0) for share, delta, is_kept in parts])
        weight = _sum([share * is_kept.double() for share, is_kept in zip(shares.tolist(), agree, strict=True)])
        return block.base + change / weight.clamp(min=LEAST)

    return Blockwise(combine)


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a sum in the order of the models."""
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found


def sce(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float] | None = None, *, density: float = 1.0
) -> torch.Tensor:
    """Return the SCE merge of one tensor, float64.

    Select: of the elements whose variance over the models is not zero, the share `density` of the largest variance is
    kept, in all models alike. Calculate: a model weighs as the sum of the squares of what is kept of its τ. Erase:
    each element takes the sign of Σ w·τ, and is the weighted mean of the entries of that sign.

    >>> deltas = [torch.tensor([2.0, 1.0, 0.5]), torch.tensor([1.0, -1.0, 0.5])]
    >>> sce(torch.zeros(3), deltas, density=0.5)
    tensor([0., 1., 0.], dtype=torch.float64)
    >>> sce(torch.zeros(3), deltas)
    tensor([1.7000, 1.0000, 0.5000], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"density": density})


METHOD = Method(
    "sce", "arXiv 2408.07990", "θ₀ + mean of τ by energy, of the elected sign, where the models differ most", DEFAULTS,
    tensor=tensor, checks={"density": number(0, 1, open_low=True)},
    mergekit=Mergekit("sce", (Parameter("select_topk", "density", 1.0), INT8_MASK)),
)  # fmt: skip
