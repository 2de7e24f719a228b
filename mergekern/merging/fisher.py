"""Fisher-weighted averaging: Matena and Raffel, "Merging models with Fisher-weighted averaging", arXiv 2111.09832."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.merging.method import Method
from mergekern.merging.of_tensor import OfTensor
from mergekern.merging.option_checks import number, one_of
from mergekern.merging.whole_tensor import Block, Blockwise, TensorInMemory, WeightedSum, WholeTensor, merge_in_memory

DEFAULTS = {"floor": 1e-6, "normalize": True}


def tensor(tensor: WholeTensor, weights: Sequence[float], floor: float, normalize: bool) -> WeightedSum | Blockwise:
    """Return what is done to each element: the mean of the models, weighted by their Fisher information."""
    if tensor.gathered is None:
        return WeightedSum(tuple(weight / sum(weights) for weight in weights))
    found = tensor.gathered
    lengths = [norm if normalize and norm > 0 else 1.0 for norm in found.norms]
    coefficients = [weight / length for weight, length in zip(weights, lengths, strict=True)]
    fishers = [values.reshape(-1) for values in found.values]

    def combine(block: Block) -> torch.Tensor:
        change, total = torch.zeros_like(block.base), torch.zeros_like(block.base)
        here = slice(block.start, block.start + block.base.numel())
        for coefficient, fisher, delta in zip(coefficients, fishers, block.deltas, strict=True):
            share = fisher[here].to(delta.device, torch.float64).clamp(min=floor).view(delta.shape) * coefficient
            change, total = change + share * delta, total + share
        mean = sum(weight * delta for weight, delta in zip(weights, block.deltas, strict=True)) / sum(weights)
        return block.base + torch.where(total > 0, change / total, mean)

    return Blockwise(combine)


def fisher(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    fishers: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    norms: Sequence[float] | None = None,
    floor: float = 1e-6,
    normalize: bool = True,
) -> torch.Tensor:
    """Return the Fisher-weighted mean of one tensor, float64.

    θ = Σ c·F·θ / Σ c·F, element by element, where F is the diagonal of a model's Fisher information, at least `floor`,
    and c is the model's weight; with `normalize` divided by the Euclidean length of the Fisher information of the whole
    model, so that no model counts for more since its loss is steeper. The floor of all models is that which the
    authors' code gives the first one, their target; for the others it has none. Where all F are zero (and the floor
    is), the plain weighted mean.

    The Fisher information of a model is the mean over its samples of E[(∂ log p(y|x) / ∂θ)²]. Of classifiers of up to
    100 classes the expectation is exact, over the model's own probabilities; else it is the square of the gradient of
    the calibration's loss with the labels as they are given (the empirical Fisher), which a note says.

    Args:
        base: any shape and float dtype.
        deltas: tuned − base of each model.
        fishers: diagonal of the Fisher information of each model, of the same shape.
        weights: one for each model; 1 by default.
        norms: length of the Fisher information of each whole model; by default that of the tensor.
        floor, normalize: see above.

    >>> models = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])]
    >>> fisher(torch.zeros(2), models, [torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])], normalize=False)
    tensor([1.5000, 2.0000], dtype=torch.float64)
    """
    whole = TensorInMemory(base, deltas)
    lengths = norms or [float(each.double().norm()) for each in fishers]
    whole.gathered = OfTensor(list(fishers), list(lengths), False)
    return merge_in_memory(base, deltas, tensor(whole, weights or [1.0] * len(deltas), floor, normalize))


METHOD = Method(
    "fisher", "arXiv 2111.09832", "mean of the models, each element weighted by its Fisher information", DEFAULTS,
    tensor=tensor, checks={"floor": number(0), "normalize": one_of(True, False)}, needs="fisher",
)  # fmt: skip
