"""interference: how the leading singular triplets of N models stand in each other's way, for all pairs of one tensor.

    out[i, j] = ‖(UᵀU − I) Σ (VᵀV − I)‖₁,      U = [U_i U_j], Σ = diag(σ_i, σ_j), V = [V_i V_j]

with k leading triplets of each model; ‖·‖₁ is the sum of the magnitudes of all elements. It is the singular task
interference of Gargiulo et al., "Task Singular Vectors", arXiv 2412.00081, of two models. Since the U and V of a model
are orthonormal, only the products between the two are left:

    out[i, j] = ‖L Σ_j Rᵀ‖₁ + ‖Lᵀ Σ_i R‖₁,      L = U_iᵀU_j, R = V_iᵀV_j

It is 0 where the models change orthogonal directions, on the left or on the right, and 2 Σσ for equal models. The signs
of a pair of singular vectors do not matter. Where singular values are equal, vectors are determined up to a rotation
only, which changes it.

Inputs: `Triplets` of N models, and of M others for pairs of two sets. Output: (N, N) float64, symmetric, or (N, M).

Backends: `on_cpu`, C++ or BLAS; `on_torch`, on any device. With the C++ kernel the result for a pair depends on its own
triplets only, to the last bit, and not on their order.

Bytes: N·(m + n)·k·4. Flops: N²·k²·(m + n + 2k).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Triplets(NamedTuple):
    """The k leading singular triplets of one m × n matrix of N models: σ (N, k), U (N, m, k) and V (N, n, k)."""

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray
