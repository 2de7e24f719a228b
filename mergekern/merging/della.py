"""DELLA: Deep et al., "DELLA-Merging: Reducing interference by magnitude-based sampling", arXiv 2406.11617."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from mergekern.kernels.combine import Consensus, Rule
from mergekern.kernels.combine.reference import uniform
from mergekern.merging.elementwise import PerModel, Rescale
from mergekern.merging.mergekit_names import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    NORMALIZE,
    RESCALE_NORM,
    UNNORMALIZED,
    WEIGHT,
    Mergekit,
    Parameter,
)
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import integer, number, one_of
from mergekern.merging.ties import ELECTED, Aggregate
from mergekern.merging.whole_tensor import Block, Blockwise, WholeTensor, total

DEFAULTS = {
    "density": 0.5, "epsilon": 0.15, "seed": 0, "scale": 1.0, "rescale": "density", "aggregate": "mean",
}  # fmt: skip
LINEAR: dict[Aggregate, Consensus] = {"mean": "mean", "sum": "sum"}


def tensor(
    tensor: WholeTensor, weights: Sequence[float], density: PerModel, epsilon: PerModel, seed: int, scale: float,
    rescale: Rescale, aggregate: Aggregate, consensus: dict[Aggregate, Consensus],
) -> Blockwise:  # fmt: skip
    """Return what is done to each element: drop by magnitude × rescale × consensus."""
    models = len(weights)
    shares, spreads = (value if isinstance(value, tuple) else (value,) * models for value in (density, epsilon))
    keys, last = tensor.mask_keys(seed), tensor.shape[-1] if tensor.shape else 1

    def kept(block: Block) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for key, share, spread, delta in zip(keys, shares, spreads, block.deltas, strict=True):
            chances = keeping_chances(delta.reshape(-1, last), share, spread).reshape(delta.shape)
            numbers = torch.from_numpy(uniform(key, block.start, delta.numel()).astype(np.float64) / 2.0**53)
            part = torch.where(numbers.to(delta.device).view(delta.shape) < chances, delta, 0.0)
            yield delta, part / chances if rescale == "density" else part

    norms = np.ones((2, models))
    if rescale == "norm":
        norms = np.zeros((2, models))
        for block in tensor.blocks(of_rows=True):
            norms += np.array([[total(delta.abs()), total(part.abs())] for delta, part in kept(block)]).T
    factors = np.divide(norms[0], norms[1], out=np.ones(models), where=norms[1] > 0).tolist()
    rule = Rule(
        consensus[aggregate], tuple(w * f for w, f in zip(weights, factors, strict=True)), scale,
        divisors=tuple(weights),
    )  # fmt: skip

    def combine(block: Block) -> torch.Tensor:
        return block.base + tensor.combine([part for _, part in kept(block)], rule)

    return Blockwise(combine, of_rows=True)


def keeping_chances(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Return the probability with which each element is kept: by its rank in its row, density ± epsilon.

    >>> keeping_chances(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, 0.25)
    tensor([[0.7500, 0.2500, 0.5000]], dtype=torch.float64)
    """
    if density >= 1.0:
        return torch.ones_like(delta, dtype=torch.float64)
    ranks = ascending_ranks(delta.abs()).double()
    return ranks.mul_(2.0 * epsilon / max(delta.shape[1] - 1, 1)).add_(density - epsilon).clamp_(1e-12, 1.0)


def ascending_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the place of each element in its row, from the smallest on; of equal ones the first comes first.

    >>> ascending_ranks(torch.tensor([[0.5, 0.1, 0.5, 0.2]])).tolist()
    [[2, 0, 3, 1]]
    """
    places = torch.arange(values.shape[1], device=values.device).expand_as(values)
    order = values.argsort(dim=1, stable=True) if values.device.type != "cpu" else _stable_order(values.numpy())
    return torch.empty_like(order).scatter_(1, order, places)


def _stable_order(values: np.ndarray) -> torch.Tensor:
    """Return what sorts each row, equal elements in their order.

    NumPy's sort that is not stable, with what is equal put in order after it: 27 ns an element of rows of 2048; torch's
    stable one takes 59.
    """
    order, columns = np.argsort(values, axis=1), values.shape[1]
    in_order = np.take_along_axis(values, order, 1)
    rises = in_order[:, 1:] != in_order[:, :-1]
    if not rises.all():
        runs = np.zeros_like(order)
        np.cumsum(rises, axis=1, out=runs[:, 1:])
        order = np.sort(runs * columns + order, axis=1) - runs * columns
    return torch.from_numpy(order)


def della(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    density: PerModel = 0.5,
    epsilon: PerModel = 0.15,
    seed: int = 0,
    scale: float = 1.0,
    rescale: Rescale = "density",
    aggregate: Aggregate = "mean",
) -> torch.Tensor:
    """Return the DELLA merge of one tensor, float64: as DARE with TIES, but small elements are dropped more often.

    An element of τ is kept with probability p, and then divided by p. It rises with the rank of the element's magnitude
    along the last axis, from density − epsilon to density + epsilon. The mean of the entries of the elected sign is
    scaled and added to the base. `rescale="norm"` in place of division brings the sum of magnitudes of each τ back to
    what it was, as mergekit does. Masks are those of `dare`.

    >>> deltas = [torch.tensor([4.0, 1.0, -2.0, 0.0]), torch.tensor([2.0, -3.0, 0.5, 0.0])]
    >>> della(torch.zeros(4), deltas, density=1.0)
    tensor([ 3., -3., -2.,  0.], dtype=torch.float64)
    """
    options = {"density": density, "epsilon": epsilon, "seed": seed, "scale": scale}
    return merge_tensor(base, deltas, METHOD, weights, {**options, "rescale": rescale, "aggregate": aggregate})


_CHECKS = {
    "density": number(0, 1, open_low=True), "epsilon": number(0, 1), "seed": integer(0), "scale": number(-np.inf),
    "rescale": one_of("density", "norm", "none"),
}  # fmt: skip
_EPSILON = Parameter("epsilon", "epsilon", 0.15, per_model=True)
METHOD = Method(
    "della", "arXiv 2406.11617", "TIES of τ from which small elements are dropped more often", DEFAULTS,
    tensor=partial(tensor, consensus=ELECTED), any_weight=lambda aggregate, **_: aggregate != "mean", least=1,
    per_model=("density", "epsilon"), checks={**_CHECKS, "aggregate": one_of("mean", "sum", "max")},
    mergekit=Mergekit("della", (WEIGHT, DENSITY, _EPSILON, RESCALE_NORM, NORMALIZE, INT8_MASK, LAMBDA)),
)  # fmt: skip
DELLA_LINEAR = Method(
    "della_linear", "arXiv 2406.11617", "θ₀ + mean of τ from which small elements are dropped more often", DEFAULTS,
    tensor=partial(tensor, consensus=LINEAR), any_weight=lambda aggregate, **_: aggregate != "mean", least=1,
    per_model=("density", "epsilon"), checks={**_CHECKS, "aggregate": one_of("mean", "sum")},
    mergekit=Mergekit("della_linear", (WEIGHT, DENSITY, _EPSILON, RESCALE_NORM, UNNORMALIZED, INT8_MASK, LAMBDA)),
)  # fmt: skip
