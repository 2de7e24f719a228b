"""`signs` by Triton against its oracle: counts exactly, sums to rounding; sizes around words, rows and tiles."""

import numpy as np
import pytest
import torch

from mergekern.kernels.signs import reference
from tests.kernels.test_signs import DTYPES, check, thresholds, zoo
from tests.support.device import DEVICE, TRITON, there

on_triton = pytest.importorskip("mergekern.kernels.signs.on_triton", exc_type=ImportError)
pytestmark = [*TRITON, pytest.mark.usefixtures("poisoned_memory")]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 2048 elements, and chunks of two."""
    monkeypatch.setattr(on_triton, "WORDS", 64)
    monkeypatch.setattr(on_triton, "TILES", 2)
    monkeypatch.setattr(on_triton, "WARPS", 1)


def signs(layers, limits=None):
    """Return what the device gives for each layer, on the host."""
    limits = [thresholds(len(layers[0]) - 1)] * len(layers) if limits is None else limits
    limits = torch.tensor(limits, dtype=torch.float64, device=DEVICE)
    found = on_triton.signs([there(layer) for layer in layers], limits)
    return [found.of_layer(layer).on_host() for layer in range(len(layers))]


@pytest.mark.parametrize(("size", "models"), [(1, 1), (63, 5), (64, 2), (65, 3), (2048, 1), (2049, 2), (4200, 2)])
def test_sizes(small_tiles, size, models):
    base, tuned = zoo(size, models)
    origin = base if size % 2 else None
    [found] = signs([[origin, *tuned]])
    check(found, reference.signs(origin, tuned, thresholds(models)))


def test_whole_tiles_as_they_are_launched():
    base, tuned = zoo(32 * on_triton.WORDS + 2 * on_triton.WORDS + 5, 1)
    [found] = signs([[base, *tuned]])
    check(found, reference.signs(base, tuned, thresholds(1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(small_tiles, dtype):
    base, tuned = zoo(301, 2, dtype)
    if dtype == torch.float16:
        tuned[1] = tuned[1].bfloat16()  # both are sent as float32
    [found] = signs([[base, *tuned]])
    check(found, reference.signs(base, tuned, thresholds(2)))


def test_layers_in_one_launch_have_the_bits_of_each_alone(small_tiles):
    layers = []
    for size, dtype in ((300, torch.float32), (0, torch.float32), (90, torch.bfloat16), (700, torch.float32)):
        base, tuned = zoo(size, 3, dtype)
        layers.append([base, *tuned])
    layers[3] = [tensor[1:] for tensor in layers[3]]  # loads of single elements
    layers[0][0] = None
    limits = [[0.1 * layer, 0.0, 0.3] for layer in range(4)]
    for layer, limit, found in zip(layers, limits, signs(layers, limits), strict=True):
        [alone] = signs([layer], [limit])
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(one, other)
        check(found, reference.signs(layer[0], layer[1:], limit))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes in NumPy, which warns
def test_bad_values_change_nothing_and_infinities_do(small_tiles):
    """A value that equals the threshold is kept."""
    tuned = [torch.tensor([np.nan, np.inf, -np.inf, 1.0]), torch.tensor([1.0, -1.0, -1.0, -1.0])]
    [found] = signs([[None, *tuned]], [[1.0, 0.0]])
    assert found.shared.tolist() == [[3.0, 3.0], [3.0, 4.0]]
    assert found.opposite[0, 1] == 2.0
    assert found.kept_shared.tolist() == [[3.0, 3.0], [3.0, 4.0]]
    assert found.kept_opposite[0, 1] == 2.0
    assert not np.isfinite(found.absolute[0]).any()
    assert np.isfinite(found.absolute[1, 1])


def test_nothing_changed_signed_zeros_and_subnormal_changes(small_tiles):
    tiny = torch.tensor([0.0, -0.0, 1e-42])
    [found] = signs([[torch.zeros(3), tiny, -tiny]], [[0.0, 0.0]])
    assert (found.shared == 1).all()
    assert found.opposite.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_what_does_not_fit_is_refused():
    one = torch.ones(4, device=DEVICE)
    with pytest.raises(ValueError, match="gram needs"):
        on_triton.signs([[None, one, one[:3]]], torch.zeros(1, 2, dtype=torch.float64, device=DEVICE))
    for limits in (torch.zeros(2, 2, dtype=torch.float64), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match="signs needs a float64 threshold of each of 2 models of 1 tensors"):
            on_triton.signs([[None, one, one]], limits.to(DEVICE))
