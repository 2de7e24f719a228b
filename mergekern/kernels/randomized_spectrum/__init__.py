"""randomized_spectrum: leading singular values and vectors of one task matrix, with estimates of their errors.

    τ = tuned − base = U Σ Vᵀ      (m × n, s = min(m, n) ≤ l = max(m, n); written here for m ≥ n, otherwise transposed)

Block Krylov iteration (Golub, Luk and Overton, 1981; Musco and Musco, 2015): from s × b random signs Ω, the subspace
span(Ω, τᵀτΩ, (τᵀτ)²Ω, …) grows by a block of vectors a pass, kept orthonormal. Its Ritz pairs approach the leading
singular values from below. Of products in float32 the images of all blocks are kept, and give the left vectors; in
float64 a last pass gives them, with the residuals of the k leading pairs. Passes are added until the estimates meet the
tolerance, within `MOST_PASSES` or as many as the values that are asked for need.

Results: those of `spectrum` without bottom vectors, which no such iteration finds, and an `Estimates` of their errors.
`rank` counts, among the leading values that are returned, those that are above their own estimate too.

Ω comes from Philox, a counter-based generator, keyed on `SEED` and the tensor's name: values depend on no order, thread
or machine. It has signs because those are the same numbers on every backend.

Estimates, from the Ritz values θ, the residuals ρ_i = ‖τᵀτv_i − θ_i²v_i‖, and μ, the largest Ritz value of the newest
block alone, which stands for what lies outside of the subspace:

    σ_i − θ_i          min(√2 ρ_i/θ_i,  3/2 ρ_i² / θ_i(θ_i² − μ²))
    ∠(v_i, top k)      ρ_i/(θ_i² − μ²) · √(1 + Σ_{j>k} ρ_j²/(θ_i² − θ_j²)²), and what rounding adds, times 3/2

The first form of the first line is the residual bound; the others are of second order in what lies outside (Stewart,
Matrix Algorithms II, 2001, chapter 4). Without a gap between θ_k and θ_{k+1} the second line is 1: the directions are
not determined. Where values lie so close that Ritz values are far below them, at the edge of noise, they come from
`counted`, with its estimates. Of spectra of 27 kinds, one value in a thousand was further off than twice its estimate.

On the CPU products are float32 of chunks scaled by powers of two; where rounding would show in the estimates (a squared
ratio of singular values near 1e-7), the iteration goes on in float64. On a device they are float64, for matrices whose
singular values are within 1e-75 to 1e75. Orthogonalisation and small problems are float64.

Matrices with s ≤ `DIRECT` are factorised by `spectrum` itself, which takes less time there.

Backends: `on_cpu`, one matrix at a time; `on_cuda`, all matrices of one shape at once. `start` draws Ω, `estimates` has
the formulas above, and `counted` the values that are counted.

Bytes: passes·m·n·(itemsize of tuned + itemsize of base). Flops of c passes: 4·m·n·c·b, and O(s·(cb)²) float64.
"""

from __future__ import annotations

import numpy as np

from mergekern.kernels.spectrum import Estimates, Spectrum

SEED = 0
# Vectors of the first block, and random vectors that the following ones gain until a block has two registers of
# AVX-512: of more than BLOCK equal singular values a Krylov subspace sees BLOCK alone, with residuals that vanish.
# These see another, and the estimates then show it.
BLOCK, FRESH, GAINS = 30, 1, 2
# At most this many passes: 253 vectors. Flat spectra reach it.
MOST_PASSES = 8
# The largest short side that is factorised directly. On one thread 768 × 3072 takes 59 ms so, and 42 by five passes or
# 95 by the eight of noise; 1024 × 4096 takes 130 ms, and 66 or 134.
DIRECT = 768
# Vectors beyond those asked for that the subspace must have room for.
SPARE = 25
# Passes before the first look at the estimates.
FEWEST_PASSES = 4
# A direction shorter than this share of the longest is none.
NO_DIRECTION = 1e-13

# Errors of a direct factorisation: of its values, relative to σ₁; of vectors, by float32, and by the last number over
# the gap to the next value, relative to σ₁.
ROUNDING_OF_VALUES = 1e-8
ROUNDING_OF_VECTORS = 1.4e-7
ROUNDING_OVER_GAP = 4e-15


def fewest_passes(top_k: int, spectrum_k: int) -> int:
    """Return the number of passes before the first look: `FEWEST_PASSES`, or more for many values.

    >>> fewest_passes(10, 100), fewest_passes(10, 500)
    (4, 17)
    """
    return max(FEWEST_PASSES, -(-(max(top_k, spectrum_k) + SPARE) // BLOCK) - 1)


def most_passes(top_k: int, spectrum_k: int) -> int:
    """Return the number of passes at which the iteration ends: `MOST_PASSES`, or more for many values.

    >>> most_passes(10, 100), most_passes(10, 500)
    (8, 21)
    """
    return fewest_passes(top_k, spectrum_k) + MOST_PASSES - FEWEST_PASSES


def most_vectors(passes: int) -> int:
    """Return the dimension of the subspace after some passes.

    >>> most_vectors(1), most_vectors(2), most_vectors(8)
    (30, 61, 253)
    """
    return sum(BLOCK + FRESH * min(before, GAINS) for before in range(passes))


def from_direct(found: Spectrum, spectrum_k: int) -> Spectrum:
    """Return a spectrum from a direct factorisation in the form of this kernel: without bottom vectors, with estimates.

    Args:
        found: its values include the one behind the k leading ones, if there is any; otherwise the estimates say that
            the last vector is not determined.
        spectrum_k: number of values to return.

    >>> import torch
    >>> from mergekern.kernels.spectrum import reference
    >>> found = reference.spectrum(None, torch.diag(torch.tensor([2.0, 1.0, 1.0])), top_k=2)
    >>> from_direct(found, 2).estimates.vectors
    array([1.40000008e-07, 1.00000000e+00])
    """
    values, k = found.values, found.left_top.shape[1]
    of_vectors = np.zeros(k)
    if found.rank and k < min(len(found.left_top), len(found.right_top)):
        following = values[k] if len(values) > k else values[-1]
        leading = np.append(values, np.full(max(0, k - len(values)), values[-1]))[:k]
        with np.errstate(divide="ignore"):
            of_vectors = ROUNDING_OF_VECTORS + ROUNDING_OVER_GAP * values[0] / np.maximum(leading - following, 0.0)
    return Spectrum(
        values[:spectrum_k],
        min(found.rank, max(k, len(values[:spectrum_k]))),
        found.left_top,
        found.right_top,
        found.right_bottom[:, :0],
        Estimates(np.full(len(values[:spectrum_k]), ROUNDING_OF_VALUES * values[0]), np.minimum(1.0, of_vectors)),
    )
