"""`spectrum` on a GPU: all matrices with one short side at once, by the same direct method as on the CPU.

The Gram matrices of the short side are reduced from dense to band form (by matrix products) and to tridiagonal form
(one block of threads per matrix, the band in shared memory). Bisection gives the eigenvalues, and inverse iteration the
vectors of a window of 4·k at each end. Within a window the matrix itself gives the vectors: its product with the
window, QR, and one-sided Jacobi.

A direct method does not depend on gaps in the spectrum, and the bottom of a noise spectrum has none. With the direct
method done, the leading values and vectors are nearly free, so that a Krylov iteration for them would save nothing.

All work is queued on the current stream, without waiting. Results are checked. Those that fail are marked, and the
caller computes them again on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mergekern.kernels.cuda_module import CudaModule
from mergekern.kernels.spectrum import RANK_TOLERANCE, DeviceSpectra, Stack
from mergekern.kernels.spectrum.device_tridiagonal import (
    BAND,
    COLUMN,
    MOST_THREADS,
    WARP,
    DeviceTridiagonal,
    factor_panels,
    power_of_two,
)
from mergekern.kernels.task_product.on_triton import task_product

# Size of a window relative to the requested subspace. The gap to the remaining vectors must exceed the error of a
# float64 Gram matrix (the CPU's WIDEN).
WIDEN = 4
# Elements of float64 differences in memory at a time. They take 1 GiB.
DELTA_BLOCK = 1 << 27
# The most sweeps of one-sided Jacobi. It has converged if a sweep rotates nothing; otherwise the values are NaN.
JACOBI_SWEEPS = 30
# Largest accepted error of a result, in orthogonality and in residuals relative to the norm of the Gram matrix. The
# errors of correct results are about 1e-14.
FAULT = 1e-11


def spectra(stacks: Sequence[Stack], top_k: int, spectrum_k: int, module: CudaModule) -> list[DeviceSpectra]:
    """Return the spectra of stacks of matrices, in their order. All matrices must have the same short side."""
    # Stacks of one shape are sorted together, since they are processed together.
    order = sorted(range(len(stacks)), key=lambda index: stacks[index].base.shape)
    stacks = [widened(stacks[index]) for index in order]
    short = min(stacks[0].base.shape)
    k, window = min(top_k, short), min(WIDEN * top_k, short)
    grams = _gram_matrices(stacks, short)
    peak = grams.diagonal(dim1=1, dim2=2).amax(1)
    # Powers of two make scaling exact. Scaling is needed since computing reflectors squares the elements.
    exponent = torch.frexp(peak).exponent
    grams *= power_of_two(-exponent)[:, None, None]
    trace = grams.diagonal(dim1=1, dim2=2).sum(1)
    frobenius = torch.linalg.vector_norm(grams, dim=(1, 2))

    form = DeviceTridiagonal(grams, short, module)
    del grams
    good = (form.diagonal.sum(1) - trace).abs() <= FAULT * trace
    good &= (form.frobenius() - frobenius).abs() <= FAULT * frobenius
    leading = max(min(spectrum_k, short), window)
    squares_top = form.values(short - 1 - torch.arange(leading, device=peak.device))
    squares_bottom = form.values(torch.arange(window, device=peak.device))
    rank = short - form.count_below(RANK_TOLERANCE**2 * squares_top[:, 0])
    top = form.vectors(squares_top[:, :window].flip(1)).flip(2)
    bottom = form.vectors(squares_bottom)
    del form

    # Scaling the vectors instead of the matrices brings the largest value of the products to about 1.
    half, is_odd = exponent.div(2, rounding_mode="floor"), (exponent % 2 == 1)[:, None]
    values = squares_top[:, : min(spectrum_k, short)].clamp(min=0.0).sqrt()
    values = torch.where(is_odd, values * 2.0**0.5, values) * power_of_two(half)[:, None]
    scale = power_of_two(-half)[:, None, None]
    found: list[DeviceSpectra] = []
    groups = [list(group) for _, group in itertools.groupby(stacks, key=lambda stack: stack.base.shape)]
    for group, part in zip(groups, _parts([_count(group) for group in groups]), strict=True):
        both = torch.cat([top[part], bottom[part]], dim=2) * scale[part]
        pairs = [(stack.base, tuned) for stack in group for tuned in stack.tuned]
        projected = multiply(pairs, both, to_long=True)
        ends = []
        for vectors, product, squares in (
            (top[part], projected[..., :window], squares_top[part, :window]),
            (bottom[part], projected[..., window:], squares_bottom[part].flip(1)),
        ):
            end = resolve(vectors, product, module)
            expected = torch.where(is_odd[part], 2 * squares, squares)
            good[part] &= (end.values.square() - expected).abs().amax(1) <= FAULT
            ends.append(end)
        resolved_top, resolved_bottom = ends[0].columns(slice(k)), ends[1].columns(slice(window - k, window))
        for end in (resolved_top, resolved_bottom):
            good[part] &= is_orthonormal(end.short) & is_orthonormal(end.long)
            # The residuals of Δ·v = σ·u and Δᵀ·Δ·v = σ²·v.
            good[part] &= is_small(end.product - end.long * end.values[:, None, :])
            back = multiply(pairs, end.product * scale[part], to_long=False)
            good[part] &= is_small(back - end.short * end.values.square()[:, None, :])
        shape = (group[0].base.shape[0], group[0].base.shape[1])
        whole = _assemble(shape, resolved_top, resolved_bottom, values[part], rank[part], good[part])
        by_stack = [field.split([len(stack.tuned) for stack in group]) for field in whole]
        found += [DeviceSpectra(*fields) for fields in zip(*by_stack, strict=True)]
    return [found[order.index(index)] for index in range(len(stacks))]


def workspace(shape: tuple[int, int], top_k: int) -> int:
    """Return the bytes of device memory that one matrix of a batch needs while it is factorised."""
    short, long = min(shape), max(shape)
    padded, window = -(-short // BAND) * BAND, min(WIDEN * top_k, short)
    # The difference, the Gram matrix and a copy of its trailing part; panels and reflectors; the vectors of a window
    # with their elimination; products with both windows, their reflectors and the final vectors.
    matrices = min(short * long, DELTA_BLOCK) + 2 * padded**2 + 2 * (padded**2 // 2) + short * long // 64
    return 8 * (matrices + 8 * short * window + 8 * long * window + (short + BAND) * COLUMN)


class End(NamedTuple):
    """Singular triplets at one end of the spectrum, (N, s, c), (N, l, c) and (N, c), with the product Δ·short."""

    short: torch.Tensor
    long: torch.Tensor
    values: torch.Tensor
    product: torch.Tensor

    def columns(self, which: slice) -> End:
        return End(self.short[..., which], self.long[..., which], self.values[:, which], self.product[..., which])


def resolve(vectors: torch.Tensor, product: torch.Tensor, module: CudaModule) -> End:
    """Return the singular triplets of Δ within span(vectors), values descending, from the product Δ·vectors."""
    count = vectors.shape[2]
    reflectors = product.mT.contiguous()
    triangle, factor = factor_panels(reflectors, module)
    columns = triangle.mT.contiguous()
    rotations, values = torch.empty_like(columns), columns.new_empty(len(columns), count)
    needed = 8 * WARP
    whole = needed + 16 * count * count
    in_shared = whole <= module.shared_limit
    module.launch(
        "jacobi_svd",
        (len(columns), 1),
        min(MOST_THREADS, WARP * max(1, count // 2)),
        [columns, rotations, values, count, JACOBI_SWEEPS, int(in_shared)],
        whole if in_shared else needed,
    )
    values, order = values.sort(dim=1, descending=True, stable=True)
    columns = columns.take_along_dim(order[:, :, None], dim=1)
    rotation = rotations.take_along_dim(order[:, :, None], dim=1).mT
    # A second QR normalises the orthogonal columns. If a value is zero, it also completes the basis.
    signs, inner = factor_panels(columns, module)
    left = torch.eye(count, dtype=values.dtype, device=values.device) - columns.mT @ (inner @ columns)
    left = left * torch.where(signs.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)[:, None, :]
    long = torch.zeros_like(product)
    long[:, :count] = left
    long = long.baddbmm(reflectors.mT, factor @ (reflectors @ long), alpha=-1)
    return End(vectors @ rotation, long, values, product @ rotation)


def widened(stack: Stack) -> Stack:
    """Return float8 as float32, since torch has no arithmetic for float8."""
    if all(tensor.dtype.itemsize > 1 for tensor in (stack.base, *stack.tuned)):
        return stack
    return Stack(stack.base.to(torch.float32), [tuned.to(torch.float32) for tuned in stack.tuned])


def _gram_matrices(stacks: Sequence[Stack], short: int) -> torch.Tensor:
    """Return the smaller of Δ·Δᵀ and Δᵀ·Δ for all matrices, padded with zeros to whole panels."""
    padded = -(-short // BAND) * BAND
    sizes = [len(stack.tuned) for stack in stacks]
    grams = torch.zeros(_count(stacks), padded, padded, dtype=torch.float64, device=stacks[0].base.device)
    for stack, part in zip(stacks, _parts(sizes), strict=True):
        rows, columns = stack.base.shape
        axis = 1 if rows < columns else 0
        step = max(1, DELTA_BLOCK // (len(stack.tuned) * short))
        out = grams[part, :short, :short]
        for start in range(0, max(rows, columns), step):
            length = min(step, max(rows, columns) - start)
            base = stack.base.narrow(axis, start, length).to(torch.float64)
            delta = base.new_empty(len(stack.tuned), *base.shape)
            for model, tuned in enumerate(stack.tuned):
                torch.sub(tuned.narrow(axis, start, length), base, out=delta[model])
            if axis == 1:
                out.baddbmm_(delta, delta.mT)
            else:
                out.baddbmm_(delta.mT, delta)
    return grams


def _count(stacks: Sequence[Stack]) -> int:
    return sum(len(stack.tuned) for stack in stacks)


def _parts(sizes: Sequence[int]) -> list[slice]:
    ends = torch.tensor(sizes, device="cpu").cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def multiply(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], vectors: torch.Tensor, to_long: bool) -> torch.Tensor:
    """Return the products of matrices of one shape with vectors (N, short, c) of the short side, or (N, long, c)."""
    rows, columns = pairs[0][1].shape
    return task_product(pairs, vectors.contiguous(), transpose=(rows < columns) == to_long)


def is_orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """Tell of which matrices (N, size, c) the columns are orthonormal, (N,)."""
    identity = torch.eye(vectors.shape[2], dtype=vectors.dtype, device=vectors.device)
    return is_small(vectors.mT @ vectors - identity)


def is_small(residual: torch.Tensor) -> torch.Tensor:
    # The comparison is written so that NaN fails.
    return residual.abs().amax((1, 2)) <= FAULT


def _assemble(
    shape: tuple[int, int], top: End, bottom: End, values: torch.Tensor, rank: torch.Tensor, good: torch.Tensor
) -> DeviceSpectra:
    """Assign the sides to left and right. Zero matrices get columns of the identity, as in `zero_spectrum`."""
    rows, columns = shape
    k, short = top.short.shape[2], min(rows, columns)
    zero = (values[:, 0] == 0)[:, None, None]
    left, right = (top.short, top.long) if rows < columns else (top.long, top.short)
    right_bottom = bottom.long if rows < columns else bottom.short
    identity = torch.eye(max(rows, columns), short, dtype=left.dtype, device=left.device)
    return DeviceSpectra(
        values,
        torch.where(zero[:, 0, 0], 0, rank),
        torch.where(zero, identity[:rows, :k], left).to(torch.float32),
        torch.where(zero, identity[:columns, :k], right).to(torch.float32),
        torch.where(zero, identity[:columns, short - k :], right_bottom).to(torch.float32),
        good | zero[:, 0, 0],
    )
