"""Arcee Fusion, as mergekit has it: what of one model differs most from the base."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.merging.mergekit_names import Mergekit
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.whole_tensor import Block, Blockwise, WholeTensor

# Added to every probability, as in mergekit.
EPSILON = 1e-8


def tensor(tensor: WholeTensor, weights: Sequence[float]) -> Blockwise:
    """Return what is done to each element, after the quartiles of the importance are known."""
    last = tensor.shape[-1] if tensor.shape else 1

    def importance(block: Block) -> torch.Tensor:
        tuned, base = (each.reshape(-1, last).softmax(1) + EPSILON for each in (block.models[0], block.base))
        divergence = (tuned * (tuned / base).log()).sum(1, keepdim=True).clamp(min=0.0)
        return (block.deltas[0].abs().reshape(-1, last) * divergence).reshape(block.base.shape)

    places = [quarter * (tensor.count - 1) // 4 for quarter in (1, 2, 3)]  # in ascending order
    first, median, third = tensor.kth_largest(importance, [tensor.count - place for place in places], of_rows=True)
    threshold = median + 1.5 * (third - first)

    def combine(block: Block) -> torch.Tensor:
        kept = torch.where(importance(block) >= threshold, block.deltas[0], 0.0)
        return block.base + weights[0] * kept

    return Blockwise(combine, of_rows=True)


def arcee_fusion(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Return θ₀ + w·τ where τ is important, else θ₀; one tensor of one model, float64.

    The importance of an element is |τ|·KL(softmax x ‖ softmax θ₀), the divergence over the last axis and 1e-8 added to
    every probability. What is at least its median and 1.5 times the distance of its quartiles is kept; of n values in
    ascending order a quantile q is number ⌊q·(n−1)⌋.

    >>> arcee_fusion(torch.zeros(4), [torch.tensor([0.1, -0.1, 0.2, 3.0])])
    tensor([0., 0., 0., 3.], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {})


METHOD = Method(
    "arcee_fusion", "mergekit", "θ₀ + the elements of one τ that matter most", {}, tensor=tensor, least=1, most=1,
    mergekit=Mergekit("arcee_fusion"),
)  # fmt: skip
