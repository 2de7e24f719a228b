"""`randomized_spectrum` on the CPU: the iteration, on the calling thread. `products` multiplies by the matrix.

Vectors are rows here, as in `lapack`.
"""

from __future__ import annotations

import numpy as np

from mergekern.kernels import lapack
from mergekern.kernels.eigen import leading_eigen
from mergekern.kernels.native import extension
from mergekern.kernels.randomized_spectrum import (
    BLOCK,
    DIRECT,
    FRESH,
    GAINS,
    NO_DIRECTION,
    SPARE,
    fewest_passes,
    from_direct,
    most_passes,
    most_vectors,
)
from mergekern.kernels.randomized_spectrum.counted import Quadrature
from mergekern.kernels.randomized_spectrum.estimates import ROUNDING, Leading, Ritz, by_rounding, conclude, is_good
from mergekern.kernels.randomized_spectrum.products import CHUNK, TaskMatrix
from mergekern.kernels.randomized_spectrum.start import Start
from mergekern.kernels.spectrum import Spectrum, zero_spectrum
from mergekern.kernels.spectrum import on_cpu as direct
from mergekern.kernels.spectrum.on_cpu import Blocks

# Passes in float64 that may follow those in float32.
PASSES_IN_FLOAT64 = 3


def spectrum(
    blocks: Blocks,
    shape: tuple[int, int],
    name: str,
    top_k: int = 10,
    spectrum_k: int = 100,
    tolerance: float = 1e-3,
) -> Spectrum:
    """Return the spectrum of a task matrix that is read in blocks, and the estimates of its errors.

    Args:
        blocks: gives the base and tuned matrix, some rows or columns at a time; called once for each pass.
        shape: (m, n).
        name: name of the tensor, which keys the random start.
        top_k, spectrum_k: as for `spectrum`.
        tolerance: estimated error of a metric at which no further pass is made.
    """
    short = min(shape)
    k, leading = min(top_k, short), min(spectrum_k, short)
    most = most_passes(top_k, spectrum_k)
    if short <= max(DIRECT, most_vectors(most)):
        factorise = direct.spectrum if extension is None else direct.native
        return from_direct(factorise(blocks, shape, top_k, max(spectrum_k, top_k + 1)), spectrum_k)
    matrix = TaskMatrix(blocks, shape)
    start = Start(name, short)
    krylov = _Krylov(matrix, np.dtype(np.float32), start, k, leading, tolerance)
    if not krylov.run(start.signs(BLOCK), fewest_passes(top_k, spectrum_k), most, is_random=True):
        return from_direct(zero_spectrum(shape, top_k, spectrum_k), spectrum_k)
    if krylov.needs_float64():
        vectors = krylov.ritz_vectors(max(k, leading) + SPARE)
        matrix.forget()
        krylov = _Krylov(matrix, np.dtype(np.float64), start, k, leading, tolerance)
        krylov.run(vectors, 1, PASSES_IN_FLOAT64)
    return krylov.finish(shape)


def workspace(shape: tuple[int, int], top_k: int, spectrum_k: int) -> int:
    """Return the bytes that one call allocates at most: a chunk, the subspace and what is made of it, long vectors."""
    short, long = min(shape), max(shape)
    vectors = most_vectors(most_passes(top_k, spectrum_k))
    if short <= max(DIRECT, vectors):
        return direct.workspace(shape, top_k)
    chunk = 12 * (CHUNK + short)
    images = 4 * vectors * long + 12 * vectors * (CHUNK // short + 1)  # those that are kept, and those of one chunk
    return chunk + images + 8 * (vectors + 8 * BLOCK) * short + 8 * 6 * vectors**2 + 8 * 2 * top_k * (short + long)


class _Krylov:
    """A block Krylov subspace of one matrix, and its Ritz pairs."""

    def __init__(
        self, matrix: TaskMatrix, dtype: np.dtype, start: Start, k: int, leading: int, tolerance: float
    ) -> None:
        self._matrix, self._dtype, self._start = matrix, dtype, start
        self._k, self._leading, self._tolerance = k, leading, tolerance
        self._basis = np.empty((0, matrix.short))
        self._gram = np.empty((0, 0))
        self._ritz: Ritz | None = None
        self._coefficients = np.empty((0, 0))  # of the Ritz vectors, one a row, in the basis
        self._left = np.empty((0, 0))  # of the images of the k leading Ritz vectors, what the subspace leaves
        self._quadrature: Quadrature | None = None

    def run(self, block: np.ndarray, fewest: int, most: int, *, is_random: bool = False) -> bool:
        """Grow the subspace from a block until the estimates meet the tolerance; False for a zero matrix.

        Args:
            block: the first vectors.
            fewest, most: passes before the first look, and at which the iteration ends.
            is_random: whether the first vectors stand for all, so that shares in them count singular values.
        """
        newest = _orthonormal(block)
        for passes in range(1, most + 1):
            image = self._matrix.squared(newest, self._dtype)
            if not image.any():
                return False
            rest, triangle = _qr(self._add(newest, image))
            if passes >= fewest - is_random:
                self._ritz = ritz = self._solved(len(newest), triangle, len(block) if is_random else 0)
                is_known = passes >= fewest and is_good(ritz, self._k, self._leading, self._tolerance)
                if is_known or passes == most:
                    break
            fresh = FRESH if is_random and passes <= GAINS else 0
            newest = self._following(rest, triangle, np.linalg.norm(image, axis=1).max(), fresh)
        return True

    def _add(self, newest: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Add a block to the basis, and its products to the Gram matrix; return what the basis leaves of the image."""
        before, count = len(self._basis), len(newest)
        self._basis = np.concatenate([self._basis, newest])
        gram = np.empty((before + count,) * 2)
        gram[:before, :before] = self._gram
        inside = lapack.product(image, self._basis, transpose=True)
        gram[before:, :before], gram[:before, before:] = inside[:, :before], inside[:, :before].T
        gram[before:, before:] = (inside[:, before:] + inside[:, before:].T) / 2
        self._gram = gram
        return image - lapack.multiply(inside, self._basis)

    def _following(self, rest: np.ndarray, triangle: np.ndarray, longest: float, fresh: int) -> np.ndarray:
        """Return the next block: what is left of the image of the newest, and random vectors.

        Args:
            rest, triangle: orthonormal rows Q, and T: TᵀQ is left.
            longest: length of the longest image. Directions that rounding made become random too.
            fresh: number of random vectors that it gains.
        """
        is_kept = np.abs(np.diagonal(triangle)) > NO_DIRECTION * longest
        drawn = self._start.signs(len(rest) - int(is_kept.sum()) + fresh) / np.sqrt(rest.shape[1])
        block = np.concatenate([rest[is_kept], drawn])
        inside = lapack.product(block, self._basis, transpose=True)
        return _orthonormal(block - lapack.multiply(inside, self._basis))

    def _solved(self, newest: int, triangle: np.ndarray, drawn: int) -> Ritz:
        squares, coefficients = leading_eigen(self._gram)
        squares = np.maximum(squares, 0.0)
        left = lapack.product(coefficients[:, -newest:].copy(), triangle, transpose=True)
        residuals = np.linalg.norm(left, axis=1)
        largest, _ = leading_eigen(self._gram[-newest:, -newest:].copy(), 1)
        self._coefficients, self._left = coefficients, left[: self._k]
        if not drawn:
            return Ritz(squares, residuals, float(largest[0]))
        weights = np.square(coefficients[:, :drawn]).sum(axis=1) * (self._matrix.short / drawn)
        before, self._quadrature = self._quadrature, Quadrature(np.sqrt(squares), weights, drawn)
        counts = None if before is None else (self._quadrature, before)
        return Ritz(squares, residuals, float(largest[0]), counts)

    def needs_float64(self) -> bool:
        """Tell whether rounding hides what float64 would show: the rank, or the leading vectors."""
        assert self._ritz is not None
        squares = self._ritz.squares
        if squares[self._k - 1] <= 8 * ROUNDING[self._dtype] * squares[0]:
            return True
        here, there = (
            np.minimum(1.0, by_rounding(self._ritz, self._k, dtype)).mean()
            for dtype in (self._dtype, np.dtype(np.float64))
        )
        return here > self._tolerance / 4 and there < here / 2

    def ritz_vectors(self, count: int) -> np.ndarray:
        """Return the leading Ritz vectors, (count, short)."""
        return lapack.multiply(self._coefficients[:count], self._basis)

    def finish(self, shape: tuple[int, int]) -> Spectrum:
        """Return the spectrum and its estimates: of products in float64 after a last pass."""
        assert self._ritz is not None
        vectors = self.ritz_vectors(self._k)
        if self._dtype == np.float32:
            images = self._matrix.combined(self._coefficients[: self._k])
            rotation, top, long_top = lapack.thin_svd(images, np.empty_like(images))
            short_top, residual = lapack.multiply(rotation, vectors), lapack.multiply(rotation, self._left)
            coupled = np.zeros((self._k, len(self._coefficients) - self._k))
        else:
            images, squared = self._matrix.images(vectors)
            rotation, top, long_top = lapack.thin_svd(images, np.empty_like(images))
            short_top = lapack.multiply(rotation, vectors)
            residual = lapack.multiply(rotation, squared) - np.square(top)[:, None] * short_top
            inside = lapack.product(residual, self._basis, transpose=True)
            residual -= lapack.multiply(inside, self._basis)
            # What couples a leading vector to one behind, in the subspace: rounding, which has been measured here.
            coupled = lapack.product(inside, self._coefficients, transpose=True)[:, self._k :]
        found = Leading(top, np.linalg.norm(residual, axis=1), coupled)
        values, rank, estimates = conclude(self._ritz, found, self._leading, self._dtype)
        left, right = (short_top, long_top) if shape[0] < shape[1] else (long_top, short_top)
        return Spectrum(
            values,
            rank,
            left.T.astype(np.float32),
            right.T.astype(np.float32),
            np.zeros((shape[1], 0), dtype=np.float32),
            estimates,
        )


def _orthonormal(rows: np.ndarray) -> np.ndarray:
    """Return orthonormal rows that span the same space as rows that are nearly so, or random."""
    factor = np.linalg.cholesky(lapack.product(rows, rows, transpose=True))
    return lapack.multiply(np.linalg.inv(factor), rows)


def _qr(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthonormal rows Q and the triangle T with rows = Tᵀ·Q."""
    reflectors = np.array(rows)
    triangle, factors = lapack.qr(reflectors)
    out = np.eye(*rows.shape)
    lapack.multiply_by_q(reflectors, factors, out)
    return out, triangle
