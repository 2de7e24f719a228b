"""`spectrum` on the CPU: a partial eigensolver of the Gram matrix of the short side, in float64.

One tridiagonal reduction gives all eigenvalues; only the vectors that are wanted are computed and transformed
back, and the vectors of the long side come from a product with the matrix itself. A full SVD does five times
the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from mergekern.kernels import lapack
from mergekern.kernels.native import difference
from mergekern.kernels.spectrum import RANK_TOLERANCE, Spectrum, zero_spectrum
from mergekern.kernels.workspace import Workspace

# (axis, step) -> (start, base, tuned) of consecutive rows (axis 0) or columns (axis 1).
Blocks = Callable[[int, int], Iterator[tuple[int, torch.Tensor, torch.Tensor]]]

# Elements of the float64 block in memory: 32 MiB, which holds 3072 × 768 whole.
BLOCK = 1 << 22
# The Gram matrix perturbs its eigenvectors by about ε·λ₁/gap. Where that exceeds this, a subspace of
# `WIDEN` × k vectors is taken, whose gap to the rest is wider, and resolved by an SVD of the matrix
# restricted to it, which is accurate to ε·σ₁/gap.
ACCURATE = 1e-7
WIDEN = 4

_workspace = Workspace()


def spectrum(blocks: Blocks, shape: tuple[int, int], top_k: int = 10, spectrum_k: int = 100) -> Spectrum:
    """Return the spectrum of a task matrix that is read in blocks; see the package's docstring.

    Args:
        blocks: gives the base and tuned matrix, some rows or columns at a time; called once or twice.
        shape: (m, n).
        top_k: size of the top and bottom subspaces.
        spectrum_k: number of leading values.
    """
    of_rows = shape[0] < shape[1]  # the Gram matrix is that of the short side
    short, long = min(shape), max(shape)
    k = min(top_k, short)
    deltas = _Deltas(blocks, shape, of_rows)

    gram = _workspace.array("gram", (short, short))
    gram.fill(0.0)
    for _, delta in deltas:
        lapack.add_gram(delta, gram, of_rows)
    if not np.diagonal(gram).any():
        return zero_spectrum(shape, top_k, spectrum_k)
    diagonal, off_diagonal, scales = lapack.tridiagonalise(gram)
    squares = lapack.tridiagonal_values(diagonal, off_diagonal)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))

    bottom = _subspace_size(squares, k)
    top = _subspace_size(-squares[::-1], k)
    wanted = np.concatenate([np.arange(bottom), np.arange(max(short - top, bottom), short)])
    vectors = lapack.tridiagonal_vectors(diagonal, off_diagonal, squares, wanted)
    lapack.back_transform(gram, scales, vectors)

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
        int((values > RANK_TOLERANCE * values[0]).sum()),
        left_top[:k].T.astype(np.float32),
        right_top[:k].T.astype(np.float32),
        right_bottom.T.astype(np.float32),
    )


def workspace(shape: tuple[int, int], top_k: int) -> int:
    """Return the bytes that one call allocates at most: difference and its operand, Gram matrix, and vectors."""
    short, long = min(shape), max(shape)
    vectors = min(2 * WIDEN * top_k, 2 * short)
    return 8 * (2 * min(BLOCK + short, short * long) + short * short + vectors * (short + 3 * long))


def _subspace_size(ascending: np.ndarray, k: int) -> int:
    """Return how many of the first vectors to compute so that the first k are accurate."""
    if k == len(ascending):
        return k
    gap = ascending[k] - ascending[k - 1]
    error = np.finfo(np.float64).eps * np.abs(ascending).max() / max(gap, np.finfo(np.float64).tiny)
    return k if error <= ACCURATE else min(WIDEN * k, len(ascending))


def _resolve(deltas: _Deltas, vectors: np.ndarray, long: int, end: str) -> tuple[np.ndarray, np.ndarray]:
    """Return singular vectors (short side, long side) of the matrix within span(vectors), as rows, descending."""
    projected = _workspace.array(f"projected {end}", (len(vectors), long))
    for start, delta in deltas:
        lapack.project(delta, vectors, projected, start, deltas.of_rows)
    rotation, _, long_vectors = lapack.thin_svd(projected, _workspace.array(f"resolved {end}", projected.shape))
    return lapack.multiply(rotation, vectors), long_vectors


class _Deltas:
    """tuned − base in float64, along the long side; kept in memory if it is a single block."""

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
