"""`signs` against its oracle: counts exactly, sums to rounding; awkward sizes, all dtypes, splits and ranges."""

import numpy as np
import pytest
import torch

from mergekern.kernels import native
from mergekern.kernels.gram import wanted_pairs, whole
from mergekern.kernels.signs import on_cpu, reference
from mergekern.statistics.coordinates import OF_PAIRS
from tests.support.checkpoint_files import draw

needs_native = pytest.mark.skipif(native.extension is None, reason="not built")
both = pytest.mark.parametrize(
    "signs", [pytest.param(on_cpu.native, id="native", marks=needs_native), pytest.param(on_cpu.numpy, id="numpy")]
)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


def zoo(size, models=4, dtype=torch.float32):
    """Return a base and models, each of which leaves about a third of the coordinates as they are."""
    base = draw(size).to(dtype)
    tuned = []
    for model in range(models):
        delta = 0.3 * draw(size, seed=model + 1) * (draw(size, seed=model + 50) > -0.4)
        tuned.append((base.double() + delta).to(dtype))
    return base, tuned


def thresholds(models):
    return [0.0, 0.1, 0.4, 1e9, 0.2][:models]


def check(found, expected, wanted=None):
    wanted = np.ones_like(expected.shared, dtype=bool) if wanted is None else wanted
    for name in OF_PAIRS:
        near = {"rtol": 1e-13, "atol": 0} if name == "absolute" else {"rtol": 0, "atol": 0}
        expected_here = np.where(wanted, getattr(expected, name), 0.0)
        np.testing.assert_allclose(getattr(found, name), expected_here, err_msg=name, **near)
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-12, atol=1e-11)


@both
@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 1023, 1025, 8192, 8193, (1 << 17) + 9])
def test_sizes(signs, size):
    base, tuned = zoo(size)
    check(signs(whole(base, tuned), thresholds(4), 2), reference.signs(base, tuned, thresholds(4)))
    check(signs(whole(None, tuned), thresholds(4)), reference.signs(None, tuned, thresholds(4)))


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(signs, dtype):
    base, tuned = zoo(2001, dtype=dtype)
    mixed = [*tuned[:2], tuned[2].double(), tuned[3].float()]
    check(signs(whole(base, mixed), thresholds(4)), reference.signs(base, mixed, thresholds(4)))


@both
@pytest.mark.parametrize("split", [1, 3, 5])
def test_a_split_counts_the_new_pairs(signs, split):
    base, tuned = zoo(300, models=5)
    expected = reference.signs(base, tuned, thresholds(5))
    check(signs(whole(base, tuned), thresholds(5), 1, split), expected, wanted_pairs(5, split))


@both
def test_nothing_changed_and_signed_zeros(signs):
    base = torch.tensor([0.0, -0.0, 1.0])
    found = signs(whole(base, [base, torch.tensor([-0.0, 0.0, 1.0])]), [0.0, 0.0])
    assert not any(matrix.any() for matrix in found)


@needs_native
def test_a_pair_does_not_depend_on_company_threads_or_ranges():
    base, tuned = zoo(3 * (1 << 17) + 5, models=5)
    found = on_cpu.native(whole(base, tuned), thresholds(5), 3)
    pair = on_cpu.native(whole(base, [tuned[3], tuned[1]]), [thresholds(5)[3], thresholds(5)[1]])
    cut = 1 << 17
    ranges = [(base[:cut], [t[:cut] for t in tuned]), (base[cut:], [t[cut:] for t in tuned])]
    in_ranges = on_cpu.native(lambda: ranges, thresholds(5))
    for name in OF_PAIRS:
        assert getattr(pair, name)[1, 0] == getattr(found, name)[1, 3]
        np.testing.assert_array_equal(getattr(in_ranges, name), getattr(found, name))
    assert pair.sums.tolist() == found.sums[[3, 1]].tolist()
    np.testing.assert_array_equal(in_ranges.sums, found.sums)


@needs_native
def test_wrong_arguments_are_refused():
    base, tuned = zoo(5, models=2)
    there, others = native.address(base), [native.address(t) for t in tuned]
    counts, sums = np.zeros((4, 2, 2), dtype=np.int64), np.zeros(2)
    with pytest.raises(ValueError, match="thresholds and sums of all tensors"):
        native.extension.add_sign_counts(there, others, 5, 0, [0.0], 1, counts, sums)
    with pytest.raises(ValueError, match="a split is at most"):
        native.extension.add_sign_counts(there, others, 5, 3, [0.0, 0.0], 1, counts, sums)
    with pytest.raises(ValueError, match="null pointer"):
        native.extension.add_sign_counts(there, [(0, 1), others[1]], 5, 0, [0.0, 0.0], 1, counts, sums)
