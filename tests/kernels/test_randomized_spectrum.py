"""The randomised factorisation against the float64 oracle: its estimates hold, on spectra of many kinds."""

import numpy as np
import pytest
import torch

from mergekern.kernels.lapack import single_threaded_pool
from mergekern.kernels.randomized_spectrum import on_cpu, reference
from mergekern.kernels.randomized_spectrum.start import Start
from mergekern.kernels.spectrum import RANK_TOLERANCE
from mergekern.kernels.spectrum import reference as direct
from tests.kernels.test_spectrum import blocks_of, with_values

K, LEADING = 10, 100
SQUARE, WIDE, TALL = (560, 560), (530, 900), (900, 530)


@pytest.fixture(autouse=True)
def iterated(monkeypatch):
    """Iterate on matrices that are small enough for a full SVD."""
    monkeypatch.setattr(on_cpu, "DIRECT", 512)


def noise(rows, columns):
    values = np.linalg.svd(np.random.default_rng(5).standard_normal((rows, columns)), compute_uv=False)
    return values / values[0]


def beside(leading, rest):
    return lambda r: np.concatenate([leading, rest(r - len(leading))])


SPECTRA = {
    "flat noise": lambda r: noise(r, 2 * r),
    "square noise": lambda r: noise(r, r),
    "power -1/4": lambda r: np.arange(1, r + 1) ** -0.25,
    "power -1/2": lambda r: np.arange(1, r + 1) ** -0.5,
    "power -1": lambda r: 1 / np.arange(1, r + 1),
    "power -2": lambda r: 1 / np.arange(1, r + 1) ** 2,
    "steep": lambda r: 0.5 ** np.arange(r),
    "exponential": lambda r: 0.97 ** np.arange(r),
    "slow exponential": lambda r: 0.998 ** np.arange(r),
    "linear": lambda r: np.linspace(1, 0.1, r),
    "8 above noise": beside(np.linspace(10, 5, 8), lambda r: noise(r, 2 * r)),
    "20 above noise": beside(np.linspace(10, 5, 20), lambda r: noise(r, 2 * r)),
    "12 just above noise": beside(np.linspace(1.4, 1.1, 12), lambda r: noise(r, 2 * r)),
    "step at 10": lambda r: np.repeat([1, 0.3], [K, r - K]),
    "step at 200": lambda r: np.repeat([1, 0.2], [200, r - 200]),
    "200 nearly equal": lambda r: np.repeat([1, 0.7], [200, r - 200]) * np.linspace(1 + 1e-4, 1, r),
    "80 nearly equal": lambda r: np.repeat([1, 0.7, 0.5], [80, 30, r - 110]) * np.linspace(1 + 1e-4, 1, r),
    "34 equal": lambda r: np.repeat([1, 0.6], [34, r - 34]) * np.linspace(1 + 1e-3, 1, r),
    "steps": lambda r: np.repeat([1, 0.5, 0.1, 0.01], [50, 100, 200, r - 350]),
    "equal": np.ones,
    "pairs": lambda r: np.repeat(np.geomspace(1, 1e-2, -(-r // 2)), 2)[:r],
    "small gap": beside(np.linspace(1.1, 1.001, K), lambda r: np.linspace(1, 0.2, r)),
    "rank 300": lambda r: np.r_[np.linspace(1, 0.3, 300), np.zeros(r - 300)],
    "rank 40": lambda r: np.r_[np.linspace(1, 0.3, 40), np.zeros(r - 40)],
    "rank 4": lambda r: np.r_[np.linspace(1, 0.3, 4), np.zeros(r - 4)],
    "tiny": lambda r: 1e-30 / np.arange(1, r + 1),
    "huge": lambda r: 1e30 / np.arange(1, r + 1),
}


def factorise(tuned, base=None, name="w", tolerance=1e-3, sizes=(K, LEADING), blocks=None):
    base = torch.zeros_like(tuned) if base is None else base
    with single_threaded_pool(1) as pool:
        blocks = blocks or blocks_of(tuned, base)
        return pool.submit(on_cpu.spectrum, blocks, tuple(tuned.shape), name, *sizes, tolerance).result()


def assert_honest(found, base, tuned):
    """Assert that no error is more than twice its estimate, and return the errors."""
    errors = reference.errors(base, tuned, found)
    assert not found.right_bottom.shape[1]
    assert (np.diff(found.values) <= 0).all()
    assert (errors.values <= 2 * found.estimates.values).all()
    if found.rank >= found.left_top.shape[1]:
        assert (errors.vectors <= 2 * found.estimates.vectors).all()
    for side in (found.left_top, found.right_top):
        assert np.abs(side.T.astype(np.float64) @ side - np.eye(side.shape[1])).max() < 1e-6
    return errors


@pytest.mark.parametrize(
    ("kind", "shape"), [(kind, [SQUARE, WIDE, TALL][number % 3]) for number, kind in enumerate(SPECTRA)]
)
def test_no_error_is_more_than_twice_its_estimate(kind, shape):
    tuned = with_values(shape, SPECTRA[kind](min(shape))).float()
    found = factorise(tuned)
    assert_honest(found, torch.zeros_like(tuned), tuned)
    assert (found.estimates.values >= 0).all()
    assert (found.estimates.vectors <= 1).all()


@pytest.mark.parametrize("kind", ["power -1", "20 above noise", "exponential", "flat noise"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_differences_of_stored_values(kind, dtype):
    """The base is a hundred times as large as the task matrix; in narrow dtypes most of that is rounding."""
    base = torch.randn(WIDE, generator=torch.Generator().manual_seed(3)).to(dtype)
    tuned = (base.double() + 5 * with_values(WIDE, SPECTRA[kind](WIDE[0]))).to(dtype)
    assert_honest(factorise(tuned, base), base, tuned)


@pytest.mark.parametrize("kind", ["power -1/2", "power -1", "power -2", "exponential", "20 above noise", "steep"])
def test_directions_that_are_determined_are_found(kind):
    tuned = with_values(TALL, SPECTRA[kind](TALL[1])).float()
    errors = assert_honest(factorise(tuned), torch.zeros_like(tuned), tuned)
    assert errors.vectors.max() < 1e-4


@pytest.mark.parametrize("kind", ["equal", "step at 200"])
def test_directions_that_are_not_determined_are_said_to_be(kind):
    tuned = with_values(SQUARE, SPECTRA[kind](SQUARE[0])).float()
    assert (factorise(tuned).estimates.vectors > 0.5).any()


def test_flat_noise_needs_more_than_there_is():
    tuned = torch.randn(800, 2000, generator=torch.Generator().manual_seed(0))
    found = factorise(tuned)
    assert found.estimates.vectors.mean() > 0.05
    assert_honest(found, torch.zeros_like(tuned), tuned)


@pytest.mark.parametrize("kind", ["flat noise", "12 just above noise", "step at 200"])
def test_values_that_no_subspace_resolves_are_counted(kind):
    """Ritz values of so few vectors are a tenth off at the edge of noise."""
    tuned = with_values(SQUARE, SPECTRA[kind](SQUARE[0])).float()
    errors = assert_honest(factorise(tuned), torch.zeros_like(tuned), tuned)
    assert np.linalg.norm(errors.values) < 0.01 * torch.linalg.svdvals(tuned)[:LEADING].norm()


@pytest.mark.parametrize("rank", [0, 1, 4, 9, 10, 40])
def test_rank(rank):
    tuned = with_values(WIDE, np.r_[np.linspace(1, 0.3, rank), np.zeros(WIDE[0] - rank)])
    found = factorise(tuned)
    assert found.rank == rank
    assert (found.values[:rank] > RANK_TOLERANCE).all()


def test_a_zero_matrix_has_no_errors():
    base = torch.randn(TALL, generator=torch.Generator().manual_seed(1))
    found = factorise(base, base)
    assert found.rank == 0
    assert not found.values.any()
    assert not found.estimates.values.any()
    assert not found.estimates.vectors.any()
    assert np.array_equal(found.right_top, np.eye(TALL[1], K, dtype=np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (63, 65), (129, 513), (512, 513)])
def test_small_matrices_are_factorised_directly(shape):
    tuned = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found, expected = factorise(tuned), direct.spectrum(None, tuned)
    assert np.abs(found.values - expected.values).max() <= found.estimates.values.max()
    assert found.rank == min(expected.rank, LEADING)
    errors = reference.errors(None, tuned, found)
    assert (errors.vectors <= 2 * found.estimates.vectors + 1e-6).all()
    assert found.right_bottom.shape == (shape[1], 0)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 300), (40, 7), (100, 100)])
def test_sizes_asked_for(sizes):
    tuned = with_values((1200, 1000), SPECTRA["power -1"](1000)).float()
    found = factorise(tuned, sizes=sizes)
    assert found.left_top.shape == (1200, sizes[0])
    assert found.right_top.shape == (1000, sizes[0])
    assert found.values.shape == found.estimates.values.shape == (sizes[1],)
    assert found.estimates.vectors.shape == (sizes[0],)
    assert_honest(found, torch.zeros_like(tuned), tuned)


def test_a_smaller_tolerance_gives_smaller_errors():
    tuned = with_values(TALL, SPECTRA["power -1/2"](TALL[1])).float()
    rough, fine = (factorise(tuned, tolerance=tolerance) for tolerance in (0.1, 1e-5))
    assert fine.estimates.vectors.sum() < rough.estimates.vectors.sum() / 10
    assert fine.estimates.values.sum() < rough.estimates.values.sum() / 10


@pytest.mark.parametrize(("tolerance", "more"), [(1e-4, 0), (1e-9, on_cpu.PASSES_IN_FLOAT64 + 1)])
def test_passes_are_limited(tolerance, more):
    tuned = torch.randn(600, 700, generator=torch.Generator().manual_seed(0))
    passes = []
    whole = blocks_of(tuned, torch.zeros_like(tuned))
    factorise(tuned, tolerance=tolerance, blocks=lambda *how: passes.append(how) or whole(*how))
    assert len(passes) == on_cpu.most_passes(K, LEADING) + more


def test_bits_do_not_depend_on_what_ran_before_or_on_threads():
    tuned = with_values(WIDE, SPECTRA["power -1/2"](WIDE[0])).float()
    others = [torch.randn(600, 520, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    expected = factorise(tuned)
    with single_threaded_pool(4) as pool:
        every = [*others, tuned, *others, tuned]
        futures = [
            pool.submit(on_cpu.spectrum, blocks_of(one, torch.zeros_like(one)), tuple(one.shape), "w", K, LEADING, 1e-3)
            for one in every
        ]
        found = [future.result() for future in futures]
    for again in (found[3], found[7]):
        for part, other in zip((*again[:5], *again.estimates), (*expected[:5], *expected.estimates), strict=True):
            assert np.array_equal(part, other)


def test_the_start_depends_on_the_name():
    tuned = torch.randn(600, 520, generator=torch.Generator().manual_seed(0))
    assert not np.array_equal(factorise(tuned, name="a").values, factorise(tuned, name="b").values)


def test_signs_are_those_of_philox():
    """The first numbers of a tensor, so that no backend or version draws others."""
    signs = Start("layers.0.weight", 100).signs(64)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.03
    assert np.packbits(signs[0, :32] < 0).tolist() == [52, 46, 206, 133]
