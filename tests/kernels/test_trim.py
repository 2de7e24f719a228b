"""`trim` against a full sort."""

import itertools

import pytest
import torch

from mergekern.kernels.trim import on_cpu, reference
from tests.support.checkpoint_files import draw

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
NATIVE = [True, False] if hasattr(on_cpu.extension, "magnitude_counts") else [False]


@pytest.fixture(params=NATIVE, ids=lambda native: "native" if native else "numpy", autouse=True)
def implementation(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(on_cpu, "extension", None)


@pytest.fixture(params=["window", "collects", "counts to the last bit"])
def limits(request, monkeypatch):
    # A sample of 16 often guesses the window wrong; one that is larger than all values guesses none.
    monkeypatch.setattr(on_cpu, "_SAMPLE", 16 if request.param == "window" else 1 << 30)
    if request.param == "counts to the last bit":
        monkeypatch.setattr(on_cpu, "_FEW", 0)
        monkeypatch.setattr(on_cpu, "_MANY", 0)


def ranks(count):
    return sorted({1, min(2, count), max(1, count // 5), max(1, count // 2), count})


def check(base, tuned):
    for k in ranks(tuned.numel()):
        found = on_cpu.kth_largest(lambda: [(base, tuned)], tuned.numel(), k, threads=2)
        assert found == reference.kth_largest(base, tuned, k), k


@pytest.mark.parametrize("size", [1, 2, 7, 63, 512, 513, 20_001])
def test_sizes(size, limits):
    check(draw(size), draw(size, seed=1))
    check(None, draw(size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, limits):
    check(draw(3001).to(dtype), draw(3001, seed=1).to(dtype))


CASES = {
    "zeros": torch.zeros(1000),
    "equal": torch.full((1000,), -0.1),
    "signs": torch.tensor([1.0, -1.0, 2.0, -2.0] * 100),
    "range": torch.logspace(-300, 300, 999, dtype=torch.float64),
    "subnormal": torch.tensor([5e-324, 1e-310, 0.0, -1e-320], dtype=torch.float64),
    "neighbours": 1.0 + torch.arange(1000, dtype=torch.float64) * 2.0**-52,
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_cases(values, limits):
    check(None, values)


# Values of which many are equal, so that the ends of the window hold some, and values that no sample is like.
LARGE = {
    "random": draw(100_003),
    "few": draw(100_003).mul(3).round(),
    "two": (draw(100_003) > 0.7).float(),
    "bfloat16": draw(100_003).bfloat16(),
    "outliers": torch.cat([torch.zeros(100_000), torch.tensor([1e30, -3.0, 1e-30])]),
}


@pytest.mark.parametrize("values", LARGE.values(), ids=LARGE)
def test_many_values(values):
    check(None, values)
    check(draw(len(values), seed=1).to(values.dtype), values)


def test_a_window_is_enough(monkeypatch):
    """The k-th largest of random values is found by one read, whatever k is."""
    if on_cpu.extension is None:
        pytest.skip("selects by radix alone")
    monkeypatch.setattr(on_cpu, "_counts", None)
    check(draw(100_003), draw(100_003, seed=1))


def test_blocks_and_threads():
    base, tuned = draw(3 << 17), draw(3 << 17, seed=1)
    cuts = (0, 1, 100_000, 3 << 17)
    parts = [slice(*pair) for pair in itertools.pairwise(cuts)]
    for k in ranks(3 << 17):
        expected = reference.kth_largest(base, tuned, k)
        for threads in (1, 2, 5):
            found = on_cpu.kth_largest(lambda: ((base[p], tuned[p]) for p in parts[::-1]), 3 << 17, k, threads)
            assert found == expected


@pytest.mark.parametrize("k", [0, 5])
def test_ranks_that_are_not(k):
    with pytest.raises(ValueError, match="from 1 to 4"):
        on_cpu.kth_largest(lambda: [(None, torch.ones(4))], 4, k)
