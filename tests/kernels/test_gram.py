import numpy as np
import pytest
import torch

from mergekern.kernels import native
from mergekern.kernels.gram import on_cpu, reference
from tests.device import TRITON, there
from tests.tolerances import GEOMETRY, SUM


def on_triton(base, tuned, threads=1):
    from mergekern.kernels.gram import on_triton

    return on_triton.gram(*there([base]), there(tuned), threads)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
IMPLEMENTATIONS = [
    pytest.param(on_cpu.native, id="native", marks=pytest.mark.skipif(native.extension is None, reason="not built")),
    pytest.param(on_cpu.numpy, id="numpy"),
]
# Where elements and models are few: without a GPU Triton is interpreted. It has more tests in test_gram_on_triton.py.
AND_TRITON = [*IMPLEMENTATIONS, pytest.param(on_triton, id="triton", marks=TRITON)]
# (elements, models): below, at and above registers, tiles, chunks and segments.
SIZES = [(1, 2), (7, 3), (63, 5), (64, 6), (65, 20), (4095, 4), (4097, 23), (131_073, 2), (262_144, 11), (300_001, 1)]


def draw(count, models, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for _ in range(models)]


def assert_gram(found, expected, base, tuned):
    delta = torch.stack([t.double() - (0 if base is None else base.double()) for t in tuned]).abs()
    assert found.inner.shape == expected.inner.shape
    assert np.array_equal(found.inner, found.inner.T)
    assert np.array_equal(found.squared_distance, found.squared_distance.T)
    np.testing.assert_array_less(np.abs(found.inner - expected.inner), SUM * (delta @ delta.T).numpy() + 1e-300)
    np.testing.assert_allclose(found.squared_distance, expected.squared_distance, rtol=GEOMETRY / 10, atol=0)


@pytest.mark.parametrize("gram", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "models"), SIZES)
def test_agrees_with_oracle(gram, dtype, count, models):
    base, *tuned = draw(count, models + 1, dtype)
    assert_gram(gram(base, tuned, 2), reference.gram(base, tuned), base, tuned)


@pytest.mark.parametrize("gram", AND_TRITON)
def test_models_of_different_dtypes_and_no_base(gram):
    tuned = [draw(1000, 1, dtype, seed)[0] for seed, dtype in enumerate(DTYPES)]
    assert_gram(gram(None, tuned, 1), reference.gram(None, tuned), None, tuned)


@pytest.mark.parametrize("gram", AND_TRITON)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_tensors_at_odd_addresses(gram, dtype):
    raw = torch.zeros(1 + 1000 * dtype.itemsize, dtype=torch.uint8)
    whole = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    raw[1:] = whole.view(torch.uint8)
    odd = torch.frombuffer(raw.numpy(), dtype=dtype, offset=1)
    assert np.array_equal(gram(None, [odd, whole]).inner, gram(None, [whole, whole]).inner)


@pytest.mark.parametrize("gram", AND_TRITON)
def test_slices_of_larger_buffers(gram):
    base, *tuned = (t[3:-5] for t in draw(5000, 4, torch.float16))
    assert_gram(gram(base, tuned, 2), reference.gram(base, tuned), base, tuned)


@pytest.mark.parametrize("gram", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_bit_pattern_is_decoded_exactly(gram, dtype):
    if dtype.itemsize == 2:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    every = every[every.double().isfinite()]
    one = torch.ones(1, dtype=torch.float64)
    for values in every.split(256):
        inner = gram(None, [one, *values.split(1)], 1).inner
        assert np.array_equal(inner[0, 1:], values.double().numpy())


@pytest.mark.parametrize("gram", AND_TRITON)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_are_not_lost(gram, bad):
    base, *tuned = draw(1000, 4, torch.float16)
    tuned[2][777] = bad
    inner = gram(base, tuned, 2).inner
    assert not np.isfinite(inner[2]).any()
    assert np.isfinite(np.delete(np.delete(inner, 2, 0), 2, 1)).all()


@pytest.mark.parametrize("gram", IMPLEMENTATIONS)
def test_small_values_after_large_ones_are_kept(gram):
    ones = torch.ones(100_001)
    planted = ones.clone()
    planted[0] = 1e8
    assert gram(None, [planted, ones], 2).inner[0, 1] == 1e8 + 100_000


@pytest.mark.parametrize("gram", IMPLEMENTATIONS)
@pytest.mark.parametrize("closeness", [1e-3, 1e-6, 1e-9])
def test_distance_of_nearly_identical_models(gram, closeness):
    generator = torch.Generator().manual_seed(1)
    base, delta, other = (torch.randn(50_000, generator=generator, dtype=torch.float64) for _ in range(3))
    tuned = [base + delta, base + delta * (1 + closeness * other), base - delta]
    found, expected = gram(base, tuned, 2), reference.gram(base, tuned)
    np.testing.assert_allclose(found.squared_distance, expected.squared_distance, rtol=GEOMETRY / 10)


@pytest.mark.parametrize("gram", AND_TRITON)
def test_equal_models_have_distance_zero(gram):
    base, tuned = draw(999, 2, torch.float32)
    assert gram(base, [tuned, tuned.clone(), base], 2).squared_distance[0, 1] == 0.0


@pytest.mark.skipif(native.extension is None, reason="not built")
def test_native_bits_do_not_depend_on_threads():
    base, *tuned = draw(1_000_003, 8, torch.float32)
    grams = [on_cpu.native(base, tuned, threads) for threads in (1, 2, 3, 7)]
    for gram in grams[1:]:
        assert np.array_equal(gram.inner, grams[0].inner)


def test_native_refuses_what_it_cannot_address():
    with pytest.raises(ValueError, match="contiguous"):
        on_cpu.native(None, [torch.ones(4)[::2]])
