import numpy as np
import pytest
import torch

from mergekern.checkpoints.dtypes import READ_DTYPES
from mergekern.checkpoints.stream import SEGMENT
from mergekern.kernels import native
from mergekern.kernels.gram import on_cpu, reference, whole
from tests.support.device import TRITON, there
from tests.support.tolerances import GEOMETRY, SUM


def on_triton(blocks, threads=1, split=0):
    from mergekern.kernels.gram import on_triton

    return on_triton.gram(lambda: ((*there([base]), there(tuned)) for base, tuned in blocks()), threads, split)


DTYPES = list(READ_DTYPES)
IMPLEMENTATIONS = [
    pytest.param(on_cpu.native, id="native", marks=pytest.mark.skipif(native.extension is None, reason="not built")),
    pytest.param(on_cpu.numpy, id="numpy"),
]
# Triton only with few elements and models, since it is interpreted without a GPU; test_gram_on_triton.py has more.
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
    assert_gram(gram(whole(base, tuned), 2), reference.gram(base, tuned), base, tuned)


@pytest.mark.parametrize("gram", AND_TRITON)
def test_models_of_different_dtypes_and_no_base(gram):
    tuned = [draw(1000, 1, dtype, seed)[0] for seed, dtype in enumerate(DTYPES)]
    assert_gram(gram(whole(None, tuned), 1), reference.gram(None, tuned), None, tuned)


@pytest.mark.parametrize("gram", AND_TRITON)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_tensors_at_odd_addresses(gram, dtype):
    raw = torch.zeros(1 + 1000 * dtype.itemsize, dtype=torch.uint8)
    # Integers, whose sums are exact in any order: on a device, tensors at odd addresses are read in narrower tiles.
    aligned = torch.randint(-99, 100, (1000,), generator=torch.Generator().manual_seed(0)).to(dtype)
    raw[1:] = aligned.view(torch.uint8)
    odd = torch.frombuffer(raw.numpy(), dtype=dtype, offset=1)
    assert np.array_equal(gram(whole(None, [odd, aligned]), 1).inner, gram(whole(None, [aligned, aligned]), 1).inner)


@pytest.mark.parametrize("gram", AND_TRITON)
def test_slices_of_larger_buffers(gram):
    base, *tuned = (t[3:-5] for t in draw(5000, 4, torch.float16))
    assert_gram(gram(whole(base, tuned), 2), reference.gram(base, tuned), base, tuned)


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
        inner = gram(whole(None, [one, *values.split(1)]), 1).inner
        assert np.array_equal(inner[0, 1:], values.double().numpy())


@pytest.mark.parametrize("gram", AND_TRITON)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_are_not_lost(gram, bad):
    base, *tuned = draw(1000, 4, torch.float16)
    tuned[2][777] = bad
    inner = gram(whole(base, tuned), 2).inner
    assert not np.isfinite(inner[2]).any()
    assert np.isfinite(np.delete(np.delete(inner, 2, 0), 2, 1)).all()


@pytest.mark.parametrize("gram", IMPLEMENTATIONS)
def test_small_values_after_large_ones_are_kept(gram):
    ones = torch.ones(100_001)
    planted = ones.clone()
    planted[0] = 1e8
    assert gram(whole(None, [planted, ones]), 2).inner[0, 1] == 1e8 + 100_000


@pytest.mark.parametrize("gram", IMPLEMENTATIONS)
@pytest.mark.parametrize("closeness", [1e-3, 1e-6, 1e-9])
def test_distance_of_nearly_identical_models(gram, closeness):
    generator = torch.Generator().manual_seed(1)
    base, delta, other = (torch.randn(50_000, generator=generator, dtype=torch.float64) for _ in range(3))
    tuned = [base + delta, base + delta * (1 + closeness * other), base - delta]
    found, expected = gram(whole(base, tuned), 2), reference.gram(base, tuned)
    np.testing.assert_allclose(found.squared_distance, expected.squared_distance, rtol=GEOMETRY / 10)


@pytest.mark.parametrize("gram", AND_TRITON)
def test_equal_models_have_distance_zero(gram):
    base, tuned = draw(999, 2, torch.float32)
    assert gram(whole(base, [tuned, tuned.clone(), base]), 2).squared_distance[0, 1] == 0.0


# --- what the bits of a pair depend on

needs_native = pytest.mark.skipif(native.extension is None, reason="not built")


def assert_part(some, every, models):
    """Assert that the Gram matrix of some models, in any order, is their part of the whole, to the last bit."""
    for part, matrix in zip(some, every, strict=True):
        assert np.array_equal(part, matrix[np.ix_(models, models)])


def nearly_equal(tuned):
    """Return models, some of which are so close that their distance cancels, in float64 at least."""
    return [tensor if index % 3 else tuned[0] + 1e-9 * tensor for index, tensor in enumerate(tuned)]


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("count", "models"), [(1, 3), (77, 41), (255, 13), (257, 30), (4099, 40), (131_073 + 500, 7)], ids=str
)
def test_native_bits_of_a_pair_do_not_depend_on_other_models(dtype, count, models):
    base, *tuned = draw(count, models + 1, dtype)
    if dtype == torch.float64:
        tuned = nearly_equal(tuned)
    every = on_cpu.native(whole(base, tuned), 2)
    rng = np.random.default_rng(count)
    for size in {1, 2, 3, models // 2, models - 1, models}:
        some = rng.permutation(models)[:size]
        assert_part(on_cpu.native(whole(base, [tuned[i] for i in some])), every, some)


@needs_native
def test_native_bits_of_models_of_several_dtypes_do_not_depend_on_the_others():
    tuned = [draw(1001, 1, dtype, seed)[0] for seed, dtype in enumerate(DTYPES * 5)]
    every = on_cpu.native(whole(None, tuned))
    for seed in range(10):
        some = np.random.default_rng(seed).permutation(len(tuned))[: 2 + seed]
        assert_part(on_cpu.native(whole(None, [tuned[i] for i in some])), every, some)


@needs_native
@pytest.mark.parametrize("size", [1, 100])
def test_native_bits_do_not_depend_on_the_order_of_many_models(size):
    """More models than one group of tiles holds."""
    base, *tuned = draw(300, 260, torch.float32)
    every, some = on_cpu.native(whole(base, tuned)), np.random.default_rng(0).permutation(259)[:size]
    assert_part(on_cpu.native(whole(base, [tuned[i] for i in some])), every, some)


@pytest.mark.parametrize("gram", AND_TRITON)
@pytest.mark.parametrize("split", [1, 2, 6, 12, 13])
def test_a_split_gives_what_is_new(gram, split):
    base, *tuned = draw(500, 14, torch.float64)
    blocks = whole(base, nearly_equal(tuned))
    every, with_split = gram(blocks, 1), gram(blocks, 1, split)
    new = np.arange(13) >= split
    wanted = (new[:, None] != new) | np.eye(13, dtype=bool)
    for found, expected in zip(with_split, every, strict=True):
        assert np.array_equal(found, np.where(wanted, expected, 0.0))


@needs_native
@pytest.mark.parametrize("split", [-1, 4])
def test_native_refuses_a_split_that_is_none(split):
    with pytest.raises((ValueError, TypeError)):
        on_cpu.native(whole(None, draw(5, 3, torch.float32)), 1, split)


@needs_native
@pytest.mark.parametrize("split", [0, 4])
@pytest.mark.parametrize("cuts", [[1], [2], [1, 2, 3], [3]], ids=str)
def test_native_bits_do_not_depend_on_ranges(cuts, split):
    base, *tuned = nearly_equal(draw(3 * SEGMENT + 1001, 8, torch.float64))
    every, cuts = on_cpu.native(whole(base, tuned), 2, split), [cut * SEGMENT for cut in cuts]

    def blocks():
        return ((parts[0], parts[1:]) for parts in zip(*(t.tensor_split(cuts) for t in (base, *tuned)), strict=True))

    for threads in (1, 2):
        for found, expected in zip(on_cpu.native(blocks, threads, split), every, strict=True):
            assert np.array_equal(found, expected)


@needs_native
def test_ranges_of_layers_end_where_the_kernel_allows_it():
    assert SEGMENT % native.extension.SEGMENT == 0


@needs_native
def test_native_bits_do_not_depend_on_threads():
    base, *tuned = nearly_equal(draw(1_000_003, 8, torch.float64))
    grams = [on_cpu.native(whole(base, tuned), threads) for threads in (1, 2, 3, 7)]
    for gram in grams[1:]:
        assert_part(gram, grams[0], range(7))


def test_native_refuses_what_it_cannot_address():
    with pytest.raises(ValueError, match="contiguous"):
        on_cpu.native(whole(None, [torch.ones(4)[::2]]))


@pytest.mark.parametrize("gram", AND_TRITON)
def test_distances_are_decided_on_the_whole(gram):
    """The distance cancels in one of two blocks but not in their sum, whichever block comes first."""
    generator = torch.Generator().manual_seed(1)
    base, delta, change = (torch.randn(1000, generator=generator, dtype=torch.float64) for _ in range(3))
    near = (base, [base + delta, base + delta * (1 + 1e-9 * change)])
    for far in ((base, [base + delta, base + change]), (base, [base + 1e-3 * delta, base + 1e-3 * delta])):
        joined = [torch.cat(pair) for pair in zip(near[1], far[1], strict=True)]
        expected = reference.gram(torch.cat([base, base]), joined).squared_distance
        passes = []

        def blocks(parts=(near, far), passes=passes):
            passes.append(1)
            return parts

        np.testing.assert_allclose(gram(blocks).squared_distance, expected, rtol=GEOMETRY / 10)
        assert len(passes) == (1 if expected[0, 1] > 1 else 2)
