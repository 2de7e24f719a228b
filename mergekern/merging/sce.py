"""SCE (select, calculate, erase): Wan et al., "FuseChat: Knowledge fusion of chat models", arXiv 2408.07990."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.combine import Rule
from mergekern.merging.mergekit_names import INT8_MASK, Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number
from mergekern.merging.whole_tensor import WholeTensor

DEFAULTS = {"density": 1.0}
# The least that the weights of an element are taken to sum to, as in mergekit.
LEAST = 1e-6


def tensor(tensor: WholeTensor, weights: Sequence[float], density: float) -> Rule:
    """Return what is done to each element, after elements are selected and the models' weights are calculated."""
    spread = tensor.least_variance(density) if density < 1.0 else 0.0
    energies = tensor.energies(spread) * weights
    shares = energies if energies.sum() > 0 else np.array(weights)
    return Rule(
        "elect", tuple((shares / shares.sum()).tolist()), ballots=tuple(weights), floor=LEAST, spread=spread
    )  # fmt: skip


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
