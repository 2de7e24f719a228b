"""Reinforced agent merging, RAM and RAM+: "Behavior knowledge merge in reinforced agentic models", arXiv 2601.13572."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.combine import Rule
from mergekern.merging.mergekit_names import Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number
from mergekern.merging.whole_tensor import WholeTensor

DEFAULTS = {"epsilon": 1e-5}
PLUS_DEFAULTS = {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}


def tensor(tensor: WholeTensor, weights: Sequence[float], epsilon: float) -> Rule:
    """Return what is done to each element: the mean of the task vectors that change it."""
    return _mean_of_changes(weights, epsilon)


def tensor_of_plus(tensor: WholeTensor, weights: Sequence[float], epsilon: float, r: float, alpha: float) -> Rule:
    """Return what is done to each element, after those are counted that one model alone changes."""
    shared, unique = tensor.changes(epsilon)
    overlap = np.divide(shared, unique, out=np.zeros(len(weights)), where=unique > 0)
    return _mean_of_changes(weights, epsilon, tuple((1.0 + r * np.clip(overlap, 0.0, alpha)).tolist()))


def _mean_of_changes(weights: Sequence[float], epsilon: float, alone: tuple[float, ...] | None = None) -> Rule:
    """Return θ₀ + Σ w·τ / Σ w over the models that change an element, times a factor where it is one model alone."""
    least = float(np.nextafter(epsilon, np.inf))
    return Rule("held", tuple(weights), thresholds=(least,) * len(weights), alone=alone)


def ram(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float] | None = None, *, epsilon: float = 1e-5
) -> torch.Tensor:
    """Return θ₀ + the mean, at each element, of those τ that change it, |τ| > epsilon; one tensor, float64.

    What one model alone changes is not diluted by the others.

    >>> ram(torch.zeros(3), [torch.tensor([2.0, 4.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])])
    tensor([2., 3., 0.], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"epsilon": epsilon})


def ramplus_tl(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> torch.Tensor:
    """Return RAM with what one model alone changes made larger, as much as others overlap with it; one tensor, float64.

    The factor of a model is 1 + r·min(shared/unique, alpha), where it changes `shared` elements together with others
    and `unique` ones alone; counts are those of the tensor.

    >>> deltas = [torch.tensor([2.0, 4.0, 1.0]), torch.tensor([0.0, 2.0, 0.0])]
    >>> ramplus_tl(torch.zeros(3), deltas, r=0.5, alpha=1.0)
    tensor([2.5000, 3.0000, 1.2500], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, RAMPLUS_TL, weights, {"epsilon": epsilon, "r": r, "alpha": alpha})


_EPSILON = Parameter("epsilon", "epsilon", 1e-5)
METHOD = Method(
    "ram", "arXiv 2601.13572", "θ₀ + the mean, at each element, of those τ that change it", DEFAULTS, tensor=tensor,
    checks={"epsilon": number(0)}, mergekit=Mergekit("ram", (_EPSILON,)),
)  # fmt: skip
RAMPLUS_TL = Method(
    "ramplus_tl", "arXiv 2601.13572", "RAM, with what one model alone changes made larger", PLUS_DEFAULTS,
    tensor=tensor_of_plus, checks={"epsilon": number(0), "r": number(0), "alpha": number(0)},
    mergekit=Mergekit("ramplus_tl", (_EPSILON, Parameter("r", "r", 0.1), Parameter("alpha", "alpha", 0.2))),
)  # fmt: skip
