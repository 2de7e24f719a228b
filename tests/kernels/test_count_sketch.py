import numpy as np
import pytest

from mergekern.kernels.count_sketch import reference
from mergekern.kernels.count_sketch.on_cpu import CountSketch


def sketch(values, size=64, seed=0, name="w", step=None):
    values = np.atleast_2d(values)
    out = np.zeros((len(values), size))
    step = step or values.shape[1]
    for start in range(0, values.shape[1], step):
        CountSketch(size, seed, name).add(out, start, values[:, start : start + step])
    return out


@pytest.mark.parametrize("size", [64, 128, 1024])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_agrees_with_the_matrix(size, count):
    values = np.random.default_rng(0).standard_normal((3, count))
    expected = values @ reference.matrix(size, count, 7, "a.weight").T
    np.testing.assert_allclose(sketch(values, size, 7, "a.weight"), expected, rtol=0, atol=1e-13)


def test_a_chunk_fills_every_place_once():
    matrix = np.abs(reference.matrix(64, 192, 0, "w"))
    assert (matrix.sum(0) == 1).all()
    assert all((matrix[:, chunk : chunk + 64].sum(1) == 1).all() for chunk in (0, 64, 128))


@pytest.mark.parametrize("step", [1, 7, 64, 100])
def test_blocks_change_no_bit(step):
    values = np.random.default_rng(0).standard_normal((2, 300))
    assert np.array_equal(sketch(values, step=step), sketch(values))


def test_the_map_depends_on_seed_and_name():
    values = np.random.default_rng(0).standard_normal((1, 300))
    one, other_seed, other_name = sketch(values), sketch(values, seed=1), sketch(values, name="v")
    assert np.array_equal(one, sketch(values))
    assert not np.allclose(one, other_seed)
    assert not np.allclose(one, other_name)


@pytest.mark.parametrize("kind", ["noise", "few large columns", "constant"])
def test_inner_products_are_unbiased_with_the_stated_variance(kind):
    """Large columns lie at one distance from each other, a power of two, where a map without offsets would fail."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 64, 64))
    if kind == "few large columns":
        a[:, :2] *= 30
        b[:, :2] *= 30
    elif kind == "constant":
        a[:], b[:] = 1.0, 2.0
    a, b = a.ravel(), b.ravel()
    draws = np.array([(lambda s: s[0] @ s[1])(sketch(np.stack([a, b]), 256, seed)) for seed in range(300)])
    exact, bound = a @ b, np.sqrt((a @ a * (b @ b) + (a @ b) ** 2) / 256)
    assert abs(draws.mean() - exact) < 4 * bound / np.sqrt(300)
    assert draws.std() < 1.15 * bound
    assert draws.std() > 0.7 * bound
