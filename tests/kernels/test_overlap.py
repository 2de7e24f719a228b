import numpy as np
import pytest

from mergekern.kernels.overlap import on_cpu, reference
from tests.tolerances import SUBSPACE_SINE


def bases(models, size, k, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([np.linalg.qr(rng.standard_normal((size, k)))[0] for _ in range(models)]).astype(np.float32)


@pytest.mark.parametrize(
    ("models", "size", "k"), [(1, 1, 1), (2, 7, 3), (5, 10, 10), (20, 63, 10), (7, 65, 1), (33, 129, 4)], ids=str
)
def test_agrees_with_oracle(models, size, k):
    some = bases(models, size, k)
    np.testing.assert_allclose(on_cpu.overlap(some), reference.overlap(some), rtol=0, atol=SUBSPACE_SINE)


def test_tiles_of_models(monkeypatch):
    some = bases(11, 40, 3)
    monkeypatch.setattr(on_cpu, "TILE_COLUMNS", 7)
    np.testing.assert_allclose(on_cpu.overlap(some), reference.overlap(some), rtol=0, atol=SUBSPACE_SINE)


def test_equal_orthogonal_and_one_shared_direction():
    identity = np.eye(6, dtype=np.float32)
    some = np.stack([identity[:, :2], identity[:, 1::-1], identity[:, 4:], identity[:, 1:3]])
    expected = [[2, 2, 0, 1], [2, 2, 0, 1], [0, 0, 2, 0], [1, 1, 0, 2]]
    np.testing.assert_allclose(on_cpu.overlap(some), expected, atol=1e-15)
