"""The leading singular values and vectors by randomised block Krylov, to compare the direct method with.

basis of span{ΔᵀΔ·Ω, (ΔᵀΔ)²·Ω, …}, made orthogonal block by block; then the values of Δ within it (Rayleigh-Ritz)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mergekern.kernels.task_product.on_triton import task_product

BLOCK, STEPS = 32, 8


class Leading(NamedTuple):
    """Values (B, count) descending, right vectors (B, n, k), and the residuals ‖ΔᵀΔv − σ²v‖/σ₁² of those (B, k)."""

    values: torch.Tensor
    right_top: torch.Tensor
    residual: torch.Tensor


def leading(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], top_k: int, count: int, steps: int = STEPS, block: int = BLOCK
) -> Leading:
    """Return the `count` leading singular values of matrices (m, n) with m ≥ n, and `top_k` vectors."""
    short = pairs[0][1].shape[1]
    block = min(block, short // steps)
    new = task_product(pairs, task_product(pairs, None, columns=block), transpose=True)
    basis, images = new[..., :0], []
    for _ in range(steps):
        for _ in range(2):
            new = _orthonormal(new - basis @ (basis.mT @ new))
        basis = torch.cat([basis, new], dim=2)
        images.append(task_product(pairs, new.contiguous()))
        new = task_product(pairs, images[-1], transpose=True)
    image = torch.cat(images, dim=2)
    squares, rotations = torch.linalg.eigh(image.mT @ image)
    squares, rotations = squares.flip(1), rotations.flip(2)[..., :top_k]
    vectors = (basis @ rotations).contiguous()
    residual = task_product(pairs, image @ rotations, transpose=True) - vectors * squares[:, None, :top_k]
    relative = torch.linalg.vector_norm(residual, dim=1) / squares[:, :1]
    return Leading(squares[:, :count].clamp(min=0.0).sqrt(), vectors, relative)


def _orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """Return orthonormal bases of the spans, by Cholesky QR of scaled columns, without waiting for the device."""
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    factor, _ = torch.linalg.cholesky_ex(vectors.mT @ vectors)
    return torch.linalg.solve_triangular(factor.mT, vectors, upper=True, left=False)
