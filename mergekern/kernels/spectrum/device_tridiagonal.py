"""Tridiagonal forms of many symmetric matrices on a GPU, with eigenvalues and selected eigenvectors.

The reduction from dense to band uses matrix products, one panel of reflectors at a time. For the reduction from band to
tridiagonal, one block of threads handles each matrix, with the band in shared memory. Eigenvalues come from bisection,
vectors from inverse iteration. All work is queued on the current stream, without waiting.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mergekern.kernels.cuda_module import CudaModule

# These must equal csrc/cuda/common.cuh and chase.cu: half bandwidth, elements of a column of the band including the
# bulge, threads of a warp.
BAND = 16
COLUMN = 2 * BAND + 1
WARP = 32
# Threads of a block: the limits with which the kernels are compiled.
FEW_THREADS, THREADS, MANY_THREADS, MOST_THREADS = 128, 256, 512, 1024
# The most warps of a block of the chase, each of which runs a sweep; the number of vectors of a block of `undo_chase`.
CHASE_WARPS = 24
UNDO_TILE = 8
# Smallest distance between shifts of inverse iteration, relative to the norm (as in LAPACK's dstein). With equal
# shifts, different starts would converge to one vector if eigenvalues agree up to rounding, as the zeros of a
# rank-deficient matrix do. Without this, the vectors of 6 of 360 such matrices were too dependent for Cholesky QR,
# which gave NaN.
SEPARATION = 10 * 2.0**-53


class DeviceTridiagonal:
    """The tridiagonal forms of symmetric matrices (batch, padded, padded), scaled to a norm of about 1.

    All methods take and return eigenvalues in the scale of the original matrices.
    """

    def __init__(self, matrices: torch.Tensor, size: int, module: CudaModule) -> None:
        self._module, self._size = module, size
        self._batch = len(matrices)
        self._panels = _reduce_to_band(matrices, module)
        self._steps = -(-(size - 1) // BAND)
        diagonal, off_diagonal = matrices.new_empty(2, self._batch, size)
        self._reflectors = matrices.new_empty(self._batch, size * (size - 1) // 2)
        self._taus = matrices.new_empty(self._batch, size, max(self._steps, 1))
        warps = max(1, min(CHASE_WARPS, -(-self._steps // 2)))
        band = (size + BAND) * COLUMN
        in_shared = 8 * band <= module.shared_limit
        workspace = matrices.new_empty(0 if in_shared else self._batch, band)
        module.launch(
            "chase",
            (self._batch, 1),
            WARP * warps,
            [matrices, workspace, diagonal, off_diagonal, self._reflectors, self._taus, matrices.shape[1], size,
             max(2, -(-self._steps // warps)), int(in_shared)],
            8 * band if in_shared else 0,
        )  # fmt: skip
        self.diagonal, self.off_diagonal = diagonal, off_diagonal
        radius = off_diagonal.abs()
        radius[:, 1:] += off_diagonal[:, :-1].abs()
        norm = (diagonal.abs() + radius).amax(1)
        self._scale = power_of_two(-torch.frexp(norm).exponent)[:, None]
        self._low = ((diagonal - radius).amin(1, keepdim=True) * self._scale).contiguous()
        self._high = ((diagonal + radius).amax(1, keepdim=True) * self._scale).contiguous()
        self._diagonal, self._off_diagonal = diagonal * self._scale, off_diagonal * self._scale
        # A zero would break the recurrence. Replacing it by 1e-30 of the norm changes no eigenvalue.
        self._squares = torch.zeros_like(off_diagonal)
        self._squares[:, 1:] = self._off_diagonal[:, :-1].square().clamp(min=1e-60)

    def frobenius(self) -> torch.Tensor:
        """Return the Frobenius norms (batch,)."""
        return (self.diagonal.square().sum(1) + 2 * self.off_diagonal.square().sum(1)).sqrt()

    def values(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the eigenvalues (batch, count) at the given positions; 0 is the smallest."""
        values = torch.empty(self._batch, len(positions), dtype=torch.float64, device=self.diagonal.device)
        threads = min(FEW_THREADS, WARP * -(-len(positions) // WARP))
        self._module.launch(
            "tridiagonal_values",
            (self._batch, -(-len(positions) // threads)),
            threads,
            [self._diagonal, self._squares, self._low, self._high, positions, values, self._size, len(positions)],
        )
        return values / self._scale

    def count_below(self, bounds: torch.Tensor) -> torch.Tensor:
        """Return the number of eigenvalues below bounds (batch,)."""
        counts = torch.empty(self._batch, dtype=torch.int64, device=bounds.device)
        bounds = bounds * self._scale[:, 0]
        self._module.launch(
            "tridiagonal_counts",
            (-(-self._batch // WARP), 1),
            WARP,
            [self._diagonal, self._squares, bounds, counts, self._size, self._batch],
        )
        return counts

    def vectors(self, values: torch.Tensor) -> torch.Tensor:
        """Return orthonormal eigenvectors (batch, size, count) of consecutive ascending eigenvalues."""
        count, size = values.shape[1], self._size
        scaled = _separated(values * self._scale)
        vectors = torch.empty(self._batch, size, count, dtype=torch.float64, device=values.device)
        threads = min(FEW_THREADS, WARP * -(-count // WARP))
        self._module.launch(
            "tridiagonal_vectors",
            (self._batch, -(-count // threads)),
            threads,
            [self._diagonal, self._off_diagonal, scaled, vectors, vectors.new_empty(self._batch, 3, size, count), size,
             count],
        )  # fmt: skip
        vectors = orthonormalise(vectors, self._module)
        shared = 8 * UNDO_TILE * (size + size // BAND + 1)
        in_shared = shared <= self._module.shared_limit
        self._module.launch(
            "undo_chase",
            (self._batch, -(-count // UNDO_TILE)),
            THREADS,
            [self._reflectors, self._taus, vectors, size, count, UNDO_TILE, int(in_shared)],
            shared if in_shared else 0,
        )
        padded = vectors.new_zeros(self._batch, self._panels.padded, count)
        padded[:, :size] = vectors
        self._panels.apply(padded)
        return padded[:, :size]


def _separated(values: torch.Tensor) -> torch.Tensor:
    """Return ascending shifts (batch, count) that are at least SEPARATION apart, from ascending eigenvalues."""
    steps = SEPARATION * torch.arange(values.shape[1], dtype=values.dtype, device=values.device)
    return (values - steps).cummax(dim=1).values + steps


class _Panels(NamedTuple):
    """The reflectors of the reduction to a band. Each panel has V (batch, BAND, rows) and t (batch, BAND, BAND)."""

    padded: int
    factors: list[tuple[torch.Tensor, torch.Tensor]]

    def apply(self, vectors: torch.Tensor) -> None:
        """Turn vectors (batch, padded, count) of the band into those of the matrix, in place."""
        for reflectors, factor in reversed(self.factors):
            part = vectors[:, -reflectors.shape[2] :]
            part.baddbmm_(reflectors.mT, factor @ (reflectors @ part), alpha=-1)


def _reduce_to_band(matrices: torch.Tensor, module: CudaModule) -> _Panels:
    """Reduce symmetric matrices to half bandwidth BAND, in place. The result is in the upper triangle.

    A becomes A − V·Zᵀ − Z·Vᵀ with Y = A·V·t, Z = Y − V·(tᵀ·Vᵀ·Y)/2 (Bischof, Lang and Sun, 2000).
    """
    padded = matrices.shape[1]
    panels = _Panels(padded, [])
    for start in range(0, padded - BAND, BAND):
        block = matrices[:, start : start + BAND, start + BAND :]
        reflectors = block.contiguous()
        triangle, factor = factor_panels(reflectors, module)
        panels.factors.append((reflectors, factor))
        block[:, :, :BAND] = triangle.mT
        trailing = matrices[:, start + BAND :, start + BAND :]
        product = (trailing @ reflectors.mT) @ factor
        product.baddbmm_(reflectors.mT, factor.mT @ (reflectors @ product), alpha=-0.5)
        left = torch.cat([reflectors.mT, product], dim=2)
        right = torch.cat([product.mT, reflectors], dim=1)
        trailing.baddbmm_(left, right, alpha=-1)
    return panels


def factor_panels(panels: torch.Tensor, module: CudaModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor panels, stored by columns (batch, columns, rows). They are replaced by V; return r and t."""
    batch, columns, rows = panels.shape
    triangle, factor = panels.new_empty(2, batch, columns, columns)
    needed = 8 * (columns + WARP)
    whole = needed + 8 * columns * rows
    in_shared = whole <= module.shared_limit
    module.launch(
        "factor_panels",
        (batch, 1),
        MANY_THREADS,
        [panels, triangle, factor, rows, columns, int(in_shared)],
        whole if in_shared else needed,
    )
    return triangle, factor


def orthonormalise(vectors: torch.Tensor, module: CudaModule) -> torch.Tensor:
    """Return orthonormal bases of the spans of independent vectors (batch, size, count), by Cholesky QR, twice."""
    batch, _, count = vectors.shape
    shared = 16 * count * count
    in_shared = shared <= module.shared_limit
    for _ in range(2):
        grams = vectors.mT @ vectors
        inverses = torch.empty_like(grams)
        module.launch(
            "cholesky_inverses",
            (batch, 1),
            THREADS,
            [grams, inverses, count, int(in_shared)],
            shared if in_shared else 0,
        )
        vectors = vectors @ inverses
    return vectors


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2^exponent, exactly. torch.ldexp does not guarantee this on every device."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
