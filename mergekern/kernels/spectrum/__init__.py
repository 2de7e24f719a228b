"""spectrum: leading singular values, and top and bottom singular vectors, of one task matrix.

    τ = tuned − base = U Σ Vᵀ      (m × n, thin, r = min(m, n) values σ₁ ≥ … ≥ σ_r)

Results: the leading `spectrum_k` values, U and V of the k largest values, and V of the k smallest, where k = min(top_k,
r). The vectors are bases of subspaces: their signs are arbitrary, and so is the order of the bottom vectors.

`rank` is the number of values above `RANK_TOLERANCE`·σ₁. Vectors beyond the rank are an arbitrary orthonormal basis,
and metrics leave such matrices out. A zero matrix has rank 0, and columns of the identity as vectors.

Backends: `on_cpu`, one matrix at a time, with the tridiagonal form by C++ or LAPACK; `on_cuda`, many matrices at once,
with the tridiagonal form by `device_tridiagonal`.

Bytes: m·n·(itemsize of tuned + itemsize of base). Flops, with s = min(m, n), l = max(m, n): s²l for the Gram matrix,
4/3 s³ for its tridiagonal form, O(s²) for the values, O(s·l·k) for the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

# The resolution of a float64 Gram matrix, with margin: its error in σ² is 1e-16·σ₁², which hides σ below 1e-8·σ₁.
RANK_TOLERANCE = 1e-7


class Estimates(NamedTuple):
    """Estimates of the errors of a spectrum; see `mergekern.kernels.randomized_spectrum`.

    Attributes:
        values: (min(spectrum_k, r),) float64, of each singular value, absolute.
        vectors: (k,) float64 in [0, 1], sine of the angle between each leading singular vector and the span of the true
            k leading ones, the larger of the left and the right one. 1 where the span is not determined.
    """

    values: np.ndarray
    vectors: np.ndarray


class Spectrum(NamedTuple):
    """The singular values and vectors of one task matrix.

    Attributes:
        values: (min(spectrum_k, r),) float64, descending.
        rank: number of singular values above RANK_TOLERANCE·σ₁, out of all r.
        left_top: (m, k) float32, orthonormal columns.
        right_top: (n, k) float32.
        right_bottom: (n, k) float32; (n, 0) where they were not computed.
        estimates: estimated errors; None where these are rounding alone.
    """

    values: np.ndarray
    rank: int
    left_top: np.ndarray
    right_top: np.ndarray
    right_bottom: np.ndarray
    estimates: Estimates | None = None


class Stack(NamedTuple):
    """One matrix of the base and of N models, each (m, n), on one device, in their storage dtypes."""

    base: torch.Tensor
    tuned: Sequence[torch.Tensor]


class DeviceSpectra(NamedTuple):
    """The spectra of a stack, on its device; see `Spectrum` for the fields.

    Attributes:
        values: (N, min(spectrum_k, r)) float64.
        rank: (N,) int64.
        left_top, right_top, right_bottom: (N, m, k), (N, n, k), (N, n, k) float32.
        good: (N,) bool, True if a factorisation passed all checks.
    """

    values: torch.Tensor
    rank: torch.Tensor
    left_top: torch.Tensor
    right_top: torch.Tensor
    right_bottom: torch.Tensor
    good: torch.Tensor

    def spectrum(self, model: int) -> Spectrum:
        """Return the spectrum of one model. The stack must be on the host."""
        values, rank, left_top, right_top, right_bottom = (field[model].numpy() for field in self[:5])
        return Spectrum(values, int(rank), left_top, right_top, right_bottom)


def zero_spectrum(shape: tuple[int, int], top_k: int, spectrum_k: int) -> Spectrum:
    """Return the spectrum of a zero matrix (a frozen tensor), with columns of the identity as vectors, as an SVD has.

    >>> zero_spectrum((3, 2), 1, 100).right_bottom
    array([[0.],
           [1.]], dtype=float32)
    """
    _, columns = shape
    r = min(shape)
    k = min(top_k, r)
    # Only the k needed columns are created: a whole identity would be as large as the matrix.
    left, top = (np.eye(size, k, dtype=np.float32) for size in shape)
    return Spectrum(np.zeros(min(spectrum_k, r)), 0, left, top, np.eye(columns, k, k - r, dtype=np.float32))
