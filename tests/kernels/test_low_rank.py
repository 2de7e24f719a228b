import numpy as np
import pytest

from mergekern.kernels import native
from mergekern.kernels.gram import wanted_pairs
from mergekern.kernels.low_rank import on_cpu, reference

needs_native = pytest.mark.skipif(native.extension is None, reason="not built")

SHAPES = [(1, 1), (1, 7), (7, 1), (6, 4), (4, 6), (40, 63), (129, 64), (300, 20)]


def draw(rank, shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rank, shape[0])), rng.standard_normal((rank, shape[1]))


def svd(left, right):
    """Return (left vectors, values, right vectors) by the kernel, into poisoned arrays."""
    p = min(len(left), left.shape[1], right.shape[1])
    u, v = np.full((p, left.shape[1]), np.nan), np.full((p, right.shape[1]), np.nan)
    return u, on_cpu.thin_svd(left.copy(), right.copy(), u, v), v


def inner(models, tile_bytes=1 << 30, split=0):
    shape = models[0][0].shape[1], models[0][1].shape[1]

    def load(model, left, right):
        u, values, v = svd(*models[model])
        left[:], right[:] = u, v
        return values

    ranks = [min(len(left), *shape) for left, _ in models]
    return on_cpu.Triplets(load, ranks, shape, tile_bytes).inner(split)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 16, 70])
def test_thin_svd_agrees_with_that_of_the_matrix(shape, rank):
    left, right = draw(rank, shape)
    u, values, v = svd(left, right)
    matrix = left.T @ right
    expected = np.linalg.svd(matrix, compute_uv=False)
    p = len(values)
    np.testing.assert_allclose(values, expected[:p], rtol=0, atol=1e-14 * rank * expected[0])
    np.testing.assert_allclose(expected[p:], 0, atol=1e-13 * expected[0])
    np.testing.assert_allclose((u.T * values) @ v, matrix, rtol=0, atol=1e-13 * expected[0])
    for vectors in (u, v):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(p), atol=1e-13)


def test_small_values_are_not_lost_in_squares():
    """A Gram matrix of the factors would give up at 1e-8."""
    left, right = draw(4, (60, 50))
    left, right = np.linalg.qr(left.T)[0].T, np.linalg.qr(right.T)[0].T
    values = np.array([1.0, 1e-5, 1e-10, 1e-14])
    np.testing.assert_allclose(svd(left * values[:, None], right)[1], values, rtol=1e-2, atol=0)
    np.testing.assert_allclose(svd(left * values[:, None], right)[1][:3], values[:3], rtol=1e-5)


def test_zero_factors():
    u, values, v = svd(np.zeros((3, 8)), draw(3, (8, 5))[1])
    assert np.array_equal(values, np.zeros(3))
    assert np.isfinite(u).all()
    assert np.isfinite(v).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile_bytes", [1 << 30, 8 * 6 * 40, 1])
def test_pairs_agree_with_oracle(shape, tile_bytes):
    models = [draw(rank, shape, seed) for seed, rank in enumerate([2, 1, 5, 3, 3])]
    expected, found = reference.inner(models), inner(models, tile_bytes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.diagonal(expected).max())
    assert np.array_equal(found, found.T)


RANKS = [2, 1, 5, 3, 3, 16, 7, 40, 12, 1, 64, 9]


@needs_native
@pytest.mark.parametrize("shape", [(6, 40), (129, 64), (300, 20), (513, 257)], ids=str)
@pytest.mark.parametrize("tile_bytes", [1 << 30, 8 * 30 * 350, 1])
def test_bits_of_a_pair_do_not_depend_on_the_others(shape, tile_bytes):
    models = [draw(rank, shape, seed) for seed, rank in enumerate(RANKS)]
    every, rng = inner(models), np.random.default_rng(0)
    for size in (1, 2, 3, 7, 12):
        some = rng.permutation(len(models))[:size]
        assert np.array_equal(inner([models[i] for i in some], tile_bytes), every[np.ix_(some, some)])


@needs_native
@pytest.mark.parametrize("tile_bytes", [1 << 30, 8 * 30 * 104, 1])
@pytest.mark.parametrize("split", [1, 3, 11, 12])
def test_a_split_gives_what_is_new(split, tile_bytes):
    models = [draw(rank, (40, 64), seed) for seed, rank in enumerate(RANKS)]
    assert np.array_equal(
        inner(models, tile_bytes, split), np.where(wanted_pairs(len(models), split), inner(models), 0.0)
    )


def test_one_more_adapter_takes_one_more_factorisation_of_each():
    loaded = []

    def load(model, left, right):
        loaded.append(model)
        left[:], right[:] = 1.0, 1.0
        return np.ones(len(left))

    on_cpu.Triplets(load, [2] * 9, (5, 6), 3 * 2 * 8 * 11).inner(split=8)
    assert sorted(loaded) == list(range(9))


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("tile_bytes", [1 << 30, 1])
def test_inner_products_with_whole_matrices(rows, tile_bytes):
    shape = (40, 63)
    models = [draw(rank, shape, seed) for seed, rank in enumerate([2, 5, 3])]
    whole = [np.random.default_rng(9 + i).standard_normal(shape) for i in range(2)]

    def load(model, left, right):
        left[:], values, right[:] = svd(*models[model])
        return values

    def blocks(matrix):
        return lambda: ((start, matrix[start : start + rows]) for start in range(0, shape[0], rows))

    found = on_cpu.Triplets(load, [2, 5, 3], shape, tile_bytes).inner_with(
        [blocks(matrix) for matrix in whole], np.ones((2, 3), bool)
    )
    expected = [[np.vdot(matrix, left.T @ right) for left, right in models] for matrix in whole]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    wanted = np.array([[True, False, False], [False, False, True]])
    some = on_cpu.Triplets(load, [2, 5, 3], shape, tile_bytes).inner_with([blocks(m) for m in whole], wanted)
    assert np.array_equal(some, np.where(wanted, found, 0.0))


@pytest.mark.parametrize(
    ("ranks", "shape"), [((3, 3), (40, 30)), ((2, 5), (40, 30)), ((9, 9), (4, 30)), ((1, 1), (1, 1))]
)
def test_squared_distance_agrees_with_oracle(ranks, shape):
    a, b = draw(ranks[0], shape), draw(ranks[1], shape, 1)
    assert on_cpu.squared_distance(a, b) == pytest.approx(reference.squared_distance(a, b), rel=1e-12)
    assert on_cpu.squared_distance(a, b) == on_cpu.squared_distance(b, a)


@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-9])
def test_squared_distance_of_nearly_equal_products(share):
    left, right = draw(8, (60, 50))
    change = draw(8, (60, 50), 1)[0]
    other = left + share * change
    # The factors' own rounding is what there is to be known: the oracle takes their exact difference.
    expected = np.square((other - left).T @ right).sum()
    assert on_cpu.squared_distance((other, right), (left, right)) == pytest.approx(expected, rel=1e-9, abs=0)
    assert on_cpu.squared_distance((left, right), (left, right)) == 0.0


def test_squared_distance_of_one_product_written_in_two_ways():
    left, right = draw(8, (60, 50))
    mixed = np.linalg.qr(draw(8, (8, 8))[0])[0]
    same = mixed @ left * 3, mixed @ right / 3
    size = np.square(left.T @ right).sum()
    assert on_cpu.squared_distance((left, right), same) <= 1e-28 * size
