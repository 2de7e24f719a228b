import numpy as np
import pytest
import torch

from mergekern.kernels.gram import reference, whole
from tests.kernels.test_gram import assert_gram, draw
from tests.support.device import DEVICE, TRITON, few_programs, needs_gpu, there
from tests.support.tolerances import SUM

on_triton = pytest.importorskip("mergekern.kernels.gram.on_triton", exc_type=ImportError)
pytestmark = [*TRITON, pytest.mark.usefixtures("poisoned_memory")]

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
# (elements, models): below, at and above tiles, blocks of 16 and pairs of 32 models, and chunks of 256.
SIZES = [(1, 1), (1, 2), (7, 16), (15, 17), (33, 32), (65, 33), (129, 5), (255, 2), (256, 2), (257, 3), (521, 20)]
CASES = [(dtype, *size) for dtype in DTYPES for size in (SIZES if dtype == torch.float32 else SIZES[1::4])]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(on_triton, "CHUNK", 256)


def inner_products(layers, *options):
    return on_triton.inner_products([there(layer) for layer in layers], *options).cpu()


@pytest.mark.parametrize(("dtype", "count", "models"), CASES, ids=str)
def test_agrees_with_oracle(small_chunks, dtype, count, models):
    base, *tuned = draw(count, models + 1, dtype)
    found = on_triton.gram(whole(*there([base]), there(tuned)))
    assert_gram(found, reference.gram(base, tuned), base, tuned)


def test_two_hundred_models(monkeypatch):
    few_programs(monkeypatch, on_triton, SUM_COLUMNS=4096)
    base, *tuned = draw(3, 201, torch.float32)
    found = inner_products([[base, *tuned]])[0].numpy()
    np.testing.assert_allclose(found, reference.gram(base, tuned).inner, rtol=1e-13, atol=1e-13)


def test_layers_in_one_launch_have_the_bits_of_each_alone(small_chunks):
    counts = [300, 1, 0, 64, 17, 257, 90]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float64, torch.float32, torch.float32, torch.float16]
    layers = [draw(count, 6, dtype, seed=count) for count, dtype in zip(counts, dtypes, strict=True)]
    layers[3][0] = None  # a base of zeros
    layers[4] = [tensor[1:] for tensor in layers[4]]  # loads of single elements
    layers[5][2] = layers[5][2].half()  # storage that differs
    together = inner_products(layers)
    assert torch.equal(together, inner_products(layers))
    for layer, found in zip(layers, together, strict=True):
        assert torch.equal(found, inner_products([layer])[0])
        base, *tuned = layer
        np.testing.assert_allclose(found, reference.gram(base, tuned).inner, rtol=1e-13, atol=1e-13)


def test_chunks_depend_on_the_layer_alone_and_are_few():
    chunks, first = on_triton._chunks([10, 0, 5000, 1 << 24])
    assert first.tolist() == [0, 1, 1, 3, 3 + 1024]
    assert chunks[:3].tolist() == [[0, 0, 10, 0], [2, 0, 4096, 1], [2, 4096, 904, 2]]
    for count in (1 << 31, (1 << 35) + 1):
        [[_, start, length, _]] = on_triton._chunks([count])[0][-1:].tolist()
        assert start % 4096 == 0
        assert start + length == count
        assert len(on_triton._chunks([count])[0]) <= on_triton.CHUNKS


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes in NumPy, which warns
@pytest.mark.parametrize("models", [3, 20, 33])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_reach_the_pairs_of_their_model_alone(models, bad):
    base, *tuned = draw(70, models + 1, torch.float32)
    tuned[models - 1][69] = bad
    inner = inner_products([[base, *tuned]])[0]
    assert not inner[models - 1].isfinite().any()
    assert inner[: models - 1, : models - 1].isfinite().all()
    base[3] = bad
    assert not inner_products([[base, *tuned]]).isfinite().any()


@pytest.mark.parametrize("products", ["float64", "tf32x3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_as_documented(products, dtype):
    base, *tuned = draw(1000, 19, dtype)
    delta = torch.stack([tensor.double() - base.double() for tensor in tuned])
    error = (inner_products([[base, *tuned]], products)[0] - delta @ delta.T).abs()
    assert (error <= {"float64": SUM, "tf32x3": 1e-6}[products] * (delta.abs() @ delta.abs().T)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 4097])
def test_squared_distances(dtype, count):
    tuned = draw(count, 4, dtype)
    pairs = [(0, 1), (3, 2), (1, 3), (2, 2)]
    wide = [tensor.double() for tensor in tuned]
    expected = [float((wide[i] - wide[j]).square().sum()) for i, j in pairs]
    found = on_triton.squared_distances(there(tuned), pairs).cpu()
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=0)


def test_squared_distances_of_several_dtypes_at_odd_addresses():
    tuned = [tensor[1:] for dtype in (torch.float16, torch.float64) for tensor in draw(1500, 2, dtype)]
    found = on_triton.squared_distances(there(tuned), [(0, 3)]).cpu()
    np.testing.assert_allclose(found, [float((tuned[0].double() - tuned[3]).square().sum())], rtol=1e-13)
    assert on_triton.squared_distances(there(tuned), []).shape == (0,)


def test_what_does_not_fit_is_refused():
    one = torch.ones(4, device=DEVICE)
    for layer in ([None, one, None], [one, one[:3]], [None, torch.ones(4, 2, device=DEVICE)[:, 0]]):
        with pytest.raises(ValueError, match="gram needs"):
            on_triton.inner_products([layer])
    with pytest.raises(ValueError, match="1 models"):
        on_triton.inner_products([[None, one], [None, one, one]])
    with pytest.raises(ValueError, match="32 bits"):
        on_triton.inner_products([[None, one.double()]], "tf32x3")


@needs_gpu
def test_offsets_beyond_32_bits():
    tuned = [torch.zeros((1 << 31) + 40, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    tuned[0][-1], tuned[1][-1] = 2.0, 3.0
    tuned[0][0] = tuned[1][0] = 1.0
    assert on_triton.inner_products([[None, *tuned]])[0].tolist() == [[5.0, 7.0], [7.0, 10.0]]
    assert on_triton.squared_distances(tuned, [(0, 1)]).tolist() == [1.0]


@needs_gpu
def test_nothing_waits_for_the_device():
    base, *tuned = there(draw(100_000, 21, torch.float32))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_triton.inner_products([[base, *tuned], [None, *tuned]])
        on_triton.squared_distances(tuned, [(0, 1)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
