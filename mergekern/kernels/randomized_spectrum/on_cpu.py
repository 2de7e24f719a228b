"""`randomized_spectrum` on the CPU: the iteration, on the calling thread. `products` multiplies by the matrix.

Vectors are rows here, as in `lapack`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xxhash

from mergekern.kernels import lapack
from mergekern.kernels.eigen import leading_eigen
from mergekern.kernels.native import extension
from mergekern.kernels.randomized_spectrum import (
    BLOCK,
    DIRECT,
    MOST_PASSES,
    ROUNDING_OF_VALUES,
    ROUNDING_OF_VECTORS,
    SEED,
    SPARE,
    from_direct,
)
from mergekern.kernels.randomized_spectrum.products import CHUNK, TaskMatrix
from mergekern.kernels.spectrum import RANK_TOLERANCE, Estimates, Spectrum, zero_spectrum
from mergekern.kernels.spectrum import on_cpu as direct
from mergekern.kernels.spectrum.on_cpu import Blocks

# How far rounding moves τᵀτ, relative to σ₁².
ROUNDING = {np.dtype(np.float32): 2.4e-7, np.dtype(np.float64): 2e-15}
# Passes before the first look at the estimates.
FEWEST_PASSES = 3
# Passes in float64 that may follow those in float32.
PASSES_IN_FLOAT64 = 3
# Random vectors that each block gains: of more than BLOCK equal singular values a Krylov subspace sees BLOCK
# alone, with residuals that vanish. These see the others, and the estimates then show them.
FRESH = 2
# Squares of singular values that are closer than this, relatively, count as equal: stored weights resolve no less.
CLOSEST = 1e-7
# A direction shorter than this share of the longest is none.
NO_DIRECTION = 1e-13


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
    start = _Start(name, short)
    krylov = _Krylov(matrix, np.dtype(np.float32), start, k, leading, tolerance)
    if not krylov.run(start.signs(BLOCK), max(FEWEST_PASSES, most - MOST_PASSES + FEWEST_PASSES), most):
        return from_direct(zero_spectrum(shape, top_k, spectrum_k), spectrum_k)
    if krylov.needs_float64():
        vectors = krylov.ritz_vectors(max(BLOCK, leading + SPARE))
        krylov = _Krylov(matrix, np.dtype(np.float64), start, k, leading, tolerance)
        krylov.run(vectors, 1, PASSES_IN_FLOAT64)
    return krylov.finish(shape)


def most_passes(top_k: int, spectrum_k: int) -> int:
    """Return the number of passes at which the iteration ends: `MOST_PASSES`, or more for many values.

    >>> most_passes(10, 100), most_passes(10, 500)
    (6, 13)
    """
    needed = -(-(max(top_k, spectrum_k) + SPARE) // BLOCK)
    return MOST_PASSES + max(0, needed - 3)


def most_vectors(passes: int) -> int:
    """Return the dimension of the subspace after some passes.

    >>> most_vectors(6)
    354
    """
    return passes * BLOCK + FRESH * passes * (passes - 1) // 2


def workspace(shape: tuple[int, int], top_k: int, spectrum_k: int) -> int:
    """Return the bytes that one call allocates at most: a chunk, the subspace and what is made of it, long vectors."""
    short, long = min(shape), max(shape)
    vectors = most_vectors(most_passes(top_k, spectrum_k))
    if short <= max(DIRECT, vectors):
        return direct.workspace(shape, top_k)
    chunk = 12 * (CHUNK + short)
    return chunk + 8 * (vectors + 8 * BLOCK) * short + 8 * 6 * vectors**2 + 8 * 2 * top_k * (short + long)


class _Start:
    """The random signs of one tensor, a new draw each time that they are asked for."""

    def __init__(self, name: str, size: int) -> None:
        self._key = xxhash.xxh3_128_intdigest(f"{SEED}\0{name}".encode())
        self._size, self._draws = size, 0

    def signs(self, count: int) -> np.ndarray:
        """Return (count, size) of ±1."""
        # Blocks of the generator are numbered by the low 64 bits of the counter.
        generator = np.random.Philox(counter=self._draws << 64, key=self._key)
        self._draws += 1
        words = generator.random_raw(-(-count * self._size // 64))
        bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: count * self._size]
        return 1.0 - 2.0 * bits.reshape(count, self._size)


class _Ritz(NamedTuple):
    """The Ritz pairs of a subspace of p vectors.

    Attributes:
        squares: (p,) θ², descending; coefficients: (p, p), a vector of the subspace's basis a row.
        residuals: (p,) ρ.
        outside: μ².
    """

    squares: np.ndarray
    coefficients: np.ndarray
    residuals: np.ndarray
    outside: float


class _Krylov:
    """A block Krylov subspace of one matrix, and its Ritz pairs."""

    def __init__(
        self, matrix: TaskMatrix, dtype: np.dtype, start: _Start, k: int, leading: int, tolerance: float
    ) -> None:
        self._matrix, self._dtype, self._start = matrix, dtype, start
        self._k, self._leading, self._tolerance = k, leading, tolerance
        self._basis = np.empty((0, matrix.short))
        self._gram = np.empty((0, 0))
        self._ritz: _Ritz | None = None

    def run(self, block: np.ndarray, fewest: int, most: int) -> bool:
        """Grow the subspace from a block until the estimates meet the tolerance; False for a zero matrix."""
        newest = _orthonormal(block)
        for passes in range(1, most + 1):
            image = self._matrix.squared(newest, self._dtype)
            if not image.any():
                return False
            rest, triangle = _qr(self._add(newest, image))
            if passes >= fewest:
                self._ritz = self._solved(len(newest), triangle)
                if passes == most or self._is_good():
                    break
            newest = self._following(rest, triangle, np.linalg.norm(image, axis=1).max())
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

    def _following(self, rest: np.ndarray, triangle: np.ndarray, longest: float) -> np.ndarray:
        """Return the next block: what is left of the image of the newest, and `FRESH` random vectors.

        Args:
            rest, triangle: orthonormal rows Q, and T: TᵀQ is left.
            longest: length of the longest image. Directions that rounding made become random too.
        """
        is_kept = np.abs(np.diagonal(triangle)) > NO_DIRECTION * longest
        fresh = self._start.signs(len(rest) - int(is_kept.sum()) + FRESH) / np.sqrt(rest.shape[1])
        block = np.concatenate([rest[is_kept], fresh])
        inside = lapack.product(block, self._basis, transpose=True)
        return _orthonormal(block - lapack.multiply(inside, self._basis))

    def _solved(self, newest: int, triangle: np.ndarray) -> _Ritz:
        squares, coefficients = leading_eigen(self._gram)
        residuals = np.linalg.norm(lapack.product(coefficients[:, -newest:].copy(), triangle, transpose=True), axis=1)
        largest, _ = leading_eigen(self._gram[-newest:, -newest:].copy(), 1)
        return _Ritz(np.maximum(squares, 0.0), coefficients, residuals, float(largest[0]))

    def _rounding(self, dtype: np.dtype) -> np.ndarray:
        """Return the sines (k,) by which rounding may turn the leading vectors out of their span."""
        assert self._ritz is not None
        squares, k = self._ritz.squares, self._k
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = ROUNDING[dtype] * squares[0] + CLOSEST * squares[:k]
            return np.nan_to_num(moved / np.maximum(squares[:k] - squares[k], 0.0), nan=1.0)

    def _is_good(self) -> bool:
        """Tell whether the estimates, without rounding, meet the tolerance."""
        assert self._ritz is not None
        ritz, k = self._ritz, self._k
        within = _of_vectors(ritz, ritz.squares[:k], ritz.residuals[:k], np.zeros(k))
        values = _of_values(ritz, ritz.residuals[: self._leading])
        length = np.sqrt(ritz.squares[: self._leading].sum())
        return within.mean() <= self._tolerance / 2 and np.linalg.norm(values) <= 4 * self._tolerance * length

    def needs_float64(self) -> bool:
        """Tell whether rounding hides what float64 would show: the rank, or the leading vectors."""
        assert self._ritz is not None
        squares = self._ritz.squares
        if squares[self._k - 1] <= 8 * ROUNDING[self._dtype] * squares[0]:
            return True
        here, there = (np.minimum(1.0, self._rounding(dtype)).mean() for dtype in (self._dtype, np.dtype(np.float64)))
        return here > self._tolerance / 4 and there < here / 2

    def ritz_vectors(self, count: int) -> np.ndarray:
        """Return the leading Ritz vectors, (count, short)."""
        assert self._ritz is not None
        return lapack.multiply(self._ritz.coefficients[:count], self._basis)

    def finish(self, shape: tuple[int, int]) -> Spectrum:
        """Make the last pass, and return the spectrum and its estimates."""
        assert self._ritz is not None
        ritz, k = self._ritz, self._k
        vectors = self.ritz_vectors(k)
        images, squared = self._matrix.images(vectors, self._dtype)
        rotation, top, long_top = lapack.thin_svd(images, np.empty_like(images))
        short_top = lapack.multiply(rotation, vectors)
        residual = lapack.multiply(rotation, squared) - np.square(top)[:, None] * short_top
        inside = lapack.product(residual, self._basis, transpose=True)
        residual -= lapack.multiply(inside, self._basis)
        # What couples a leading vector to one behind, in the subspace: rounding, which has been measured here.
        coupled = lapack.product(inside, ritz.coefficients, transpose=True)[:, k:]
        with np.errstate(divide="ignore", invalid="ignore"):
            coupled /= np.maximum(np.square(top)[:, None] - ritz.squares[None, k:], 0.0)
        rounding = np.hypot(np.linalg.norm(np.nan_to_num(coupled, nan=1.0, posinf=1.0, neginf=1.0), axis=1),
                            self._rounding(self._dtype))  # fmt: skip
        outside = np.linalg.norm(residual, axis=1)
        values = np.sqrt(ritz.squares[: self._leading])
        values[:k] = top[: self._leading]
        values = np.minimum.accumulate(values)
        residuals = ritz.residuals[: self._leading].copy()
        residuals[:k] = outside[: self._leading]
        by_rounding = _of_rounding(values, ROUNDING[self._dtype])
        estimates = Estimates(
            _of_values(ritz, residuals) + by_rounding, _of_vectors(ritz, np.square(top), outside, rounding)
        )
        left, right = (short_top, long_top) if shape[0] < shape[1] else (long_top, short_top)
        bound = np.full(max(k, len(values)), RANK_TOLERANCE * top[0])
        bound[: len(values)] = np.maximum(bound[: len(values)], estimates.values)
        return Spectrum(
            values,
            int((np.concatenate([top, values[k:]]) > bound).sum()),
            left.T.astype(np.float32),
            right.T.astype(np.float32),
            np.zeros((shape[1], 0), dtype=np.float32),
            estimates,
        )


def _of_values(ritz: _Ritz, residuals: np.ndarray) -> np.ndarray:
    """Return the estimated errors of the leading Ritz values, from their residuals; see the package's docstring."""
    squares = ritz.squares[: len(residuals)]
    value = np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        second = 1.5 * np.square(residuals) / (value * np.maximum(squares - ritz.outside, 0.0))
    return np.fmin(np.sqrt(2.0) * residuals / value, np.where(squares > ritz.outside, second, np.inf))


def _of_rounding(values: np.ndarray, rounding: float) -> np.ndarray:
    """Return how far rounding moves singular values: half of what it moves a square, over the value."""
    moved = rounding * values[0] ** 2
    moved = np.minimum(np.sqrt(moved), moved / (2 * np.maximum(values, np.finfo(np.float64).tiny)))
    return moved + ROUNDING_OF_VALUES * values[0]


def _of_vectors(ritz: _Ritz, squares: np.ndarray, residuals: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Return the estimated sines of the leading vectors with the true span; see the package's docstring.

    Args:
        ritz: Ritz values and vectors of the subspace.
        squares, residuals: (k,) θ² and ρ of the leading vectors.
        rounding: (k,) sines by rounding alone.
    """
    k = len(squares)
    behind, their_residuals = ritz.squares[k:], ritz.residuals[k:]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        direct = residuals / np.maximum(squares - ritz.outside, 0.0)
        by_way = their_residuals / np.maximum(squares[:, None] - behind, 0.0)
        found = 1.5 * np.hypot(direct * np.sqrt(1.0 + np.square(by_way).sum(axis=1)), rounding) + ROUNDING_OF_VECTORS
    return np.minimum(1.0, np.nan_to_num(found, nan=1.0, posinf=1.0))


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
