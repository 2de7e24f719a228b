import pytest
import torch

from mergekern.kernels.task_product import reference
from tests.support.device import DEVICE, TRITON, few_programs, needs_gpu, there
from tests.support.tolerances import SUM

in_one_dtype = pytest.importorskip("mergekern.kernels.device_inputs", exc_type=ImportError).in_one_dtype
on_triton = pytest.importorskip("mergekern.kernels.task_product.on_triton", exc_type=ImportError)
pytestmark = [*TRITON, pytest.mark.usefixtures("poisoned_memory")]

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
# (m, n, q): below, at and above tiles of 64 × 32 and of 16 to 64 columns.
SHAPES = [(1, 1, 1), (1, 130, 3), (67, 2, 1), (31, 33, 16), (64, 32, 64), (65, 31, 17), (5, 97, 65)]
CASES = [(dtype, *shape) for dtype in DTYPES for shape in (SHAPES if dtype == torch.float32 else SHAPES[3::2])]


def draw(count, shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(2, *shape, generator=generator).to(dtype)) for _ in range(count)]


def thin(count, inner, width):
    return torch.randn(count, inner, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def task_product(pairs, vectors, **options):
    return on_triton.task_product([there(pair) for pair in pairs], *there([vectors]), **options).cpu()


def assert_task_product(found, pairs, vectors, transpose, tolerance=SUM):
    sizes = [(None, (tuned.double() - (0 if base is None else base.double())).abs()) for base, tuned in pairs]
    assert found.shape == (len(pairs), pairs[0][1].shape[1 if transpose else 0], vectors.shape[2])
    error = (found - reference.task_product(pairs, vectors, transpose=transpose)).abs()
    assert (error <= tolerance * reference.task_product(sizes, vectors.abs(), transpose=transpose)).all()


@pytest.mark.parametrize("transpose", [False, True], ids=["upright", "transposed"])
@pytest.mark.parametrize(("dtype", "m", "n", "q"), CASES, ids=str)
def test_agrees_with_oracle(dtype, m, n, q, transpose):
    pairs = draw(2, (m, n), dtype)
    vectors = thin(2, m if transpose else n, q)
    assert_task_product(task_product(pairs, vectors, transpose=transpose), pairs, vectors, transpose)


@pytest.mark.parametrize("transpose", [False, True], ids=["upright", "transposed"])
def test_omega_is_that_of_the_oracle_whatever_the_tiles(monkeypatch, transpose):
    pairs = draw(2, (20, 40), torch.bfloat16)
    omega = on_triton.omega(20 if transpose else 40, 20, 7, DEVICE).cpu()
    drawn = [task_product(pairs, None, transpose=transpose, columns=20, seed=7)]
    monkeypatch.setattr(on_triton, "ROWS", 16)
    monkeypatch.setattr(on_triton, "COLUMNS", 16)
    drawn.append(task_product(pairs, None, transpose=transpose, columns=20, seed=7))
    for found in drawn:
        assert_task_product(found, pairs, omega.expand(2, -1, -1), transpose)
    other = task_product(pairs, None, transpose=transpose, columns=20, seed=8)
    assert not torch.isclose(drawn[0], other).any()


def test_omega_is_standard_normal_and_uncorrelated(monkeypatch):
    few_programs(monkeypatch, on_triton, DRAW_TILE=16_384)
    omega = on_triton.omega(2000, 16, 3, DEVICE).cpu()
    assert omega.isfinite().all()
    # Five standard deviations of each estimate.
    count = omega.numel()
    assert abs(omega.mean()) < 5 / count**0.5
    assert abs(omega.square().mean() - 1) < 5 * (2 / count) ** 0.5
    assert abs((omega**4).mean() - 3) < 5 * (96 / count) ** 0.5
    assert (omega.T @ omega / 2000 - torch.eye(16)).abs().max() < 5 * (2 / 2000) ** 0.5
    neighbours = (omega.ravel()[1:] * omega.ravel()[:-1]).mean()
    assert abs(neighbours) < 5 / count**0.5
    assert torch.equal(omega, on_triton.omega(2000, 16, 3, DEVICE).cpu())
    assert on_triton.omega(0, 16, 3, DEVICE).shape == (0, 16)


def test_matrices_in_one_launch_have_the_bits_of_each_alone():
    pairs = draw(3, (33, 40), torch.float32)
    pairs[1] = (None, pairs[1][1])
    vectors = thin(3, 40, 5)
    together = task_product(pairs, vectors)
    assert_task_product(together, pairs, vectors, False)
    assert torch.equal(together, task_product(pairs, vectors))
    for b, pair in enumerate(pairs):
        assert torch.equal(together[b], task_product([pair], vectors[b : b + 1])[0])


def test_storage_that_differs_and_odd_addresses():
    buffer = torch.randn(1 + 20 * 30, generator=torch.Generator().manual_seed(2)).half()
    pairs = [*draw(1, (20, 30), torch.bfloat16), (None, buffer[1:].view(20, 30))]
    vectors = thin(2, 30, 4)
    assert_task_product(task_product(pairs, vectors), pairs, vectors, False)


def test_a_base_of_many_models_is_converted_once():
    base, *tuned = (torch.ones(4, dtype=torch.float8_e4m3fn) for _ in range(4))
    found = in_one_dtype([base, tuned[0], base, tuned[1], None, base, tuned[2]])
    assert found[0] is found[2] is found[5]
    assert len({id(each) for each in found}) == 5
    assert found[0].dtype == torch.float32


def test_bad_values_reach_their_row_alone():
    [(base, tuned)] = draw(1, (40, 50), torch.float32)
    tuned[3, 7] = float("nan")
    found = task_product([(base, tuned)], thin(1, 50, 3))
    assert found[0, 3].isnan().all()
    assert found.isnan().sum() == 3
    vectors = thin(1, 40, 3)
    found = task_product([(base, tuned)], vectors, transpose=True)
    assert found[0, 7].isnan().all()
    assert found.isnan().sum() == 3


@pytest.mark.parametrize("transpose", [False, True], ids=["upright", "transposed"])
def test_tf32x3_is_as_accurate_as_documented(transpose):
    pairs = draw(1, (80, 100), torch.bfloat16)
    vectors = thin(1, 80 if transpose else 100, 8)
    found = task_product(pairs, vectors, transpose=transpose, precision="tf32x3")
    assert_task_product(found, pairs, vectors, transpose, tolerance=1e-6)


def test_what_does_not_fit_is_refused():
    [(base, tuned)] = draw(1, (3, 4), torch.float64)
    for pairs in ([(base[:2], tuned)], [(None, tuned), (None, tuned.T)], [(None, tuned[:, :2])]):
        with pytest.raises(ValueError, match="contiguous matrices of one shape"):
            task_product(pairs, thin(len(pairs), 4, 2))
    for vectors in (thin(1, 3, 2), thin(2, 4, 2), thin(1, 4, 2).float(), thin(1, 2, 4).mT):
        with pytest.raises(ValueError, match="vectors must be"):
            task_product([(base, tuned)], vectors)
    with pytest.raises(ValueError, match="32 bits"):
        task_product([(base, tuned)], thin(1, 4, 2), precision="tf32x3")
    assert task_product([(base, tuned)], thin(1, 4, 0)).shape == (1, 3, 0)


@needs_gpu
def test_offsets_beyond_32_bits():
    tuned = torch.zeros((1 << 16) + 1, 1 << 15, dtype=torch.bfloat16, device=DEVICE)
    tuned[-1, -1] = 2.0
    vectors = torch.ones(1, 1 << 15, 1, dtype=torch.float64, device=DEVICE)
    assert on_triton.task_product([(None, tuned)], vectors)[0, -2:, 0].tolist() == [0.0, 2.0]
    vectors = torch.ones(1, (1 << 16) + 1, 1, dtype=torch.float64, device=DEVICE)
    assert on_triton.task_product([(None, tuned)], vectors, transpose=True)[0, -2:, 0].tolist() == [0.0, 2.0]
