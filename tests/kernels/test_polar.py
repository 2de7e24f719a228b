"""`polar`, `truncation` and the eigensolver under them, against SVDs in float64."""

import numpy as np
import pytest
import torch

from mergekern.kernels import eigen
from mergekern.kernels.polar import on_cpu, on_torch, reference
from mergekern.kernels.truncation import on_cpu as truncation
from mergekern.kernels.truncation import on_torch as truncation_on_torch
from mergekern.kernels.truncation import reference as truncation_reference

SHAPES = [(1, 1), (1, 5), (7, 1), (7, 7), (63, 40), (40, 64), (129, 129), (200, 70)]


def polar_on_torch(matrix):
    return on_torch.polar(torch.from_numpy(matrix)).numpy()


def product_on_torch(left, weights, right):
    return on_torch.polar_product(*([torch.from_numpy(b) for b in blocks] for blocks in (left, weights, right))).numpy()


def leading_on_torch(matrix, k):
    return truncation_reference.Triplets(*(t.numpy() for t in truncation_on_torch.leading(torch.from_numpy(matrix), k)))


POLAR = [pytest.param(on_cpu.polar, id="cpu"), pytest.param(polar_on_torch, id="torch")]
TRUNCATION = [pytest.param(truncation.leading, id="cpu"), pytest.param(leading_on_torch, id="torch")]


def draw(shape, values=None, seed=0):
    """Return a matrix with given singular values, or of noise."""
    matrix = np.random.default_rng(seed).standard_normal(shape)
    if values is None:
        return matrix
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return (left * np.asarray(values)) @ right


@pytest.mark.parametrize("polar", POLAR)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_noise(polar, shape, scale):
    matrix = scale * draw(shape)
    factor = polar(matrix)
    np.testing.assert_allclose(factor, reference.polar(matrix), atol=1e-8)
    assert np.sum(factor * matrix) == pytest.approx(np.linalg.svd(matrix)[1].sum())


@pytest.mark.parametrize("polar", POLAR)
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e5, 3e5, 1e6, 9e6])
@pytest.mark.parametrize("shape", [(60, 60), (100, 60), (60, 100)], ids=str)
def test_wide_conditions(polar, shape, condition):
    matrix = draw(shape, np.geomspace(1, 1 / condition, 60))
    np.testing.assert_allclose(polar(matrix), reference.polar(matrix), atol=1e-8)


@pytest.mark.parametrize("polar", POLAR)
def test_of_the_sum_of_truncated_noise(polar):
    """The sum of two half-rank matrices has singular values of every size, down to the tolerance."""
    halves = [truncation_reference.leading(draw((192, 192), seed=seed), 96).matrix() for seed in range(2)]
    np.testing.assert_allclose(polar(sum(halves)), reference.polar(sum(halves)), atol=1e-8)


@pytest.mark.parametrize("polar", POLAR)
@pytest.mark.parametrize("small", [0.0, 1e-12, 5e-10])
@pytest.mark.parametrize("rank", [0, 1, 5, 59])
@pytest.mark.parametrize("shape", [(60, 60), (100, 60), (60, 100)], ids=str)
def test_rank_deficient_matrices_give_partial_isometries(polar, shape, rank, small):
    matrix = draw(shape, np.append(np.geomspace(2, 1, rank), np.full(60 - rank, small if rank else 0.0)))
    factor = polar(matrix)
    np.testing.assert_allclose(factor, reference.polar(matrix), atol=1e-8)
    np.testing.assert_allclose(np.linalg.svd(factor)[1], np.append(np.ones(rank), np.zeros(60 - rank)), atol=1e-8)


def orthonormal(rows, columns, seed, shared=None):
    """Return orthonormal columns whose span includes the shared ones."""
    free = draw((rows, columns), seed=seed)
    if shared is not None:
        free[:, -shared.shape[1] :] = shared
    return np.linalg.qr(free)[0]


# Rows, and columns of each block; a few directions of the first that the second holds too, or nearly.
BLOCKS = [(40, (20, 20)), (40, (5, 7)), (40, (7, 5)), (9, (3, 3, 3)), (40, (4,)), (3, (1, 1, 1, 1)), (1, (1, 1))]


@pytest.mark.parametrize("product", [on_cpu.polar_product, product_on_torch], ids=["cpu", "torch"])
@pytest.mark.parametrize("nearly", [None, 0.0, 1e-10, 3e-6, 1e-3])
@pytest.mark.parametrize(("rows", "sizes"), BLOCKS, ids=str)
def test_product(product, rows, sizes, nearly):
    left, right = [], []
    for blocks, height, seed in ((left, rows, 0), (right, rows + 5, 10)):
        for index, size in enumerate(sizes):
            shared = None
            if nearly is not None and index == 1:
                shared = blocks[0][:, :2] + nearly * draw(blocks[0][:, :2].shape, seed=seed + 5)
            blocks.append(orthonormal(height, size, seed + index, shared if shared is None else shared[:, :size]))
    weights = [np.linspace(1, 2, size) for size in sizes]
    expected = reference.polar_product(left, weights, right)
    np.testing.assert_allclose(product(left, weights, right), expected, atol=1e-7)


def two_blocks(sines, rounding=0.0, shape=(120, 40)):
    """Return two blocks of orthonormal columns at angles of which some are given; the first only nearly orthonormal."""
    (rows, k), rng = shape, np.random.default_rng(0)
    both = orthonormal(rows, 2 * k, seed=1)
    sines = np.append(sines, np.sort(rng.random(k - len(sines))))
    first, second = both[:, :k], both[:, :k] * np.sqrt(1 - sines**2) + both[:, k:] * sines
    first, second = (block @ orthonormal(k, k, seed) for seed, block in enumerate((first, second)))
    return first + rounding * rng.standard_normal(first.shape), np.linalg.qr(second)[0]


@pytest.mark.parametrize("rounding", [0.0, 1e-13])
@pytest.mark.parametrize("sines", [[1e-4], [2e-5, 5e-5], [1e-8, 1e-5], [0.0, 1e-5], [3e-7], [1e-6, 1e-3]], ids=str)
def test_root_of_two_blocks_at_small_angles(sines, rounding):
    blocks = two_blocks(sines, rounding)
    stack = np.hstack(blocks)
    np.testing.assert_allclose(stack @ on_cpu.inverse_root_of_blocks(blocks), reference.polar(stack), atol=1e-8)


def test_small_angles_take_half_the_size_unless_rounding_would_show(monkeypatch):
    fine, coarse = two_blocks([2e-5]), two_blocks([2e-5], rounding=1e-12)
    monkeypatch.setattr(on_cpu, "inverse_root", lambda columns: "all columns")
    assert on_cpu.inverse_root_of_blocks(fine).shape == (80, 80)
    assert on_cpu.inverse_root_of_blocks(coarse) == "all columns"


def test_product_of_nothing():
    blocks = [np.zeros((4, 0)), np.zeros((4, 0))]
    assert not on_cpu.polar_product(blocks, [np.zeros(0)] * 2, blocks).any()
    assert not product_on_torch(blocks, [np.zeros(0)] * 2, blocks).any()


def test_batches_on_torch():
    matrices = np.stack([draw((30, 20), seed=seed) for seed in range(3)] + [np.zeros((30, 20))])
    found = on_torch.polar(torch.from_numpy(matrices))
    for matrix, factor in zip(matrices, found, strict=True):
        np.testing.assert_allclose(factor, reference.polar(matrix), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("leading", TRUNCATION)
def test_truncation(leading, shape):
    matrix = draw(shape)
    for k in sorted({1, min(shape) // 2 or 1, min(shape)}):
        found, expected = leading(matrix, k), truncation_reference.leading(matrix, k)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
        np.testing.assert_allclose(found.matrix(), expected.matrix(), atol=1e-7)
        np.testing.assert_allclose(found.left.T @ found.left, np.eye(k), atol=1e-7)
        np.testing.assert_allclose(found.right.T @ found.right, np.eye(k), atol=1e-7)


@pytest.mark.parametrize("leading", TRUNCATION)
def test_truncation_leaves_null_spaces_out(leading):
    assert leading(draw((50, 30), [3.0, 2.0, 1.0, *[0.0] * 27]), 20).values.round(9).tolist() == [3, 2, 1]
    assert len(leading(np.zeros((50, 30)), 20).values) == 0


@pytest.mark.parametrize("leading", TRUNCATION)
@pytest.mark.parametrize("shape", [(50, 30), (30, 50)], ids=str)
def test_truncation_of_what_a_gram_matrix_does_not_resolve(leading, shape):
    spectrum = np.geomspace(1, 3e-7, 30)
    matrix = draw(shape, spectrum)
    for k in (5, 20, 30):
        found = leading(matrix, k)
        np.testing.assert_allclose(found.values, spectrum[:k], rtol=1e-6)
        np.testing.assert_allclose(found.left.T @ found.left, np.eye(k), atol=1e-7)
        np.testing.assert_allclose(found.right.T @ found.right, np.eye(k), atol=1e-7)
        projected = truncation_reference.leading(matrix, k).right
        np.testing.assert_allclose(found.right @ found.right.T, projected @ projected.T, atol=1e-6)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("size", [1, 2, 47, 48, 65, 130])
def test_eigen(size, native, monkeypatch):
    if not native:
        monkeypatch.setattr(eigen, "extension", None)
    matrix = draw((size, size + 3))
    gram = matrix @ matrix.T
    for count in {1, size // 2 or 1, size}:
        values, vectors = eigen.leading_eigen(gram, count)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(gram)[::-1][:count], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(count), atol=1e-11)
        np.testing.assert_allclose(gram @ vectors.T, vectors.T * values, atol=1e-10 * values[0])


def test_eigen_of_clusters():
    for gram in (np.eye(64), np.diag(np.repeat([1.0, 2.0], 32)), np.zeros((64, 64))):
        values, vectors = eigen.leading_eigen(gram)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(64), atol=1e-11)
        np.testing.assert_allclose(gram @ vectors.T, vectors.T * values, atol=1e-11)
