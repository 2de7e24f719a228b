"""`spectrum` on the CPU: a partial eigensolver of the Gram matrix of the short side, in float64.

The Gram matrix is reduced to tridiagonal form once. Only the requested eigenvalues and vectors are computed and
transformed back. The vectors of the long side come from a product with the matrix itself. A full SVD would need several
times the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from mergekern.kernels import lapack
from mergekern.kernels.native import difference
from mergekern.kernels.spectrum import RANK_TOLERANCE, Spectrum, zero_spectrum
from mergekern.kernels.tridiagonal import LapackTridiagonal, NativeTridiagonal, Tridiagonal
from mergekern.kernels.workspace import Workspace

# (axis, step) -> iterator over (start, base, tuned) of consecutive rows (axis 0) or columns (axis 1).
Blocks = Callable[[int, int], Iterator[tuple[int, torch.Tensor, torch.Tensor]]]

# Elements of the float64 block in memory. It takes 32 MiB, which hold a whole matrix of 3072 × 768.
BLOCK = 1 << 22
# Rounding of the Gram matrix perturbs its eigenvectors by about ε·λ₁/gap. If that exceeds this tolerance, a subspace of
# `WIDEN` × k vectors is computed, which has a wider gap. An SVD of the matrix restricted to that subspace then gives
# the vectors, with an error of ε·σ₁/gap.
ACCURATE = 1e-7
WIDEN = 4

_workspace = Workspace()


def spectrum(
    blocks: Blocks,
    shape: tuple[int, int],
    top_k: int = 10,
    spectrum_k: int = 100,
    tridiagonal: type[Tridiagonal] = LapackTridiagonal,
) -> Spectrum:
    """Return the spectrum of a task matrix that is read in blocks; see the package's docstring.

    Args:
        blocks: returns the base and the tuned matrix, some rows or columns at a time; called once or twice.
        shape: (m, n).
        top_k: size of the top and bottom subspaces.
        spectrum_k: number of leading values.
        tridiagonal: the implementation of the tridiagonal form.
    """
    of_rows = shape[0] < shape[1]  # selects the Gram matrix of the short side
    short, long = min(shape), max(shape)
    k = min(top_k, short)
    deltas = _Deltas(blocks, shape, of_rows)

    gram = tridiagonal.zeros(short)
    for _, delta in deltas:
        lapack.add_gram(delta, gram, of_rows)
    if not np.diagonal(gram).any():
        return zero_spectrum(shape, top_k, spectrum_k)
    form = tridiagonal(gram, short)
    squares = np.full(short, np.nan)  # eigenvalues, ascending; NaN where they are not needed

    def compute_squares(positions: np.ndarray) -> None:
        missing = positions[np.isnan(squares[positions])]
        squares[missing] = form.values(missing)

    leading = min(max(spectrum_k, k + 1), short)
    compute_squares(np.union1d(np.arange(min(k + 1, short)), np.arange(short - leading, short)))
    values = np.sqrt(np.maximum(squares[::-1][:leading], 0.0))

    bottom = _subspace_size(squares, k)
    top = _subspace_size(squares[::-1], k)
    wanted = np.union1d(np.arange(bottom), np.arange(short - top, short))
    compute_squares(wanted)
    vectors = form.vectors(squares[wanted])

    short_top, long_top = _resolve(deltas, vectors[wanted >= short - top], long, "top")
    long_bottom: np.ndarray | None = None
    short_bottom = vectors[:k]
    if of_rows or bottom > k:
        short_bottom, long_bottom = (rows[::-1][:k] for rows in _resolve(deltas, vectors[:bottom], long, "bottom"))
    left_top, right_top = (short_top, long_top) if of_rows else (long_top, short_top)
    right_bottom = long_bottom if of_rows else short_bottom
    assert right_bottom is not None
    return Spectrum(
        values[:spectrum_k],
        form.count_above(RANK_TOLERANCE**2 * squares[-1]),
        left_top[:k].T.astype(np.float32),
        right_top[:k].T.astype(np.float32),
        right_bottom.T.astype(np.float32),
    )


def native(blocks: Blocks, shape: tuple[int, int], top_k: int = 10, spectrum_k: int = 100) -> Spectrum:
    """Return the spectrum with the tridiagonal form by the C++ extension."""
    return spectrum(blocks, shape, top_k, spectrum_k, NativeTridiagonal)


def workspace(shape: tuple[int, int], top_k: int) -> int:
    """Return an upper bound for the bytes that one call allocates: difference, its operand, matrices and vectors."""
    short, long = min(shape), max(shape)
    vectors = min(2 * WIDEN * top_k, 2 * short)
    return 8 * (
        2 * min(BLOCK + short, short * long) + 2 * (short + 96) ** 2 + 120 * short + vectors * (short + 3 * long)
    )


def _subspace_size(squares: np.ndarray, k: int) -> int:
    """Return the number of vectors to compute so that the first k are accurate; eigenvalues may be in either order."""
    if k == len(squares):
        return k
    gap = abs(squares[k] - squares[k - 1])
    error = np.finfo(np.float64).eps * np.nanmax(np.abs(squares)) / max(gap, np.finfo(np.float64).tiny)
    return k if error <= ACCURATE else min(WIDEN * k, len(squares))


def _resolve(deltas: _Deltas, vectors: np.ndarray, long: int, end: str) -> tuple[np.ndarray, np.ndarray]:
    """Return singular vectors (short side, long side) of the matrix within span(vectors), as rows, descending."""
    projected = _workspace.array(f"projected {end}", (len(vectors), long))
    for start, delta in deltas:
        lapack.project(delta, vectors, projected, start, deltas.of_rows)
    rotation, _, long_vectors = lapack.thin_svd(projected, _workspace.array(f"resolved {end}", projected.shape))
    return lapack.multiply(rotation, vectors), long_vectors


class _Deltas:
    """tuned − base in float64, in blocks along the long side. A single block is kept in memory."""

    def __init__(self, blocks: Blocks, shape: tuple[int, int], of_rows: bool) -> None:
        self.of_rows = of_rows
        self._blocks = blocks
        self._axis = 1 if of_rows else 0
        self._step = max(1, BLOCK // min(shape))
        self._whole: np.ndarray | None = None
        self._single = self._step >= max(shape)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        if self._whole is not None:
            yield 0, self._whole
            return
        for start, base, tuned in self._blocks(self._axis, self._step):
            delta = _workspace.array("delta", tuple(tuned.shape))
            difference(base, tuned, delta)
            if self._single:
                self._whole = delta
            yield start, delta
