import itertools

import pytest
import torch

from mergekern.kernels.trim import reference
from tests.kernels.test_trim import CASES, DTYPES, ranks
from tests.support.checkpoint_files import draw
from tests.support.device import DEVICE, ORDERS, TRITON, module, needs_gpu, there

on_cuda = pytest.importorskip("mergekern.kernels.trim.on_cuda", exc_type=ImportError)
pytestmark = [*TRITON, pytest.mark.usefixtures("poisoned_memory")]


def kth_largest(blocks, models, count, k, **options):
    placed = [(there([base])[0], there(tuned)) for base, tuned in blocks]
    return on_cuda.kth_largest(lambda: placed, models, count, k, module(**options), DEVICE).tolist()


def check(base, tuned, **options):
    for k in ranks(tuned[0].numel()):
        found = kth_largest([(base, tuned)], len(tuned), tuned[0].numel(), k, **options)
        assert found == [reference.kth_largest(base, each, k) for each in tuned], k


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 7, 255, 257, 1025])
def test_sizes(size, order):
    check(draw(size), [draw(size, seed=seed) for seed in (1, 2, 3)], order=order)
    check(None, [draw(size)], order=order)


def test_several_blocks_of_threads(monkeypatch):
    monkeypatch.setattr(on_cuda, "BLOCKS", 3)
    for size in (on_cuda.CHUNK, on_cuda.CHUNK + 1, 5 * on_cuda.CHUNK - 1):
        check(draw(size), [draw(size, seed=seed) for seed in (1, 2)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype):
    base, *tuned = (draw(3001, seed=seed).to(dtype) for seed in range(3))
    check(base, tuned)
    check(base[1:], [each[1:] for each in tuned])
    check(base, [tuned[0], tuned[1].double()])  # storage that differs


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_cases(values):
    check(None, [values])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_value_of_16_bits(dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    check(None, [every])
    infinite = torch.tensor([1.0, -float("inf"), 3.0], dtype=dtype)
    assert kth_largest([(None, [infinite])], 1, 3, 1) == [float("inf")]


def test_subnormal_float32():
    values = torch.arange(1, 1000, dtype=torch.int32).view(torch.float32)
    check(None, [values])
    check(values, [values.flip(0).contiguous()])


def test_blocks_in_any_order():
    base, tuned = draw(1000), [draw(1000, seed=1), draw(1000, seed=2)]
    parts = [slice(*pair) for pair in itertools.pairwise((0, 0, 1, 600, 1000))]
    blocks = [(base[part], [each[part] for each in tuned]) for part in parts[::-1]]
    for k in ranks(1000):
        expected = [reference.kth_largest(base, each, k) for each in tuned]
        assert kth_largest(blocks, 2, 1000, k) == expected


def test_what_does_not_fit_is_refused():
    for k in (0, 5):
        with pytest.raises(ValueError, match="from 1 to 4"):
            kth_largest([(None, [torch.ones(4)])], 1, 4, k)
    for base, tuned in ((None, [torch.ones(4)]), (torch.ones(3), [torch.ones(4)] * 2), (None, [torch.ones(2, 2)] * 2)):
        with pytest.raises(ValueError, match="trim needs"):
            kth_largest([(base, tuned)], 2, 4, 1)


@needs_gpu
def test_offsets_beyond_32_bits():
    values = torch.zeros((1 << 31) + 40, dtype=torch.bfloat16, device=DEVICE)
    values[-1], values[0] = 2.0, -3.0
    for k, expected in ((1, 3.0), (2, 2.0), (3, 0.0)):
        assert kth_largest([(None, [values])], 1, len(values), k) == [expected]


@needs_gpu
def test_nothing_waits_for_the_device():
    tuned = there([draw(100_000, seed=seed) for seed in range(3)])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_cuda.kth_largest(lambda: [(None, tuned)], 3, 100_000, 7, module(), DEVICE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
