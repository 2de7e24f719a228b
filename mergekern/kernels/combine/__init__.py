"""combine: merges N task vectors of one tensor element by element, in one pass.

    τ_i    = tuned_i − base
    κ_i    = w_i·τ_i if |τ_i| ≥ thresholds[i] and the mask of keys[i] does not drop the element, else 0
    merged = base + factor·consensus(κ_1, …, κ_N)

    "sum"    Σ κ_i
    "mean"   Σ κ_i / Σ w_i
    "elect"  s = sign(Σ κ_i), or `majority` if that is 0; Σ κ_i / Σ w_i over the models with sign(κ_i) = s
    "agree"  Σ κ_i if at least `needed` models have |κ_i| > share·|Σ κ − κ_i|, else 0

Inputs: base (D,), tuned N × (D,), each in its own storage dtype. Output: (D,) float32 or float64. All arithmetic is
float64, in the order of the models. Each operation is rounded once: there are no fused multiply-adds. Every
implementation therefore gives the same bits, for any number of threads and any division into blocks.

A mask depends on (key, index in the tensor) only. SplitMix64 of the Weyl sequence that begins at `key` gives 64 bits
for each element. The upper 53 bits are its uniform number. The element is dropped if that is below `drop`.

Backends: `on_cpu`, C++ or NumPy; `on_triton`.

Bytes: (N + 1)·D·itemsize read once, D·itemsize written. Flops: about 6·N·D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Consensus = Literal["sum", "mean", "elect", "agree"]
CONSENSUS: tuple[Consensus, ...] = ("sum", "mean", "elect", "agree")


@dataclass(frozen=True)
class Rule:
    """How the task vectors of one tensor are merged, with all parameters resolved.

    Attributes:
        consensus: one of CONSENSUS; see the package's docstring.
        weights: w, one for each model.
        factor: multiplies the consensus before it is added to the base.
        thresholds: smallest magnitude that is kept, one for each model; None keeps every element.
        keys: seeds of the masks, one for each model; None drops no element.
        drop: share of the elements that a mask drops, from 0 to 1.
        majority: +1 or −1, the elected sign of elements whose sum is zero ("elect").
        share: how much a model must stand out against the sum of the others ("agree").
        needed: number of models that must stand out ("agree").
    """

    consensus: Consensus
    weights: tuple[float, ...]
    factor: float = 1.0
    thresholds: tuple[float, ...] | None = None
    keys: tuple[int, ...] | None = None
    drop: float = 0.0
    majority: int = 1
    share: float = 0.0
    needed: int = 1

    @property
    def total_weight(self) -> float:
        """Σ w in the order of the models."""
        total = 0.0
        for weight in self.weights:
            total += weight
        return total

    @property
    def dropped_below(self) -> int:
        """The smallest 53-bit number of an element that is kept."""
        return int(self.drop * 2.0**53)


class Tally(NamedTuple):
    """Counts of one pass; the tallies of blocks add up to that of the tensor.

    Attributes:
        signs: Σ sign(Σ κ), the number of positive sums minus the number of negative ones.
        undecided: number of elements whose kept entries cancel exactly, so that `majority` decided ("elect" only).
        non_finite: at least 1 if a task vector holds NaN or infinite values, else 0.
    """

    signs: int = 0
    undecided: int = 0
    non_finite: int = 0

    def __add__(self, other: Tally) -> Tally:  # type: ignore[override]
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


def check(base: torch.Tensor, tuned: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Raise ValueError unless the tensors are flat, contiguous and of one length, and `out` is float32 or float64."""
    tensors = (base, *tuned, out)
    if not all(t.dim() == 1 and t.is_contiguous() and t.numel() == out.numel() for t in tensors):
        raise ValueError("combine needs flat, contiguous tensors of one length")
    if out.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"combine writes float32 or float64, not {out.dtype}")
