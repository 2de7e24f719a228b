import numpy as np
import pytest
import torch

from mergekern.kernels.spectrum import on_cpu, reference
from tests.kernels.test_tridiagonal import IMPLEMENTATIONS
from tests.support.tolerances import SUBSPACE_SINE

SHAPES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 2),
    (6, 48),
    (48, 6),
    (40, 96),
    (96, 40),
    (63, 65),
    (64, 64),
    (257, 129),
    (129, 513),
    (2500, 60),
    (60, 2500),
]
SPECTRA = {
    "linear": lambda r: np.linspace(1, 0.1, r),
    "nearly flat": lambda r: np.linspace(1.05, 1, r),
    "condition 1e4": lambda r: np.geomspace(1, 1e-4, r),
    "condition 1e5": lambda r: np.geomspace(1, 1e-5, r),
    "power law": lambda r: 1 / np.arange(1, r + 1),
    "clusters": lambda r: np.repeat(np.geomspace(1, 1e-3, -(-r // 5)), 5)[:r] * np.linspace(1.02, 1, r),
    "tiny": lambda r: 1e-9 * np.linspace(1, 0.1, r),
}


def with_values(shape, values, seed=0):
    """Return a float64 matrix with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((shape[0], len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], len(values))))[0]
    return torch.from_numpy((left * values) @ right.T)


def blocks_of(tuned, base):
    def blocks(axis, step):
        for start in range(0, tuned.shape[axis], step):
            length = min(step, tuned.shape[axis] - start)
            yield start, base.narrow(axis, start, length), tuned.narrow(axis, start, length)

    return blocks


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda implementation: implementation.__name__)
def run(request):
    def run(tuned, base=None, top_k=10, spectrum_k=100):
        base = torch.zeros_like(tuned) if base is None else base
        return on_cpu.spectrum(blocks_of(tuned, base), tuple(tuned.shape), top_k, spectrum_k, request.param)

    return run


def sine(found, expected):
    """Return how far a computed subspace is from the true one, 0 to √k."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected @ (expected.T @ found))


def assert_spectrum(found, expected, top=True, bottom=True):
    # σ² is held to ε·σ₁² times a small number: a zero shows as up to 1e-7·σ₁, the rank's threshold.
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=5e-8 * expected.values[0])
    assert found.rank == expected.rank
    for name in ("left_top", "right_top", "right_bottom"):
        vectors = getattr(found, name)
        assert vectors.shape == getattr(expected, name).shape
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=2e-6)
        if bottom if name == "right_bottom" else top:
            assert sine(vectors, getattr(expected, name)) <= SUBSPACE_SINE, name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_agrees_with_oracle(run, shape, spectrum):
    matrix = with_values(shape, SPECTRA[spectrum](min(shape)))
    assert_spectrum(run(matrix), reference.spectrum(None, matrix))


@pytest.mark.parametrize("shape", [(768, 768), (1200, 300), (300, 1200)], ids=str)
def test_noise_with_a_soft_edge(run, shape):
    matrix = torch.from_numpy(np.random.default_rng(3).standard_normal(shape))
    assert_spectrum(run(matrix), reference.spectrum(None, matrix))


def test_the_bottom_beyond_what_a_gram_matrix_resolves(run, monkeypatch):
    matrix = with_values((300, 200), np.geomspace(1, 1e-6, 200))
    expected = reference.spectrum(None, matrix)
    assert_spectrum(run(matrix), expected)
    monkeypatch.setattr(on_cpu, "ACCURATE", np.inf)
    assert sine(run(matrix).right_bottom, expected.right_bottom) > SUBSPACE_SINE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", [(96, 40), (40, 96)], ids=str)
def test_storage_dtypes(run, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    base, tuned = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    assert_spectrum(run(tuned, base), reference.spectrum(base, tuned))


@pytest.mark.parametrize(("shape", "rank"), [((60, 40), 4), ((40, 60), 4), ((60, 40), 25), ((50, 50), 49)], ids=str)
def test_rank_deficient(run, shape, rank):
    matrix = with_values(shape, np.linspace(1, 0.5, rank))
    expected = reference.spectrum(None, matrix)
    assert expected.rank == rank
    assert_spectrum(run(matrix), expected, top=rank >= 10, bottom=False)


def test_rank_counts_values_above_1e_7(run):
    values = np.array([1.0, 0.5, 2e-7, 5e-8])
    assert run(with_values((9, 4), values)).rank == 3


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (30, 30)], ids=str)
def test_zero_matrix_has_identity_vectors(run, shape):
    zero = torch.zeros(shape)
    found, expected = run(zero, top_k=2), reference.spectrum(None, zero, top_k=2)
    assert found.rank == 0
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(found.right_bottom.T @ np.eye(shape[1])[:, min(shape) - 2 : min(shape)], np.eye(2))


@pytest.mark.parametrize("shape", [(50, 30), (30, 50)], ids=str)
def test_rows_and_columns_of_zeros(run, shape):
    """Unused embeddings split the tridiagonal form."""
    matrix = with_values(shape, np.linspace(1, 0.1, 30))
    matrix[::3] = 0
    matrix[:, 1::4] = 0
    expected = reference.spectrum(None, matrix)
    assert_spectrum(run(matrix), expected, top=expected.rank >= 10, bottom=False)


def test_block_diagonal_with_repeated_values(run):
    matrix = torch.diag(torch.arange(30, 0, -1).double().repeat_interleave(2))
    assert_spectrum(run(matrix), reference.spectrum(None, matrix))


@pytest.mark.parametrize("shape", [(200, 40), (40, 200)], ids=str)
@pytest.mark.parametrize("spectrum", ["linear", "condition 1e5"])
def test_blocks_give_the_same_as_the_whole(run, shape, spectrum, monkeypatch):
    matrix = with_values(shape, SPECTRA[spectrum](40))
    monkeypatch.setattr(on_cpu, "BLOCK", 700)
    assert_spectrum(run(matrix), reference.spectrum(None, matrix))


@pytest.mark.parametrize(("top_k", "spectrum_k"), [(1, 1), (3, 1000), (40, 7), (100, 100)])
def test_sizes_asked_for(run, top_k, spectrum_k):
    matrix = with_values((90, 40), np.linspace(1, 0.1, 40))
    assert_spectrum(run(matrix, None, top_k, spectrum_k), reference.spectrum(None, matrix, top_k, spectrum_k))


def test_large_entries_do_not_hide_small_differences(run):
    """τ is the exact difference of stored values, here a millionth of their size."""
    base = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    tuned = base * (1 + 1e-6 * torch.randn(64, 32, generator=torch.Generator().manual_seed(1)))
    assert_spectrum(run(tuned, base), reference.spectrum(base, tuned))
