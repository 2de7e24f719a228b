"""`task_product` by Triton: one launch for all matrices. Differences and Ω exist in registers only.

A program computes one tile of one result, over the whole inner dimension in order. There are no atomic additions, and
the bits depend neither on the run nor on other matrices. Errors of an entry of Y, relative to Σ|τ_ik·V_kj|:

- float64 (default): the difference is exact; products and sums are float64, on tensor cores. Error about 1e-16.
- tf32x3: difference and V are rounded to float32, three TF32 products replace one in float32, sums are float32 within a
  tile and float64 across tiles. Error at most 1e-6. Only for storage dtypes of at most 32 bits.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import triton
import triton.language as tl

from mergekern.kernels.device_inputs import ALIGNMENT, STORAGE, addresses, in_one_dtype, to_device

Precision = Literal["float64", "tf32x3"]

# The most rows and columns of a tile of the result. Its sums take 64 registers of each of 128 threads.
ROWS = 64
COLUMNS = 64
# Inner elements per step: one line of memory of a float32 row. A program then takes 136 registers a thread and 64 KiB
# of shared memory, so that three fit on a multiprocessor.
INNER = 32
WARPS = 4
STAGES = 3
DRAW_TILE = 1024


def task_product(
    pairs: Sequence[tuple[torch.Tensor | None, torch.Tensor]],
    vectors: torch.Tensor | None,
    *,
    transpose: bool = False,
    columns: int = 0,
    seed: int = 0,
    precision: Precision = "float64",
) -> torch.Tensor:
    """Return (tuned − base) V or (tuned − base)ᵀ V of every pair, (B, m or n, q) float64, without waiting.

    If storage dtypes differ, pairs are first copied to float32 or float64.

    Args:
        pairs: (base or None for zero, tuned), contiguous matrices of one shape.
        vectors: V, (B, n, q) float64, or (B, m, q) for the transpose; None for Ω, the matrix that `omega` returns.
        transpose: multiply by the transpose.
        columns: width q of Ω.
        seed: seed of Ω.
        precision: see the module's docstring.
    """
    shape = pairs[0][1].shape
    given = [tensor for pair in pairs for tensor in pair]
    if any(tensor.shape != shape or not tensor.is_contiguous() for tensor in given if tensor is not None):
        raise ValueError("task_product needs contiguous matrices of one shape")
    wide = in_one_dtype(given)
    some = wide[1]
    assert some is not None
    if precision == "tf32x3" and some.dtype == torch.float64:
        raise ValueError("precision='tf32x3' needs storage of at most 32 bits, not float64")
    height, inner = reversed(shape) if transpose else shape
    width = columns if vectors is None else vectors.shape[2]
    if vectors is not None and (
        vectors.shape != (len(pairs), inner, width) or vectors.dtype != torch.float64 or not vectors.is_contiguous()
    ):
        raise ValueError(f"vectors must be contiguous float64 ({len(pairs)}, {inner}, q), not {tuple(vectors.shape)}")

    pointers = np.array(addresses(wide), dtype=np.int64).reshape(-1, 2)
    [pointers_there] = to_device([pointers], some.device)
    out = torch.empty((len(pairs), height, width), dtype=torch.float64, device=some.device)
    tile_columns = min(COLUMNS, max(16, triton.next_power_of_2(width)))
    programs = len(pairs) * triton.cdiv(height, ROWS) * triton.cdiv(width, tile_columns)
    if programs:
        with torch.cuda.device_of(out):
            _task_product[(programs,)](
                pointers_there,
                out if vectors is None else vectors,
                out,
                *shape,
                width,
                seed,
                STORAGE=STORAGE[some.dtype],
                ALIGNED=not (pointers % ALIGNMENT).any(),
                TRANSPOSE=transpose,
                DRAW=vectors is None,
                EXACT=precision == "float64",
                ROWS=ROWS,
                INNER=INNER,
                COLUMNS=tile_columns,
                num_warps=WARPS,
                num_stages=STAGES,
                enable_fp_fusion=True,
            )
    return out


def omega(rows: int, columns: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the Ω that `task_product` draws in registers, (rows, columns) float64."""
    out = torch.empty((rows, columns), dtype=torch.float64, device=device)
    if out.numel():
        grid = (triton.cdiv(out.numel(), DRAW_TILE),)
        with torch.cuda.device_of(out):
            _omega[grid](out, out.numel(), seed, TILE=DRAW_TILE, num_warps=WARPS, enable_fp_fusion=True)
    return out


@triton.jit(do_not_specialize=["rows", "seed"])
def _task_product(
    addresses,
    vectors,
    out,
    rows,
    columns,
    width,
    seed,
    STORAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    DRAW: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a tile of (tuned − base) V: its columns vary fastest along the grid, then its rows, then the matrices."""
    WIDE: tl.constexpr = tl.float64 if EXACT else tl.float32
    PRECISION: tl.constexpr = "ieee" if EXACT else "tf32x3"
    height = columns if TRANSPOSE else rows
    inner = rows if TRANSPOSE else columns
    column_tiles = tl.cdiv(width, COLUMNS)
    row_tiles = tl.cdiv(height, ROWS)
    program = tl.program_id(0)
    column = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    first_row = (program // column_tiles % row_tiles) * ROWS
    matrix = (program // column_tiles // row_tiles).to(tl.int64)
    base_address = tl.load(addresses + 2 * matrix)
    base = base_address.to(tl.pointer_type(STORAGE))
    tuned = tl.load(addresses + 2 * matrix + 1).to(tl.pointer_type(STORAGE))
    if ALIGNED:
        base = tl.multiple_of(base, 16)
        tuned = tl.multiple_of(tuned, 16)
    has_base = tl.full((1, 1), base_address, tl.int64) != 0
    vectors += matrix * inner * width
    # The transpose is computed as Vᵀ·τ, a transposed tile: rows of τ are then contiguous, and wide loads possible.
    total = tl.full((COLUMNS, ROWS) if TRANSPOSE else (ROWS, COLUMNS), 0.0, tl.float64)
    for first in range(0, inner, INNER):
        upright = first + tl.arange(0, INNER)[:, None]
        some = _vectors(vectors, seed, upright, column, inner, width, DRAW, WIDE)
        if TRANSPOSE:
            i = upright
            j = first_row + tl.arange(0, ROWS)[None, :]
        else:
            i = first_row + tl.arange(0, ROWS)[:, None]
            j = first + tl.arange(0, INNER)[None, :]
        delta = _difference(tuned, base, i, j, rows, columns, has_base, WIDE)
        a = tl.trans(some) if TRANSPOSE else delta
        b = delta if TRANSPOSE else some
        total += tl.dot(a, b, input_precision=PRECISION, out_dtype=WIDE).to(tl.float64)
    if TRANSPOSE:
        total = tl.trans(total)
    row = first_row + tl.arange(0, ROWS)[:, None]
    here = out + (matrix * height + row) * width + column
    tl.store(here, total, mask=(row < height) & (column < width))


@triton.jit
def _vectors(vectors, seed, i, j, rows, columns, DRAW: tl.constexpr, WIDE: tl.constexpr):
    """Return elements (i, j) of V, or of Ω, which is drawn."""
    if DRAW:
        some = tl.randn(seed, i.to(tl.int64) * columns + j).to(WIDE)
    else:
        inside = (i < rows) & (j < columns)
        some = tl.load(vectors + i.to(tl.int64) * columns + j, mask=inside, other=0.0).to(WIDE)
    return some


@triton.jit
def _difference(tuned, base, i, j, rows, columns, has_base, WIDE: tl.constexpr):
    """Return elements (i, j) of tuned − base."""
    inside = (i < rows) & (j < columns)
    offset = i.to(tl.int64) * columns + j
    delta = tl.load(tuned + offset, mask=inside, other=0.0).to(WIDE)
    return delta - tl.load(base + offset, mask=inside & has_base, other=0.0).to(WIDE)


@triton.jit(do_not_specialize=["count", "seed"])
def _omega(out, count, seed, TILE: tl.constexpr):
    """Write normal random numbers. The counter of a number is its offset in the matrix."""
    offset = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    tl.store(out + offset, tl.randn(seed, offset).to(tl.float64), mask=offset < count)
