"""combine: merges N task vectors of one tensor element by element, in one pass.

    τ_i    = tuned_i − base
    κ_i    = w_i·τ_i where it is kept, else 0.   Kept: thresholds[i] ≤ |τ_i| ≤ limits[i], and not dropped by the mask of
             keys[i]; and, in all models alike, where the variance of the τ_i over the models is at least `spread`
    merged = base + factor·consensus(κ_1, …, κ_N)

    "sum"        Σ κ_i
    "mean"       Σ κ_i / Σ v_i, where v_i = divisors[i], w_i by default
    "elect"      s = sign(Σ κ_i), or by_count sign(Σ sign κ_i), or sign(Σ b_i·τ_i) over what is kept with b = ballots,
                 or `majority` where that is 0; the mean of the κ_i of sign s: Σ κ_i / Σ v_i over those, or Σ κ_i where
                 |Σ v_i| < 1e-8; with a `floor`, Σ κ_i / max(Σ v_i, floor)
    "elect_sum"  Σ κ_i over those of sign s
    "elect_max"  the largest of those, by magnitude
    "held"       Σ κ_i / Σ v_i over the models that hold the element: of which a τ_i ≠ 0 is kept. Where one model holds
                 it alone, alone[i] times that
    "agree"      Σ κ_i where at least `needed` models have |κ_i| > share·|Σ κ − κ_i|, else 0

Inputs: base (D,), or None for zero, tuned N × (D,), each in its own storage dtype. Output: (D,) float32 or float64. All
arithmetic is float64, in the order of the models, one rounding an operation (nothing is fused into multiply-adds), so
that every implementation gives the same bits for any number of threads and any division into blocks.

A mask is a function of (key, index in the tensor) alone. SplitMix64 of the Weyl sequence that begins at `key` gives 64
bits for each element; the upper 53 are its uniform number, and the element is dropped where that is below drop[i].

Backends: `on_cpu`, C++ or NumPy; `on_triton`.

Bytes: (N + 1)·D·itemsize read once, D·itemsize written. Flops: about 6·N·D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Consensus = Literal["sum", "mean", "elect", "agree", "elect_sum", "elect_max", "held"]
CONSENSUS: tuple[Consensus, ...] = ("sum", "mean", "elect", "agree", "elect_sum", "elect_max", "held")
# Divisors nearer to zero divide nothing: rounding is all that is left of weights that cancel.
LEAST_DIVISOR = 1e-8


@dataclass(frozen=True)
class Rule:
    """How the task vectors of one tensor are merged, with all parameters resolved.

    Attributes:
        consensus: one of CONSENSUS; see the package's docstring.
        weights: w, one for each model.
        factor: multiplies the consensus before it is added to the base.
        thresholds: smallest magnitude that is kept, one for each model; None keeps every element.
        keys: seeds of the masks, one for each model; None drops no element.
        drop: share of the elements that the masks drop, from 0 to 1, of all models or of each.
        majority: +1 or −1, the sign that elements get whose votes sum to zero ("elect").
        share, needed: how much a model must stand out, and how many models must ("agree").
        limits: largest magnitude that is kept, one for each model; None keeps every element.
        divisors: v, what each model counts for in a mean; None for its weight.
        by_count: whether each model has one vote for the sign, in place of its magnitude ("elect").
        ballots: b, by which τ are weighted for the vote ("elect"); None for the weights.
        alone: multiplies what one model alone holds, one for each model ("held"); None for 1.
        floor: the least that divisors are taken to sum to ("elect"); 0 for none.
        spread: the least variance over the models with which an element is kept; 0 keeps every element.
    """

    consensus: Consensus
    weights: tuple[float, ...]
    factor: float = 1.0
    thresholds: tuple[float, ...] | None = None
    keys: tuple[int, ...] | None = None
    drop: float | tuple[float, ...] = 0.0
    majority: int = 1
    share: float = 0.0
    needed: int = 1
    limits: tuple[float, ...] | None = None
    divisors: tuple[float, ...] | None = None
    by_count: bool = False
    ballots: tuple[float, ...] | None = None
    alone: tuple[float, ...] | None = None
    floor: float = 0.0
    spread: float = 0.0

    def of_model(self, model: int) -> Rule:
        """Return the rule that gives what is kept of the task vector of one model."""
        drop = self.drop[model] if isinstance(self.drop, tuple) else self.drop
        thresholds, limits = (values and (values[model],) for values in (self.thresholds, self.limits))
        return Rule("sum", (1.0,), 1.0, thresholds, self.keys and (self.keys[model],), drop, limits=limits)

    @property
    def elects(self) -> bool:
        """Whether the models vote for a sign."""
        return self.consensus.startswith("elect")

    @property
    def counts(self) -> tuple[float, ...]:
        """V, what each model counts for in a mean."""
        return self.weights if self.divisors is None else self.divisors

    @property
    def total_weight(self) -> float:
        """Σ v in the order of the models; 1 where it is no more than rounding of them."""
        total, size = 0.0, 0.0
        for weight in self.counts:
            total, size = total + weight, size + abs(weight)
        return total if abs(total) > LEAST_DIVISOR * size else 1.0

    @property
    def dropped_below(self) -> tuple[int, ...]:
        """The least 53-bit number of an element that is kept, of each model; empty where there are no masks."""
        if self.keys is None:
            return ()
        drop = self.drop if isinstance(self.drop, tuple) else (self.drop,) * len(self.keys)
        return tuple(int(each * 2.0**53) for each in drop)


class Tally(NamedTuple):
    """Counts of one pass; the tallies of blocks add up to that of the tensor.

    Attributes:
        signs: Σ sign(Σ κ), or of the votes: the number of positive sums less that of negative ones.
        undecided: number of elements whose votes cancel exactly, so that `majority` decided ("elect" only).
        non_finite: at least 1 if a task vector holds NaN or infinite values, else 0.
    """

    signs: int = 0
    undecided: int = 0
    non_finite: int = 0

    def __add__(self, other: Tally) -> Tally:  # type: ignore[override]
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


def check(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Raise ValueError unless the tensors are flat, contiguous and of one length, and `out` is float32 or float64."""
    tensors = (*(() if base is None else (base,)), *tuned, out)
    if not all(t.dim() == 1 and t.is_contiguous() and t.numel() == out.numel() for t in tensors):
        raise ValueError("combine needs flat, contiguous tensors of one length")
    if out.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"combine writes float32 or float64, not {out.dtype}")
