"""Ways to the parts of a singular value decomposition that `spectrum` needs, side by side on one thread.

Needed: the 100 leading values, the 10 leading vectors of both sides, the 10 last right vectors. Every alternative
starts from the same float64 matrix. Errors are against a float64 SVD: of values the worst, relative to the largest;
of subspaces the sine, in the Frobenius norm. `this package` returns float32 vectors, which alone are 1e-7 off.

Rows that find one end compare with the others as top + bottom − `gram only`.

    python -m benchmarks.alternatives
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
import torch
from scipy import linalg
from threadpoolctl import threadpool_limits

from benchmarks.vit_zoo import make_model
from mergekern.kernels import native
from mergekern.kernels.spectrum import on_cpu

LEADING, TOP_K = 100, 10
TOP_BLOCK, BOTTOM_BLOCK = 32, 16
SHIFT_STEPS = 4  # of the iteration that estimates where to shift to
WIDE = on_cpu.WIDEN * TOP_K
EPS = np.finfo(np.float64).eps

Arrays = tuple[np.ndarray, np.ndarray]
Operator = Callable[[np.ndarray], np.ndarray]


class Parts(NamedTuple):
    """The result of one alternative; vectors are columns, the values descend."""

    values: np.ndarray | None = None
    left_top: np.ndarray | None = None
    right_top: np.ndarray | None = None
    right_bottom: np.ndarray | None = None


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Return Gaussian noise, always the same for a seed."""
    return np.random.default_rng(seed).standard_normal(shape)


def orthonormal(vectors: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the span of some columns."""
    return linalg.qr(vectors, mode="economic", check_finite=False)[0]


def resolve(matrix: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return left vectors, values and right vectors of the matrix within the span of orthonormal columns."""
    left, values, rotation = linalg.svd(matrix @ vectors, full_matrices=False, check_finite=False)
    return left, values, vectors @ rotation.T


def krylov(forth: Operator, start: np.ndarray, steps: int, back: Operator = np.asarray) -> Arrays:
    """Return an orthonormal basis of the span of start, M·start, …, M^(steps−1)·start, M = back∘forth; forth(basis).

    Every new block is made orthogonal to all before it, twice.
    """
    size, width = start.shape
    basis = np.empty((size, steps * width), order="F")
    images = []
    for first in range(0, steps * width, width):
        known = basis[:, :first]
        for _ in range(2):
            start = orthonormal(start - known @ (known.T @ start))
        basis[:, first : first + width] = start
        images.append(forth(start))
        start = back(images[-1])
    return basis, np.hstack(images)


def ritz(basis: np.ndarray, images: np.ndarray, count: int) -> Arrays:
    """Return the eigenvalues of a symmetric operator within a subspace, descending, and the first few vectors."""
    values, vectors = linalg.eigh(basis.T @ images, driver="evd", check_finite=False)
    return values[::-1], basis @ vectors[:, : -count - 1 : -1]


def inverse(gram: np.ndarray, shift: float = 0.0) -> Operator:
    """Return (gram − shift)⁻¹, by Cholesky; numpy.linalg.LinAlgError if the shift is above the smallest eigenvalue."""
    shifted = gram.copy(order="F")
    shifted[np.diag_indices(len(gram))] -= shift
    factor = linalg.cho_factor(shifted, overwrite_a=True, check_finite=False)
    return lambda vectors: linalg.cho_solve(factor, vectors, check_finite=False)


def inverse_from_below(gram: np.ndarray, squares: np.ndarray) -> tuple[Operator, float]:
    """Return (gram − shift)⁻¹ and a shift just below all eigenvalues; `squares` estimate the smallest, from above."""
    for margin in (0.1, 0.5, 2.5):
        shift = max(0.0, squares[0] - margin * (squares[TOP_K - 1] - squares[0]))
        try:
            return inverse(gram, shift), shift
        except np.linalg.LinAlgError:
            continue
    return inverse(gram), 0.0


def bottom(matrix: np.ndarray, gram: np.ndarray, squares: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the last right vectors, from eigenpairs of the Gram matrix, ascending.

    As this package does: where the Gram matrix is too coarse for the gap, from a wider subspace and the matrix itself.
    """
    if EPS * np.linalg.norm(gram) <= on_cpu.ACCURATE * (squares[TOP_K] - squares[TOP_K - 1]):
        return vectors[:, :TOP_K]
    return resolve(matrix, vectors[:, :WIDE])[2][:, -TOP_K:]


def full_svd(matrix: np.ndarray, dtype: torch.dtype) -> Parts:
    """Find all by torch's SVD; in float64 the oracle."""
    every = torch.linalg.svd(torch.from_numpy(matrix).to(dtype), full_matrices=False)
    left, values, right = (part.numpy() for part in every)
    return Parts(values[:LEADING], left[:, :TOP_K], right[:TOP_K].T, right[-TOP_K:].T)


def package(matrix: np.ndarray, solver: Callable[..., on_cpu.Spectrum]) -> Parts:
    """Call a solver of this package, with a base of zeros."""
    tuned, base = torch.from_numpy(matrix), torch.zeros(1, matrix.shape[1], dtype=torch.float64).expand(matrix.shape)

    def blocks(axis: int, step: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for index, pair in enumerate(zip(base.split(step, axis), tuned.split(step, axis), strict=True)):
            yield index * step, *pair

    found = solver(blocks, matrix.shape, TOP_K, LEADING)
    return Parts(*(getattr(found, part) for part in Parts._fields))


def gram_only(matrix: np.ndarray) -> Parts:
    """Form the Gram matrix and stop."""
    matrix.T @ matrix
    return Parts()


def gram_krylov(matrix: np.ndarray, steps: int) -> Parts:
    """Find the top by block Krylov on the Gram matrix."""
    gram = matrix.T @ matrix
    squares, vectors = ritz(*krylov(gram.__matmul__, draw(len(gram), TOP_BLOCK), steps), TOP_K)
    left, _, right = resolve(matrix, vectors)
    return Parts(np.sqrt(squares[:LEADING]), left, right)


def matrix_krylov(matrix: np.ndarray, steps: int) -> Parts:
    """Find the top by block Krylov on the matrix and its transpose in turn."""
    start = draw(matrix.shape[1], TOP_BLOCK)
    basis, images = krylov(matrix.__matmul__, start, steps, back=matrix.T.__matmul__)
    left, values, rotation = linalg.svd(images, full_matrices=False, check_finite=False)
    return Parts(values[:LEADING], left[:, :TOP_K], basis @ rotation[:TOP_K].T)


def inverse_krylov(matrix: np.ndarray, steps: int, shifted: bool = False) -> Parts:
    """Find the bottom by block Krylov on the inverse of the Gram matrix.

    With `shifted`, the Gram matrix is first shifted to near singular, by an estimate from a few unshifted steps.
    """
    gram = matrix.T @ matrix
    start, solve, shift = draw(len(gram), BOTTOM_BLOCK), inverse(gram), 0.0
    if shifted:
        inverses, start = ritz(*krylov(solve, start, SHIFT_STEPS), BOTTOM_BLOCK)
        solve, shift = inverse_from_below(gram, 1 / inverses)
    inverses, vectors = ritz(*krylov(solve, start, steps), WIDE)
    return Parts(right_bottom=bottom(matrix, gram, shift + 1 / inverses, vectors))


def svd_of_triangle(matrix: np.ndarray) -> Parts:
    """Find all by QR without Q, then an SVD of the triangle; left vectors from the matrix."""
    triangle = linalg.qr(matrix, mode="r", check_finite=False)[0][: matrix.shape[1]]
    _, values, right = linalg.svd(triangle, overwrite_a=True, check_finite=False)
    top = right[:TOP_K].T
    return Parts(values[:LEADING], matrix @ top / values[:TOP_K], top, right[-TOP_K:].T)


def mixed_precision(matrix: np.ndarray) -> Parts:
    """Find all by eigenpairs of a float32 Gram matrix; then two steps of subspace iteration in float64."""
    single = matrix.astype(np.float32)
    squares, vectors = linalg.eigh(single.T @ single, driver="evd", check_finite=False)
    gram = matrix.T @ matrix
    solve = inverse(gram)
    last, top = vectors[:, :WIDE].astype(np.float64), vectors[:, -WIDE:].astype(np.float64)
    for _ in range(2):
        last, top = orthonormal(solve(last)), orthonormal(gram @ top)
    left, values, right = resolve(matrix, top)
    others = np.sqrt(squares[::-1][WIDE:LEADING])
    right_bottom = resolve(matrix, last)[2][:, -TOP_K:]
    return Parts(np.concatenate([values, others]), left[:, :TOP_K], right[:, :TOP_K], right_bottom)


def full_eigh(matrix: np.ndarray) -> Parts:
    """Find all by all eigenpairs of the Gram matrix."""
    gram = matrix.T @ matrix
    squares, vectors = linalg.eigh(gram, driver="evd", check_finite=False)
    left, _, right = resolve(matrix, vectors[:, -TOP_K:])
    return Parts(np.sqrt(squares[::-1][:LEADING]), left, right, bottom(matrix, gram, squares, vectors))


ALTERNATIVES: dict[str, Callable[[np.ndarray], Parts]] = {
    "SVD, float64": partial(full_svd, dtype=torch.float64),
    "this package": partial(package, solver=on_cpu.spectrum if native.extension is None else on_cpu.native),
    "this package, by LAPACK": partial(package, solver=on_cpu.spectrum),
    "gram only": gram_only,
    "top: Krylov on gram, 8 steps": partial(gram_krylov, steps=8),
    "top: Krylov on gram, 16 steps": partial(gram_krylov, steps=16),
    "top: Krylov on matrix, 8 steps": partial(matrix_krylov, steps=8),
    "top: Krylov on matrix, 16 steps": partial(matrix_krylov, steps=16),
    "bottom: inverse Krylov, 8 steps": partial(inverse_krylov, steps=8),
    "bottom: inverse Krylov, 16 steps": partial(inverse_krylov, steps=16),
    "bottom: shifted, 4 + 8 steps": partial(inverse_krylov, steps=8, shifted=True),
    "bottom: shifted, 4 + 16 steps": partial(inverse_krylov, steps=16, shifted=True),
    "QR, then SVD of R": svd_of_triangle,
    "float32 eigh, float64 refinement": mixed_precision,
    "float64 eigh": full_eigh,
    "SVD, float32": partial(full_svd, dtype=torch.float32),
}


def kinds(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return matrices of different spectra."""
    base, tuned = (make_model({"weight": shape}, model)["weight"].double() for model in (None, 0))
    noise = draw(*shape, seed=1)
    left, right = orthonormal(noise), orthonormal(draw(shape[1], shape[1], seed=2))
    positions = np.arange(1, shape[1] + 1)
    return {
        "task vector": (tuned - base).numpy(),
        "flat": noise,
        "power law": left / positions @ right.T,
        "condition 1e5": left * np.geomspace(1, 1e-5, shape[1]) @ right.T,
    }


def errors(found: Parts, expected: Parts) -> dict[str, float]:
    """Return the error of every part that was found."""
    out = {}
    for part, ours, theirs in zip(Parts._fields, found, expected, strict=True):
        if ours is not None and theirs is not None:
            values = part == "values"
            off = (ours - theirs) / theirs[0] if values else ours - theirs @ (theirs.T @ ours.astype(np.float64))
            out[part] = float(np.linalg.norm(off, np.inf if values else None))
    return out


def measure(shape: tuple[int, int], rounds: int) -> Iterator[dict[str, object]]:
    """Yield a row for every kind of matrix and alternative."""
    for kind, matrix in kinds(shape).items():
        expected = full_svd(matrix, torch.float64)
        for name, alternative in ALTERNATIVES.items():
            found, samples = Parts(), []
            for _ in range(rounds):
                began = time.perf_counter()
                found = alternative(matrix)
                samples.append(time.perf_counter() - began)
            case = {"alternative": name, "matrix": kind, "shape": f"{shape[0]}x{shape[1]}"}
            yield {**case, "seconds": np.median(samples), **errors(found, expected)}


@click.command()
@click.option("--width", type=click.IntRange(min=512), default=768, show_default=True, help="Columns.")
@click.option("--rounds", default=3, show_default=True)
def main(width: int, rounds: int) -> None:
    """Print times and errors for matrices of as many rows as columns, and of four times as many; then the worst."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        frame = pd.DataFrame([row for rows in (width, 4 * width) for row in measure((rows, width), rounds)])
    worst = frame.groupby(["shape", "alternative"], sort=False)[["seconds", *Parts._fields]].max().reset_index()
    style: dict[str, Any] = {"na_rep": "", "formatters": {"seconds": "{:.4f}".format}, "float_format": "{:.0e}".format}
    for title, rows in {"All": frame, "The worst of all kinds": worst}.items():
        click.echo(f"{title}:\n{rows.to_string(index=False, **style)}\n")


if __name__ == "__main__":
    main()
