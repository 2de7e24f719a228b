"""Nearswap, of alchemonaut: the base, moved a bounded way towards one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.merging.mergekit_names import Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import number
from mergekern.merging.whole_tensor import Block, Blockwise, WholeTensor

DEFAULTS = {"t": 1e-3}


def tensor(tensor: WholeTensor, weights: Sequence[float], t: float) -> Blockwise:
    """Return what is done to each element."""

    def combine(block: Block) -> torch.Tensor:
        (delta,) = block.deltas
        return block.base + weights[0] * delta.clamp(-t, t)

    return Blockwise(combine)


def nearswap(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float] | None = None, *, t: float = 1e-3
) -> torch.Tensor:
    """Return the base, each element moved towards one model by at most t; one tensor, float64.

    θ₀ + w·sign(τ)·min(t, |τ|): elements of the model that are nearer than t to the base take its place.

    >>> nearswap(torch.ones(3), [torch.tensor([0.5, -2.0, 0.1])], t=0.25)
    tensor([1.2500, 0.7500, 1.1000], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"t": t})


METHOD = Method(
    "nearswap", "mergekit", "θ₀ moved by at most t towards one model", DEFAULTS, tensor=tensor, least=1, most=1,
    checks={"t": number(0)}, mergekit=Mergekit("nearswap", (Parameter("t", "t"),)),
)  # fmt: skip
