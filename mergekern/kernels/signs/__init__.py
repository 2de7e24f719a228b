"""signs: where the task vectors of N models agree in sign, one tensor at a time.

    shared[i, j]   = number of coordinates e with τ_i[e] ≠ 0 and τ_j[e] ≠ 0,      τ_i = tuned_i − base
    opposite[i, j] = number of those with τ_i[e]·τ_j[e] < 0
    kept_shared, kept_opposite: the same among coordinates with |τ_i[e]| ≥ t_i and |τ_j[e]| ≥ t_j
    sums[i]        = Σ_e τ_i[e]
    absolute[i, j] = Σ_e |τ_i[e]|·|τ_j[e]|

Inputs: base (D,) or None for zero, tuned N × (D,), each in its own storage dtype, whole or in ranges of elements; N
thresholds t. Outputs: (N, N) and (N,), float64; counts are exact. With `split` > 0 only the pairs i < split ≤ j and
i = j are counted, as in `gram`; other entries are zeros.

Each model's signs, and which of its coordinates change and are kept, are packed to bits once. A pair is an exclusive
or, four conjunctions and four counts of ones over 64 coordinates at a time. `absolute` is `gram` of absolute values.

Backends: `on_cpu`, C++ or NumPy; `on_triton`, many tensors in one launch. With the C++ kernel the result for a pair
depends on its two models and the base only, to the last bit; see `gram`.

Bytes: (N + 1)·D·itemsize, read twice; 3·N·D/8 of bits, in parts that stay in a cache. Operations: 7·N(N + 1)/2·D/64 on
words, and N(N + 1)·D flops for `absolute`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

# Number of matrices of counts: shared, opposite, kept_shared and kept_opposite.
COUNTS = 4


class Signs(NamedTuple):
    """Agreement of the signs of N task vectors, float64; see the package's docstring."""

    sums: np.ndarray
    shared: np.ndarray
    opposite: np.ndarray
    kept_shared: np.ndarray
    kept_opposite: np.ndarray
    absolute: np.ndarray


class DeviceSigns(NamedTuple):
    """Agreement of the signs of N task vectors for each of L tensors, on a device.

    Attributes:
        sums: (L, N) float64.
        counts: (L, COUNTS, N, N) int64.
        absolute: (L, N, N) float64.
    """

    sums: torch.Tensor
    counts: torch.Tensor
    absolute: torch.Tensor

    def of_layer(self, layer: int) -> DeviceSigns:
        """Return those of one tensor, without the first dimension."""
        return DeviceSigns(*(part[layer] for part in self))

    def on_host(self) -> Signs:
        """Return those of one tensor as float64 arrays. What was queued for them on the device must be done."""
        sums, counts, absolute = (part.double().cpu().numpy() for part in self)
        shared, opposite, kept_shared, kept_opposite = counts
        return Signs(sums, shared, opposite, kept_shared, kept_opposite, absolute)
