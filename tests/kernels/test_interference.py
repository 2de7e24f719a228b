"""`interference` against its oracle, the definition of arXiv 2412.00081 with stacked bases."""

import numpy as np
import pytest
import torch

from mergekern.kernels import native
from mergekern.kernels.interference import Triplets, on_cpu, on_torch, reference
from tests.support.device import DEVICE


def by_torch(some):
    return on_torch.interference(*(torch.from_numpy(side).to(DEVICE) for side in some)).cpu().numpy()


needs_native = pytest.mark.skipif(native.extension is None, reason="not built")
both = pytest.mark.parametrize(
    "interference",
    [pytest.param(on_cpu.native, id="native", marks=needs_native), pytest.param(on_cpu.numpy, id="numpy")],
)
# Of bases whose columns are orthonormal to float32, relative to Σσ.
NEAR = 1e-5
# (models, shape of the matrix, number of triplets).
SIZES = [(1, (1, 1), 1), (2, (7, 3), 2), (3, (10, 10), 10), (20, (65, 300), 10), (4, (33, 47), 5), (2, (300, 200), 140)]


def triplets(models, shape, k, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (
        np.stack([np.linalg.qr(rng.standard_normal((size, k)))[0] for _ in range(models)]).astype(np.float32)
        for size in shape
    )
    return Triplets(np.sort(rng.random((models, k)))[:, ::-1].copy(), left, right)


def part(some, models):
    return Triplets(*(side[models] for side in some))


def test_pairs_of_a_few_models_at_a_time_have_the_values_of_all_together(monkeypatch):
    some = triplets(5, (21, 14), 3)
    expected = by_torch(some)
    monkeypatch.setattr(on_torch, "TILE_VECTORS", 7)
    np.testing.assert_allclose(by_torch(some), expected, rtol=1e-14)


@pytest.mark.parametrize("interference", [*both.args[1], pytest.param(by_torch, id="torch", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("models", "shape", "k"), SIZES, ids=str)
def test_agrees_with_oracle(interference, models, shape, k):
    some = triplets(models, shape, k)
    found = interference(some)
    np.testing.assert_allclose(found, reference.interference(some), rtol=0, atol=NEAR * k)
    np.testing.assert_allclose(np.diagonal(found), 2 * some.values.sum(axis=1), rtol=0, atol=NEAR * k * k)
    np.testing.assert_array_equal(found, found.T)


@both
def test_two_sets_of_models_and_signs_of_vectors(interference):
    some = triplets(6, (21, 14), 3)
    whole = interference(some)
    np.testing.assert_allclose(interference(part(some, [0, 1]), part(some, [2, 3, 4, 5])), whole[:2, 2:], rtol=1e-14)
    turned = np.where(np.random.default_rng(1).random((6, 1, 3)) < 0.5, -1, 1).astype(np.float32)
    np.testing.assert_allclose(
        interference(Triplets(some.values, some.left * turned, some.right * turned)), whole, rtol=1e-14
    )


@both
def test_orthogonal_directions_do_not_interfere(interference):
    vectors = np.eye(8, dtype=np.float32)
    same, other = vectors[:, :3], vectors[:, 3:6]
    values = np.ones((2, 3))
    assert interference(Triplets(values, np.stack([same, other]), np.stack([same, same])))[0, 1] == 0.0
    assert interference(Triplets(values, np.stack([same, same]), np.stack([same, same])))[0, 1] == 6.0


@needs_native
def test_a_pair_depends_on_itself_alone():
    some = triplets(9, (130, 70), 10)
    found = on_cpu.native(some)
    order = [8, 2, 5]
    np.testing.assert_array_equal(on_cpu.native(part(some, order)), found[np.ix_(order, order)])
    np.testing.assert_array_equal(on_cpu.native(part(some, [1, 7]), part(some, [3])), found[np.ix_([1, 7], [3])])
