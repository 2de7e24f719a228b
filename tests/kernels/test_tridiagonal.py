import numpy as np
import pytest

from mergekern.kernels import native, tridiagonal

IMPLEMENTATIONS = [tridiagonal.LapackTridiagonal] + [tridiagonal.NativeTridiagonal] * (native.extension is not None)
# Around multiples of the band (24) and of the registers.
SIZES = [1, 2, 3, 8, 23, 24, 25, 26, 47, 48, 49, 50, 72, 73, 100, 200]


def reduced(implementation, matrix):
    """Return the tridiagonal form of a symmetric matrix, given its upper triangle only."""
    n = len(matrix)
    storage = implementation.zeros(n)
    storage[:n, :n] = np.triu(matrix)
    return implementation(storage, n)


def assert_decomposes(implementation, matrix, tolerance=1e-14):
    n, norm = len(matrix), np.abs(matrix).max() * len(matrix)
    form = reduced(implementation, matrix)
    expected = np.linalg.eigvalsh(matrix)
    values = form.values(np.arange(n))
    np.testing.assert_allclose(values, expected, atol=tolerance * norm, rtol=0)
    positions = np.union1d(np.arange(min(n, 10)), np.arange(max(0, n - 10), n))
    vectors = form.vectors(values[positions])
    np.testing.assert_allclose(vectors @ matrix, values[positions, None] * vectors, atol=1e-12 * norm, rtol=0)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(positions)), atol=1e-10)
    return form


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", SIZES)
def test_random(implementation, n):
    matrix = np.random.default_rng(n).standard_normal((n, n))
    assert_decomposes(implementation, matrix + matrix.T)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e100, 1e300])
def test_far_from_one(implementation, scale):
    rows = np.random.default_rng(0).standard_normal((60, 50))
    assert_decomposes(implementation, (rows.T @ rows / 400) * scale)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "matrix",
    {
        "identity": np.eye(60),
        "diagonal": np.diag(np.repeat([3.0, 2.0, 1.0, 0.0], 15)),
        "rank one": np.ones((60, 60)),
        "already tridiagonal": np.diag(np.arange(60.0)) + np.diag(np.ones(59), 1) + np.diag(np.ones(59), -1),
        "blocks": np.kron(np.eye(3), np.add.outer(np.arange(20.0), np.arange(20.0))),
        "rows of zeros": np.multiply.outer(*[np.tile([1.0, 0.0, 2.0], 20)] * 2),
    }.items(),
    ids=lambda item: item[0],
)
def test_structured(implementation, matrix):
    assert_decomposes(implementation, matrix[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_at_positions_and_counts(implementation):
    form = reduced(implementation, np.diag([5.0, 1.0, 3.0, 3.0, -2.0] * 8))
    np.testing.assert_allclose(form.values(np.array([0, 8, 16, 31, 39])), [-2, 1, 3, 3, 5], atol=1e-14)
    assert [form.count_above(bound) for bound in (-3, 0, 2, 4, 6)] == [40, 32, 24, 8, 0]


@pytest.mark.skipif(native.extension is None, reason="the extension was not built")
def test_the_extension_checks_its_arrays():
    extension = native.extension
    matrix, enough = np.zeros((extension.padded_size(30), extension.padded_stride(30))), np.zeros(10**5)
    with pytest.raises(ValueError, match="reflectors is too small"):
        extension.tridiagonalise(matrix, 30, np.zeros(3), enough)
    with pytest.raises(ValueError, match="scratch is too small"):
        extension.tridiagonalise(matrix, 30, enough, np.zeros(3))
    with pytest.raises(ValueError, match="matrix is too small"):
        extension.tridiagonalise(np.zeros((30, 30)), 30, enough, enough)
    with pytest.raises(ValueError, match="n − 1"):
        extension.tridiagonal_values(np.zeros(3), np.zeros(3), np.arange(2))
    with pytest.raises(ValueError, match="out of range"):
        extension.tridiagonal_values(np.zeros(3), np.zeros(2), np.array([3]))
    with pytest.raises(TypeError):
        extension.tridiagonalise(matrix.astype(np.float32), 30, enough, enough)
