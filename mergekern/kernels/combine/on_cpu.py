"""`combine` on the CPU: the C++ kernel, or NumPy where the extension was not built. Both give the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.combine import CONSENSUS, Rule, Tally, check, reference
from mergekern.kernels.native import address, extension

# Elements of a block of the NumPy path. The float64 rows of 8 models take 4 MB.
_NUMPY_BLOCK = 1 << 16


def native(
    base: torch.Tensor | None, tuned: Sequence[torch.Tensor], rule: Rule, out: torch.Tensor, start: int = 0,
    threads: int = 1,
) -> Tally:  # fmt: skip
    """Write the merged elements to `out` ((D,) float32 or float64) by the C++ kernel."""
    check(base, tuned, out)
    empty: tuple = ()
    return Tally(
        *extension.combine(
            (0, 0) if base is None else address(base), [address(t) for t in tuned], address(out), out.numel(), start,
            threads, CONSENSUS.index(rule.consensus), rule.weights, rule.counts, rule.total_weight, rule.factor,
            rule.thresholds or empty, rule.limits or empty, rule.keys or empty, rule.dropped_below, rule.majority,
            rule.share, rule.needed, rule.by_count, rule.ballots or empty, rule.alone or empty, rule.floor, rule.spread,
        )
    )  # fmt: skip


def numpy(
    base: torch.Tensor | None, tuned: Sequence[torch.Tensor], rule: Rule, out: torch.Tensor, start: int = 0,
    threads: int = 1,
) -> Tally:  # fmt: skip
    """Write the merged elements to `out` by NumPy, a block at a time."""
    check(base, tuned, out)
    tally = Tally()
    for at in range(0, out.numel(), _NUMPY_BLOCK):
        block = slice(at, at + _NUMPY_BLOCK)
        with np.errstate(invalid="ignore", over="ignore"):  # non-finite weights are reported by the caller
            of_base = None if base is None else base[block]
            merged, counted = reference.combine(of_base, [t[block] for t in tuned], rule, start + at)
            out[block] = torch.from_numpy(merged)
        tally += counted
    return tally


combine = numpy if extension is None else native
