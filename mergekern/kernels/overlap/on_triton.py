"""`overlap` by Triton: a tile of products of all models' columns is squared and summed on the chip.

A program handles two groups of models of one stack. Their columns, padded to a power of two, fill the sides of a tile;
if a model has more columns, it takes several tiles in turn. Groups below the diagonal are copied from their mirror
image, so that the result is exactly symmetric. Products and sums are float64, so that only the float32 bases contribute
errors.
"""

import torch
import triton
import triton.language as tl

# Columns on each side of a tile. The sums take 32 registers of each of 256 threads. Rows of bases are not aligned, so
# that elements are loaded one by one; with half as many threads Triton 3.6 spills registers.
SIDE = 64
INNER = 16
WARPS = 8
STAGES = 2


def overlap(bases: torch.Tensor) -> torch.Tensor:
    """Return ‖B_iᵀ B_j‖_F² of all pairs of models, for many stacks, (B, N, N) float64 on the device, without waiting.

    Args:
        bases: (B, N, d, k) float32, contiguous.
    """
    if bases.dtype != torch.float32 or bases.dim() != 4 or not bases.is_contiguous():
        raise ValueError(f"overlap needs contiguous float32 (B, N, d, k), not {bases.dtype} {tuple(bases.shape)}")
    stacks, models, size, k = bases.shape
    padded = min(SIDE, triton.next_power_of_2(k))
    groups = triton.cdiv(models, SIDE // padded)
    out = torch.empty((stacks, models, models), dtype=torch.float64, device=bases.device)
    with torch.cuda.device_of(out):
        _overlap[(stacks * groups * groups,)](
            bases,
            out,
            models,
            size,
            k,
            groups,
            SIDE=SIDE,
            PADDED=padded,
            INNER=INNER,
            num_warps=WARPS,
            num_stages=STAGES,
            enable_fp_fusion=True,
        )
    return out


@triton.jit(do_not_specialize=["models", "size", "groups"])
def _overlap(bases, out, models, size, k, groups, SIDE: tl.constexpr, PADDED: tl.constexpr, INNER: tl.constexpr):
    """Write the overlaps of two groups of models, on both sides of the diagonal."""
    MODELS: tl.constexpr = SIDE // PADDED
    stack = (tl.program_id(0) // (groups * groups)).to(tl.int64)
    first = tl.program_id(0) // groups % groups * MODELS
    second = tl.program_id(0) % groups * MODELS
    if second < first:
        return
    # Offsets relative to the first model of a group fit in 32 bits.
    left = bases + (stack * models + first) * size * k
    right = bases + (stack * models + second) * size * k
    side = tl.arange(0, SIDE)
    row = tl.arange(0, INNER)
    offset = (side // PADDED * size * k + side % PADDED)[None, :] + row[:, None] * k
    total = tl.full((MODELS, MODELS), 0.0, tl.float64)
    for left_start in range(0, k, PADDED):
        has_left = (first + side // PADDED < models) & (left_start + side % PADDED < k)
        for right_start in range(0, k, PADDED):
            has_right = (second + side // PADDED < models) & (right_start + side % PADDED < k)
            product = tl.full((SIDE, SIDE), 0.0, tl.float64)
            for start in range(0, size, INNER):
                inside = (start + row < size)[:, None]
                a = tl.load(left + left_start + start * k + offset, mask=inside & has_left[None, :], other=0.0)
                b = tl.load(right + right_start + start * k + offset, mask=inside & has_right[None, :], other=0.0)
                product += tl.dot(tl.trans(a).to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
            squares = tl.reshape(product * product, (MODELS, PADDED, MODELS, PADDED))
            total += tl.sum(tl.sum(squares, axis=3), axis=1)
    i = first + tl.arange(0, MODELS)[:, None]
    j = second + tl.arange(0, MODELS)[None, :]
    out += stack * models * models
    here = (i <= j) & (j < models)
    tl.store(out + i.to(tl.int64) * models + j, total, mask=here)
    tl.store(out + j.to(tl.int64) * models + i, total, mask=here)
