"""`polar`, `truncation` and the eigensolver under them, against SVDs in float64."""

import numpy as np
import pytest

from mergekern.kernels import eigen
from mergekern.kernels.polar import on_cpu, reference
from mergekern.kernels.truncation import on_cpu as truncation
from mergekern.kernels.truncation import reference as truncation_reference

SHAPES = [(1, 1), (1, 5), (7, 1), (7, 7), (63, 40), (40, 64), (129, 129), (200, 70)]


def draw(shape, values=None, seed=0):
    """Return a matrix with given singular values, or of noise."""
    matrix = np.random.default_rng(seed).standard_normal(shape)
    if values is None:
        return matrix
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return (left * np.asarray(values)) @ right


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_noise(shape, scale):
    matrix = scale * draw(shape)
    factor, values = on_cpu.polar(matrix)
    expected, expected_values = reference.polar(matrix)
    np.testing.assert_allclose(factor, expected, atol=1e-8)
    np.testing.assert_allclose(values, expected_values, rtol=1e-8, atol=1e-8 * scale)
    assert np.sum(factor * matrix) == pytest.approx(values.sum())


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e5, 3e5, 1e6])
@pytest.mark.parametrize("shape", [(60, 60), (100, 60), (60, 100)], ids=str)
def test_wide_conditions(shape, condition):
    matrix = draw(shape, np.geomspace(1, 1 / condition, 60))
    np.testing.assert_allclose(on_cpu.polar(matrix)[0], reference.polar(matrix)[0], atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 5, 59])
@pytest.mark.parametrize("shape", [(60, 60), (100, 60), (60, 100)], ids=str)
def test_rank_deficient_matrices_give_partial_isometries(shape, rank):
    matrix = draw(shape, np.append(np.geomspace(2, 1, rank), np.zeros(60 - rank)))
    factor, values = on_cpu.polar(matrix)
    np.testing.assert_allclose(factor, reference.polar(matrix)[0] if rank else 0 * matrix, atol=1e-8)
    np.testing.assert_allclose(np.linalg.svd(factor)[1], np.append(np.ones(rank), np.zeros(60 - rank)), atol=1e-8)
    assert values.sum() == pytest.approx(np.geomspace(2, 1, rank).sum())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_truncation(shape):
    matrix = draw(shape)
    for k in sorted({1, min(shape) // 2 or 1, min(shape)}):
        found, expected = truncation.leading(matrix, k), truncation_reference.leading(matrix, k)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
        np.testing.assert_allclose(found.matrix(), expected.matrix(), atol=1e-7)
        np.testing.assert_allclose(found.left.T @ found.left, np.eye(k), atol=1e-7)
        np.testing.assert_allclose(found.right.T @ found.right, np.eye(k), atol=1e-7)


def test_truncation_leaves_null_spaces_out():
    assert truncation.leading(draw((50, 30), [3.0, 2.0, 1.0, *[0.0] * 27]), 20).values.round(9).tolist() == [3, 2, 1]
    assert len(truncation.leading(np.zeros((50, 30)), 20).values) == 0


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
