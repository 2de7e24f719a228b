"""The randomised factorisation on a device: its estimates hold, and it agrees with that of the CPU within them."""

import numpy as np
import pytest
import torch

from mergekern.kernels import randomized_spectrum
from mergekern.kernels.randomized_spectrum import on_cpu, reference
from mergekern.kernels.spectrum import Stack
from mergekern.kernels.spectrum import reference as exact
from mergekern.kernels.task_product import reference as task_product
from tests.kernels.test_randomized_spectrum import SPECTRA, assert_honest, factorise
from tests.kernels.test_spectrum import with_values
from tests.support.device import DEVICE, TRITON, module

on_cuda = pytest.importorskip("mergekern.kernels.randomized_spectrum.on_cuda", exc_type=ImportError)
direct = on_cuda.on_cuda
pytestmark = [*TRITON, pytest.mark.usefixtures("poisoned_memory", "one_thread")]

K, LEADING, TOLERANCE = 3, 12, 1e-3
WIDE, TALL = (90, 130), (130, 90)
KINDS = [
    "flat noise", "power -1/4", "power -1", "steep", "linear", "20 above noise", "step at 10", "equal", "pairs",
    "rank 40", "rank 4", "tiny", "huge",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Iterate with narrow blocks, so that matrices are small enough for the emulator and for a full SVD."""
    for where in (on_cuda, on_cpu, randomized_spectrum):
        for name, value in {"BLOCK": 8, "SPARE": 6, "DIRECT": 32}.items():
            monkeypatch.setattr(where, name, value)


@pytest.fixture
def by_torch(monkeypatch):
    """Multiply by the task matrices with torch, which takes less time than an interpreted kernel."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(direct, "task_product", task_product.task_product)


def matrix(kind, shape, seed=0):
    return with_values(shape, SPECTRA[kind](min(shape)), seed=seed).float()


def spectra(tuned, base=None, sizes=(K, LEADING), name="w"):
    """Return the spectra of matrices of one base, on the host, and what is known of them."""
    base = torch.zeros_like(tuned[0]) if base is None else base
    stack = Stack(base.to(DEVICE), [each.to(DEVICE) for each in tuned])
    [(found, estimates)] = on_cuda.spectra([stack], [name], *sizes, TOLERANCE, module())
    found = type(found)(*(part.cpu() for part in found))
    return [
        found.spectrum(i)._replace(estimates=type(estimates)(*(part[i] for part in estimates)))
        for i in range(len(tuned))
    ], found.good.tolist()


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)
def test_no_error_is_more_than_twice_its_estimate(by_torch, shape):
    tuned = [matrix(kind, shape, seed) for seed, kind in enumerate(KINDS)]
    found, good = spectra(tuned)
    assert all(good)
    for kind, one, each in zip(KINDS, found, tuned, strict=True):
        assert_honest(one, None, each)
        assert one.rank == (4 if kind == "rank 4" else LEADING), kind
        assert (one.estimates.vectors > 0.5).any() == (kind in ("step at 10", "equal", "pairs")), kind


def test_agrees_with_the_cpu_within_the_estimates(by_torch):
    kinds = ["flat noise", "power -1", "20 above noise", "linear"]
    tuned = [matrix(kind, WIDE, seed) for seed, kind in enumerate(kinds)]
    for one, each in zip(spectra(tuned)[0], tuned, strict=True):
        other = factorise(each, sizes=(K, LEADING), tolerance=TOLERANCE)
        within = 2 * (one.estimates.values + other.estimates.values)
        assert (np.abs(one.values - other.values) <= within).all()
        for side, its in ((one.left_top, other.left_top), (one.right_top, other.right_top)):
            # Sines of the vectors of one with the span of the other's.
            outside = np.linalg.norm(side - its.astype(np.float64) @ (its.T.astype(np.float64) @ side), axis=0)
            assert (outside <= 2 * (one.estimates.vectors + other.estimates.vectors.max())).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_differences_of_stored_values_by_the_kernel(dtype):
    shape = (82, 90)  # more than the vectors of all passes
    base = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    tuned = (base.double() + matrix("power -1", shape)).to(dtype)
    found, good = spectra([tuned], base, sizes=(2, 4))
    assert good == [True]
    assert_honest(found[0], base, tuned)


def test_nobody_makes_more_passes_for_the_sake_of_others(by_torch, monkeypatch):
    kinds = ["steep", "flat noise", "steep", "rank 4"]
    tuned = [matrix(kind, TALL, seed) for seed, kind in enumerate(kinds)]
    sizes, multiply = [], direct.multiply

    def counted(pairs, vectors, to_long):
        sizes.append(len(pairs))
        return multiply(pairs, vectors, to_long)

    monkeypatch.setattr(direct, "multiply", counted)
    together, _ = spectra(tuned)
    # Three passes of all, then a last one of those that end there; the others go on.
    assert sizes[:6] == [4] * 6
    assert sum(sizes) < 4 * len(sizes)
    assert sizes[-1] == 1
    for one, each in zip(together, tuned, strict=True):
        sizes.clear()
        [alone], _ = spectra([each])
        np.testing.assert_allclose(one.values, alone.values, rtol=1e-10)
        np.testing.assert_allclose(one.estimates.values, alone.estimates.values, rtol=1e-3)
    again, _ = spectra(tuned)
    assert all(np.array_equal(a, b) for one, other in zip(again, together, strict=True) for a, b in zip(
        one[:5], other[:5], strict=True))  # fmt: skip


def test_several_stacks_keep_their_order_and_their_names(by_torch):
    stacks = [Stack(torch.zeros(shape, device=DEVICE), [matrix("power -1/4", shape, seed).to(DEVICE)])
              for seed, shape in enumerate([WIDE, TALL, (90, 90), WIDE])]  # fmt: skip
    found = on_cuda.spectra(stacks, list("abca"), K, LEADING, TOLERANCE, module())
    for stack, (one, _) in zip(stacks, found, strict=True):
        assert one.left_top.shape == (1, stack.tuned[0].shape[0], K)
        largest = torch.linalg.matrix_norm(stack.tuned[0], 2).item()
        assert one.values[0, 0].item() == pytest.approx(largest, rel=1e-2)
    [(other, _)] = on_cuda.spectra([stacks[3]], ["other"], K, LEADING, TOLERANCE, module())
    assert not torch.equal(other.values, found[3][0].values)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_zeros_and_bad_values_spoil_nothing_else(by_torch):
    tuned = [matrix("power -1", WIDE), torch.zeros(WIDE), matrix("power -1", WIDE)]
    tuned[2][3, 4] = torch.nan
    found, good = spectra(tuned)
    assert good == [True, True, False]
    assert_honest(found[0], None, tuned[0])
    zero = found[1]
    assert zero.rank == 0
    assert not zero.values.any()
    assert not zero.estimates.values.any()
    assert not zero.estimates.vectors.any()
    assert np.array_equal(zero.right_top, np.eye(WIDE[1], K, dtype=np.float32))


@pytest.mark.parametrize("shape", [(20, 33), (30, 6), (2, 2)])
def test_small_matrices_are_factorised_directly(by_torch, shape):
    tuned = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    [found], good = spectra([tuned])
    assert good == [True]
    expected = exact.spectrum(None, tuned, K, LEADING)
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=found.estimates.values.max())
    assert found.rank == min(expected.rank, LEADING)
    assert (reference.errors(None, tuned, found).vectors <= 2 * found.estimates.vectors + 1e-6).all()
    assert found.right_bottom.shape == (shape[1], 0)


def test_the_workspace_is_not_underestimated():
    if DEVICE.type != "cuda":
        pytest.skip("memory of a GPU is counted by torch")
    shape, models = (1500, 1200), 8
    some = Stack(torch.zeros(shape, device=DEVICE), list(torch.randn(models, *shape, device=DEVICE)))
    on_cuda.spectra([some], ["w"], 10, 100, TOLERANCE, module())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    on_cuda.spectra([some], ["w"], 10, 100, TOLERANCE, module())
    assert torch.cuda.max_memory_allocated() - before <= models * on_cuda.workspace(shape, 10, 100)
