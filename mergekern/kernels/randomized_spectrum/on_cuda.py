"""`randomized_spectrum` on a GPU: all matrices of one shape at once, by the same iteration as on the CPU.

`task_product` multiplies by the matrices, from their storage dtypes and in float64, which costs a GPU no more than
float32 here: reading the weights is what takes the time. Small problems go to the kernels of `spectrum`: Householder QR
of what a pass adds, CholeskyQR2 of the next block, the tridiagonal form of the projected matrices, and Jacobi for the
leading triplets.

The host reads the Ritz values after each pass, and decides for each matrix whether it needs another one: no matrix
makes more passes for the sake of others. Estimates are those of the CPU; of the Ritz pairs behind the leading ones only
the sum of squares is known, and they count as if they were as near as the first of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergekern.kernels.cuda_module import CudaModule
from mergekern.kernels.device_inputs import STORAGE
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
from mergekern.kernels.randomized_spectrum.estimates import Leading, Ritz, conclude, is_good
from mergekern.kernels.randomized_spectrum.start import Start
from mergekern.kernels.spectrum import DeviceSpectra, Estimates, Spectrum, Stack, on_cuda, zero_spectrum
from mergekern.kernels.spectrum.device_tridiagonal import (
    BAND,
    DeviceTridiagonal,
    factor_panels,
    orthonormalise,
    power_of_two,
)

FLOAT64 = np.dtype(np.float64)


def spectra(
    stacks: Sequence[Stack],
    names: Sequence[str],
    top_k: int,
    spectrum_k: int,
    tolerance: float,
    module: CudaModule,
) -> list[tuple[DeviceSpectra, Estimates]]:
    """Return the spectra of stacks of matrices, in their order, and the estimates of their errors, on the host.

    The call waits for the device.

    Args:
        stacks: matrices of one short side.
        names: names of the tensors, which key the random start.
        top_k, spectrum_k, tolerance: see `on_cpu.spectrum`.
        module: the CUDA C++ kernels.
    """
    short = min(stacks[0].base.shape)
    if short <= max(DIRECT, most_vectors(most_passes(top_k, spectrum_k))):
        direct = on_cuda.spectra(stacks, top_k, max(spectrum_k, top_k + 1), module)
        return [_from_direct(found, spectrum_k) for found in direct]
    by_shape: dict[torch.Size, list[int]] = {}
    for index, stack in enumerate(stacks):
        by_shape.setdefault(stack.base.shape, []).append(index)
    found: dict[int, tuple[DeviceSpectra, Estimates]] = {}
    for indices in by_shape.values():
        group = [on_cuda.widened(stacks[index]) for index in indices]
        passes = fewest_passes(top_k, spectrum_k), most_passes(top_k, spectrum_k)
        wanted = _Wanted(min(top_k, short), min(spectrum_k, short), tolerance, *passes)
        found.update(zip(indices, _iterated(group, [names[index] for index in indices], wanted, module), strict=True))
    return [found[index] for index in range(len(stacks))]


def workspace(shape: tuple[int, int], top_k: int, spectrum_k: int) -> int:
    """Return the bytes of device memory that one matrix of a batch needs while it is factorised."""
    short, long = min(shape), max(shape)
    passes = most_passes(top_k, spectrum_k)
    vectors, newest = most_vectors(passes), BLOCK + FRESH * GAINS
    if short <= max(DIRECT, vectors):
        return on_cuda.workspace(shape, top_k)
    # The subspace and a copy of its part that goes on; a block, its image, what is left of it, reflectors and fresh
    # vectors; products on the long side; the projected matrix, its tridiagonal form and vectors.
    wide = 0 if torch.bfloat16 in STORAGE else 4 * short * long  # a copy in float32, where the kernel needs it
    return 8 * (2 * vectors * short + 8 * newest * short + 3 * newest * long + 8 * vectors**2) + wide


def _from_direct(found: DeviceSpectra, spectrum_k: int) -> tuple[DeviceSpectra, Estimates]:
    """Return a direct factorisation in the form of this kernel."""
    values, rank = found.values.cpu().numpy(), found.rank.cpu().numpy()
    left, right, bottom = (np.broadcast_to(np.float32(0), side.shape[1:]) for side in found[2:5])
    each = [from_direct(Spectrum(values[i], int(rank[i]), left, right, bottom), spectrum_k) for i in range(len(values))]
    return _with_values(each, found.left_top, found.right_top, found.good)


def _with_values(
    each: Sequence[Spectrum], left: torch.Tensor, right: torch.Tensor, good: torch.Tensor
) -> tuple[DeviceSpectra, Estimates]:
    """Return spectra of which values, ranks and estimates are on the host, and vectors on the device."""
    values, rank = np.stack([one.values for one in each]), np.array([one.rank for one in each], dtype=np.int64)
    estimates = [one.estimates for one in each if one.estimates is not None]
    numbers = [torch.from_numpy(part).to(left.device) for part in (values, rank)]
    return (
        DeviceSpectra(numbers[0], numbers[1], left, right, right[:, :, :0], good),
        Estimates(*(np.stack(part) for part in zip(*estimates, strict=True))),
    )


@dataclass(frozen=True)
class _Wanted:
    """What is asked of the iteration: k vectors, `leading` values, a tolerance, and the fewest and most passes."""

    k: int
    leading: int
    tolerance: float
    fewest: int
    most: int


@dataclass
class _Subspaces:
    """The block Krylov subspaces of the matrices that are not known well enough yet.

    Attributes:
        places: places of the matrices among all.
        pairs: (base, tuned) of each.
        layers: number of the tensor of each matrix.
        basis: (B, s, p) orthonormal columns.
        gram: (B, p, p) of τᵀτ in that basis.
        counts: the quadrature of each, without its newest block; empty before the first.
    """

    places: list[int]
    pairs: list[tuple[torch.Tensor, torch.Tensor]]
    layers: list[int]
    basis: torch.Tensor
    gram: torch.Tensor
    counts: list[Quadrature]

    def select(self, which: Sequence[int]) -> _Subspaces:
        """Return some of them."""
        there = _indices(which, self.basis.device)
        return _Subspaces(
            [self.places[i] for i in which],
            [self.pairs[i] for i in which],
            [self.layers[i] for i in which],
            self.basis.index_select(0, there),
            self.gram.index_select(0, there),
            [self.counts[i] for i in which],
        )

    def add(self, newest: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Add blocks (B, s, c) to the bases, and their images to the Gram matrices; return what is left of those."""
        before, count = self.basis.shape[2], newest.shape[2]
        self.basis = torch.cat([self.basis, newest], dim=2)
        inside = image.mT @ self.basis
        gram = inside.new_empty(len(newest), before + count, before + count)
        gram[:, :before, :before] = self.gram
        gram[:, before:, :before], gram[:, :before, before:] = inside[..., :before], inside[..., :before].mT
        gram[:, before:, before:] = (inside[..., before:] + inside[..., before:].mT) / 2
        self.gram = gram
        return image - self.basis @ inside.mT


@dataclass
class _Solved:
    """The Ritz pairs of subspaces.

    Attributes:
        ritz: Ritz values of each matrix, on the host.
        coefficients: (B, p, L) of the leading Ritz vectors.
    """

    ritz: list[Ritz]
    coefficients: torch.Tensor


def _iterated(
    stacks: Sequence[Stack], names: Sequence[str], wanted: _Wanted, module: CudaModule
) -> list[tuple[DeviceSpectra, Estimates]]:
    """Return the spectra of stacks of one shape."""
    shape, device = (stacks[0].base.shape[0], stacks[0].base.shape[1]), stacks[0].base.device
    short = min(shape)
    pairs = [(stack.base, tuned) for stack in stacks for tuned in stack.tuned]
    layers = [layer for layer, stack in enumerate(stacks) for _ in stack.tuned]
    omega = [Start(name, short) for name in names]
    spaces = _Subspaces(
        list(range(len(pairs))), pairs, layers,
        torch.empty(len(pairs), short, 0, dtype=torch.float64, device=device),
        torch.empty(len(pairs), 0, 0, dtype=torch.float64, device=device), [],
    )  # fmt: skip
    newest = orthonormalise(_drawn(omega, layers, BLOCK, device), module)
    found: dict[int, tuple[Spectrum, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for passes in range(1, wanted.most + 1):
        image = _squared(spaces.pairs, newest)
        rest, triangle = _qr(spaces.add(newest, image), module)
        longest = torch.linalg.vector_norm(image, dim=1).amax(1)
        if passes >= wanted.fewest - 1:
            solved = _solve(spaces, triangle, wanted, module)
        if passes >= wanted.fewest:
            done, on = _divided(solved.ritz, wanted, passes == wanted.most)
            if done:
                there = _indices(done, device)
                part = _Solved([solved.ritz[i] for i in done], solved.coefficients.index_select(0, there))
                ended = spaces.select(done)
                found.update(zip(ended.places, _finished(ended, part, shape, wanted, module), strict=True))
            if not on:
                break
            if done:
                there = _indices(on, device)
                spaces = spaces.select(on)
                rest, triangle, longest = (each.index_select(0, there) for each in (rest, triangle, longest))
        newest = _following(spaces, rest, triangle, longest, omega, FRESH if passes <= GAINS else 0, module)
    ends = np.cumsum([0] + [len(stack.tuned) for stack in stacks])
    return [_together([found[i] for i in range(start, end)]) for start, end in itertools.pairwise(ends)]


def _drawn(omega: Sequence[Start], layers: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """Return the next random signs of each matrix, (B, s, count): those of its tensor."""
    drawn = {layer: omega[layer].signs(count).T for layer in dict.fromkeys(layers)}
    place = {layer: position for position, layer in enumerate(drawn)}
    whole = torch.from_numpy(np.stack(list(drawn.values())).astype(np.int8))
    if device.type == "cuda":
        whole = whole.pin_memory()
    there = whole.to(device, non_blocking=True)
    return there.index_select(0, _indices([place[layer] for layer in layers], device)).double()


def _squared(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], vectors: torch.Tensor) -> torch.Tensor:
    """Return τᵀτV of the short side."""
    return on_cuda.multiply(pairs, on_cuda.multiply(pairs, vectors, to_long=True), to_long=False)


def _qr(vectors: torch.Tensor, module: CudaModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return orthonormal Q (B, s, c) and R (B, c, c) of vectors = QR, which may be dependent."""
    reflectors = vectors.mT.contiguous()
    count = reflectors.shape[1]
    triangle, factor = factor_panels(reflectors, module)
    q = reflectors.mT @ (factor @ reflectors[:, :, :count])
    q.neg_()
    q.diagonal(dim1=1, dim2=2).add_(1.0)
    return q, triangle


def _following(
    spaces: _Subspaces,
    rest: torch.Tensor,
    triangle: torch.Tensor,
    longest: torch.Tensor,
    omega: Sequence[Start],
    gained: int,
    module: CudaModule,
) -> torch.Tensor:
    """Return the next blocks: what is left of the images of the newest, and random vectors.

    Args:
        spaces: the subspaces.
        rest, triangle: orthonormal Q and R: QR is left.
        longest: (B,) length of the longest image. Directions that rounding made become random too.
        omega: the random signs of each tensor.
        gained: number of random vectors that each block gains.
        module: the CUDA C++ kernels.
    """
    count = rest.shape[2]
    fresh = _drawn(omega, spaces.layers, count + gained, rest.device) / rest.shape[1] ** 0.5
    is_kept = triangle.diagonal(dim1=1, dim2=2).abs() > NO_DIRECTION * longest[:, None]
    block = torch.cat([torch.where(is_kept[:, None, :], rest, fresh[..., :count]), fresh[..., count:]], dim=2)
    block -= spaces.basis @ (spaces.basis.mT @ block)
    return orthonormalise(block, module)


def _solve(spaces: _Subspaces, triangle: torch.Tensor, wanted: _Wanted, module: CudaModule) -> _Solved:
    """Return the Ritz pairs of subspaces, and wait for them. Their quadratures are kept in the subspaces."""
    gram, short = spaces.gram, spaces.basis.shape[1]
    newest, size = triangle.shape[1], gram.shape[1]
    count = min(size, max(wanted.leading, wanted.k) + SPARE)
    squares, coefficients = _leading_eigen(gram, count, module)
    outside, _ = _leading_eigen(gram[:, -newest:, -newest:], 1, module, with_vectors=False)
    residuals = torch.linalg.vector_norm(triangle @ coefficients[:, -newest:], dim=1)
    # Of the pairs behind, the sum of their squared residuals; they are no nearer than the last that is known.
    behind = (torch.linalg.vector_norm(triangle, dim=(1, 2)).square() - residuals.square().sum(1)).clamp(min=0.0).sqrt()
    weights = coefficients[:, :BLOCK].square().sum(1) * (short / BLOCK)
    numbers = torch.cat([squares, residuals, weights, outside, behind[:, None]], dim=1).cpu().numpy()
    ritz, counts = [], []
    for index, row in enumerate(numbers):
        values, lengths = np.maximum(row[:count], 0.0), row[count : 2 * count]
        counts.append(Quadrature(np.sqrt(values), row[2 * count : 3 * count], BLOCK))
        if count < size:
            values, lengths = np.append(values, values[-1]), np.append(lengths, row[-1])
        both = (counts[-1], spaces.counts[index]) if spaces.counts else None
        ritz.append(Ritz(values, lengths, float(row[3 * count]), both))
    spaces.counts = counts
    return _Solved(ritz, coefficients)


def _leading_eigen(
    matrices: torch.Tensor, count: int, module: CudaModule, with_vectors: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalues (B, count) of symmetric matrices, descending, and vectors (B, size, count)."""
    size = matrices.shape[1]
    padded = -(-size // BAND) * BAND
    exponent = torch.frexp(matrices.diagonal(dim1=1, dim2=2).amax(1)).exponent
    scaled = matrices.new_zeros(len(matrices), padded, padded)
    scaled[:, :size, :size] = matrices * power_of_two(-exponent)[:, None, None]
    form = DeviceTridiagonal(scaled, size, module)
    values = form.values(size - 1 - torch.arange(count, device=matrices.device))
    vectors = form.vectors(values.flip(1)).flip(2) if with_vectors else matrices[:, :, :0]
    return values * power_of_two(exponent)[:, None], vectors


def _divided(ritz: Sequence[Ritz], wanted: _Wanted, is_last: bool) -> tuple[list[int], list[int]]:
    """Return which matrices are known well enough, zeros among them, and which need another pass."""
    done = [
        is_last or each.squares[0] == 0 or is_good(each, wanted.k, wanted.leading, wanted.tolerance) for each in ritz
    ]
    return [i for i, end in enumerate(done) if end], [i for i, end in enumerate(done) if not end]


def _finished(
    spaces: _Subspaces, solved: _Solved, shape: tuple[int, int], wanted: _Wanted, module: CudaModule
) -> list[tuple[Spectrum, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Make the last pass; return the values and estimates of each matrix, and its left and right vectors on the device.

    The last part of each tuple tells whether the vectors are orthonormal.
    """
    k = wanted.k
    vectors = spaces.basis @ solved.coefficients[..., :k]
    end = on_cuda.resolve(vectors, on_cuda.multiply(spaces.pairs, vectors, to_long=True), module)
    residual = on_cuda.multiply(spaces.pairs, end.product, to_long=False) - end.short * end.values.square()[:, None, :]
    inside = spaces.basis.mT @ residual
    residual -= spaces.basis @ inside
    # What couples a leading vector to one behind, in the subspace: rounding, which has been measured here.
    coupled = solved.coefficients.mT @ inside
    behind = (inside.square().sum(1) - coupled.square().sum(1)).clamp(min=0.0).sqrt()[:, None, :]
    numbers = [end.values, torch.linalg.vector_norm(residual, dim=1), torch.cat([coupled[:, k:], behind], dim=1).mT]
    good = on_cuda.is_orthonormal(end.short) & on_cuda.is_orthonormal(end.long)
    values, residuals, couplings = (each.cpu().numpy() for each in numbers)
    left, right = (end.short, end.long) if shape[0] < shape[1] else (end.long, end.short)
    return [
        _one(ritz, Leading(values[i], residuals[i], couplings[i][:, : len(ritz.squares) - k]), shape, wanted,
             left[i], right[i], good[i])
        for i, ritz in enumerate(solved.ritz)
    ]  # fmt: skip


def _one(
    ritz: Ritz, found: Leading, shape: tuple[int, int], wanted: _Wanted,
    left: torch.Tensor, right: torch.Tensor, good: torch.Tensor,
) -> tuple[Spectrum, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the spectrum of one matrix, its vectors on the device, and whether it is good."""
    k = wanted.k
    zero = from_direct(zero_spectrum(shape, k, wanted.leading), wanted.leading)
    if ritz.squares[0] == 0:
        left, right = (torch.eye(side.shape[0], k, dtype=side.dtype, device=side.device) for side in (left, right))
        return zero, left.float(), right.float(), torch.ones_like(good)
    if not np.isfinite(found.values).all():
        return zero, left.float(), right.float(), torch.zeros_like(good)
    values, rank, estimates = conclude(ritz, found, wanted.leading, FLOAT64)
    spectrum = zero._replace(values=values, rank=rank, estimates=estimates)
    return spectrum, left.float(), right.float(), good


def _together(
    each: Sequence[tuple[Spectrum, torch.Tensor, torch.Tensor, torch.Tensor]],
) -> tuple[DeviceSpectra, Estimates]:
    spectra, left, right, good = zip(*each, strict=True)
    return _with_values(spectra, torch.stack(left), torch.stack(right), torch.stack(good))


def _indices(which: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(which, dtype=torch.int64, device="cpu").to(device)
