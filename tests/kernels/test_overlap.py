import numpy as np
import pytest

from mergekern.kernels import native
from mergekern.kernels.overlap import on_cpu, reference
from tests.support.tolerances import SUBSPACE_SINE

needs_native = pytest.mark.skipif(native.extension is None, reason="not built")
both = pytest.mark.parametrize(
    "overlap", [pytest.param(on_cpu.native, id="native", marks=needs_native), pytest.param(on_cpu.numpy, id="numpy")]
)


def bases(models, size, k, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([np.linalg.qr(rng.standard_normal((size, k)))[0] for _ in range(models)]).astype(np.float32)


@both
@pytest.mark.parametrize(
    ("models", "size", "k"),
    [(1, 1, 1), (2, 7, 3), (5, 10, 10), (20, 63, 10), (7, 65, 1), (33, 129, 4), (61, 300, 10), (3, 600, 150)],
    ids=str,
)
def test_agrees_with_oracle(overlap, models, size, k):
    some = bases(models, size, k)
    found = overlap(some)
    np.testing.assert_allclose(found, reference.overlap(some), rtol=0, atol=SUBSPACE_SINE)
    assert np.array_equal(found, found.T)


@both
@pytest.mark.parametrize(("models", "size", "k"), [(11, 40, 3), (61, 70, 10)], ids=str)
def test_two_sets_of_models(overlap, monkeypatch, models, size, k):
    some = bases(models, size, k)
    monkeypatch.setattr(on_cpu, "TILE_VECTORS", 7 * k)
    expected = reference.overlap(some)
    np.testing.assert_allclose(overlap(some), expected, rtol=0, atol=SUBSPACE_SINE)
    for part in (slice(2, 7), slice(0, models), slice(5, 6)):
        np.testing.assert_allclose(overlap(some, some[part]), expected[:, part], rtol=0, atol=SUBSPACE_SINE)
        np.testing.assert_allclose(overlap(some[part], some), expected[part], rtol=0, atol=SUBSPACE_SINE)


@both
def test_the_same_bases_on_both_sides(overlap):
    some = bases(6, 20, 3)
    overlap(bases(6, 20, 3, seed=1))  # leaves other values in memory that the next result may be given
    np.testing.assert_allclose(overlap(some, some), reference.overlap(some), rtol=0, atol=SUBSPACE_SINE)


@both
def test_equal_orthogonal_and_one_shared_direction(overlap):
    identity = np.eye(6, dtype=np.float32)
    some = np.stack([identity[:, :2], identity[:, 1::-1], identity[:, 4:], identity[:, 1:3]])
    expected = [[2, 2, 0, 1], [2, 2, 0, 1], [0, 0, 2, 0], [1, 1, 0, 2]]
    np.testing.assert_allclose(overlap(some), expected, atol=1e-15)


@needs_native
@pytest.mark.parametrize(("models", "size", "k"), [(2, 7, 3), (40, 300, 10), (61, 63, 7), (23, 1025, 9)], ids=str)
def test_native_bits_of_a_pair_do_not_depend_on_the_others(models, size, k):
    every = bases(models, size, k)
    expected = on_cpu.native(every)
    rng = np.random.default_rng(0)
    for count in {1, 2, models // 3, models}:
        some, others = (rng.permutation(models)[: max(1, count)] for _ in range(2))
        assert np.array_equal(on_cpu.native(every[some]), expected[np.ix_(some, some)])
        assert np.array_equal(on_cpu.native(every[some], every[others]), expected[np.ix_(some, others)])
