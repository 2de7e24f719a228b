"""Products of one task matrix with thin ones, for the iteration of `on_cpu`, on the calling thread.

Vectors are rows here, as in `lapack`. A chunk is as long as the shape says, so that no bit depends on memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mergekern.kernels import lapack
from mergekern.kernels.native import add_gram_product, difference, largest_difference, vector_group
from mergekern.kernels.spectrum.on_cpu import Blocks
from mergekern.kernels.workspace import Workspace

# Elements of a chunk of the matrix that is read at a time: longer than what the caches hold of any dtype.
CHUNK = 1 << 22

_workspace = Workspace()


class TaskMatrix:
    """A task matrix, of which chunks along the long side are in memory at a time, scaled by powers of two.

    Args:
        blocks: gives the base and tuned matrix, some rows or columns at a time; called once for each product.
        shape: (m, n).
    """

    def __init__(self, blocks: Blocks, shape: tuple[int, int]) -> None:
        self.short, self.long = min(shape), max(shape)
        self._of_rows = shape[0] < shape[1]  # the vectors of the iteration are of the short side
        self._blocks = blocks
        self._axis, self._step = int(self._of_rows), max(1, CHUNK // self.short)
        self._exponents: dict[int, int | None] = {}  # None for a chunk of zeros
        self._kept: dict[int, list[np.ndarray]] = {}  # of each chunk, its images in float32, one a row, scaled

    def squared(self, vectors: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return vectors·τᵀτ, float64, by products in a dtype; of a wide matrix vectors·τ·τᵀ.

        Of products in float32 the images vectors·τᵀ are kept, for `combined`.
        """
        return self._in_float32(vectors) if dtype == np.float32 else self._in_float64(vectors, None)

    def combined(self, coefficients: np.ndarray) -> np.ndarray:
        """Return combinations of all vectors that were multiplied in float32, times τᵀ, (count, long)."""
        images = np.zeros((len(coefficients), self.long))
        for start, parts in self._kept.items():
            rows = np.concatenate(parts, axis=1).astype(np.float64)
            exponent = self._exponents[start]
            assert exponent is not None
            found = lapack.product(coefficients, rows, transpose=True)
            images[:, start : start + len(rows)] = np.ldexp(1.0, exponent) * found
        return images

    def images(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors·τᵀ, (count, long), and vectors·τᵀτ, by products in float64."""
        images = np.zeros((len(vectors), self.long))
        return images, self._in_float64(vectors, images)

    def forget(self) -> None:
        """Free the images that are kept."""
        self._kept.clear()

    def _in_float32(self, vectors: np.ndarray) -> np.ndarray:
        count = len(vectors)
        columns = -(-count // vector_group()) * vector_group()
        narrow = _workspace.array("vectors", (self.short, columns)).reshape(-1).view(np.float32)[: self.short * columns]
        narrow = narrow.reshape(self.short, columns)
        narrow[:, :count], narrow[:, count:] = vectors.T, 0.0
        total = _workspace.array("total", (self.short, columns))
        total[:] = 0.0
        for start, base, tuned, exponent in self._chunks():
            image = np.empty((tuned.shape[self._axis], columns), dtype=np.float32)
            add_gram_product(base, tuned, self._of_rows, exponent, narrow, total, image)
            self._kept.setdefault(start, []).append(image[:, :count])
        return np.ascontiguousarray(total[:, :count].T)

    def _in_float64(self, vectors: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        total = np.zeros(vectors.shape)
        for start, base, tuned, exponent in self._chunks():
            delta = _workspace.array("delta", tuple(tuned.shape))
            difference(base, tuned, delta)
            delta *= np.ldexp(1.0, -exponent)
            image = lapack.product(vectors, delta, transpose=not self._of_rows)
            total += np.ldexp(1.0, 2 * exponent) * lapack.product(image, delta, transpose=self._of_rows)
            if images is not None:
                images[:, start : start + image.shape[1]] = np.ldexp(1.0, exponent) * image
        return total

    def _chunks(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, int]]:
        """Yield (start, base, tuned, exponent) of a chunk: |tuned − base| < 2^exponent. Zeros are left out."""
        for start, base, tuned in self._blocks(self._axis, self._step):
            if start not in self._exponents:
                largest = largest_difference(base, tuned)
                self._exponents[start] = int(np.frexp(largest)[1]) if largest > 0 else None
            exponent = self._exponents[start]
            if exponent is not None:
                yield start, base, tuned, exponent
