"""`variation` against its oracle: the same variances to the last bit, the same counts, energies to their rounding.

That every instruction set gives the same bits is tested with those of `combine`.
"""

import numpy as np
import pytest
import torch

from mergekern.kernels import native
from mergekern.kernels.variation import on_cpu, on_torch, reference
from tests.support.checkpoint_files import draw

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
SIZES = [1, 7, 127, 128, 129, (1 << 17) + 3]
MODELS = 3
LEAST, EPSILON = 0.4, 0.7


@pytest.fixture(params=["native", "numpy"] if native.extension else ["numpy"])
def implementation(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(on_cpu, "extension", None)


def inputs(size, dtype=torch.float32):
    base, *tuned = (draw(size, seed=seed).to(dtype) for seed in range(1 + MODELS))
    return base, tuned


def check(base, tuned, threads=1):
    assert np.array_equal(on_cpu.variances(base, tuned, threads), reference.variances(base, tuned))
    for least in (0.0, LEAST):
        expected = reference.energies(base, tuned, least)
        np.testing.assert_allclose(on_cpu.energies(base, tuned, least, threads), expected, rtol=1e-13)
    assert np.array_equal(on_cpu.changes(base, tuned, EPSILON, threads), reference.changes(base, tuned, EPSILON))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(implementation, size):
    check(*inputs(size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_addresses(implementation, dtype):
    base, tuned = inputs(1030, dtype)
    check(base[1:], [tensor[1:] for tensor in tuned])


def test_threads(implementation):
    base, tuned = inputs(3 << 17)
    expected = on_cpu.energies(base, tuned, LEAST)
    for threads in (2, 5):
        check(base, tuned, threads)
        assert np.array_equal(on_cpu.energies(base, tuned, LEAST, threads), expected)
    parts = [slice(start << 17, (start + 1) << 17) for start in range(3)]
    sums = np.zeros(MODELS)
    for part in parts:
        sums += on_cpu.energies(base[part], [tensor[part] for tensor in tuned], LEAST)
    if on_cpu.extension is not None:
        assert np.array_equal(sums, expected)


def test_by_torch():
    base, tuned = inputs(1030)
    assert np.array_equal(on_torch.variances(base, tuned).numpy(), reference.variances(base, tuned))
    np.testing.assert_allclose(
        on_torch.energies(base, tuned, LEAST), reference.energies(base, tuned, LEAST), rtol=1e-13
    )  # fmt: skip
    assert np.array_equal(on_torch.changes(base, tuned, EPSILON), reference.changes(base, tuned, EPSILON))


def test_by_hand(implementation):
    base, tuned = torch.ones(4), [torch.tensor([2.0, 3.0, 1.0, 1.0]), torch.tensor([0.0, 3.0, 1.5, 1.0])]
    assert on_cpu.variances(base, tuned).tolist() == [1.0, 0.0, 0.0625, 0.0]
    assert on_cpu.energies(base, tuned, 0.05).tolist() == [1.0, 1.25]
    assert on_cpu.changes(base, tuned, 0.5).tolist() == [[2, 2], [0, 0]]
    assert on_cpu.changes(base, tuned, 0.25).tolist() == [[2, 2], [0, 1]]
