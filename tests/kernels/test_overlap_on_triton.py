import numpy as np
import pytest
import torch

from mergekern.kernels.overlap import reference
from tests.kernels.test_overlap import bases
from tests.support.device import DEVICE, TRITON

on_triton = pytest.importorskip("mergekern.kernels.overlap.on_triton", exc_type=ImportError)
pytestmark = [*TRITON, pytest.mark.usefixtures("poisoned_memory")]

# (models, size, k): one column, padded and whole tiles, several groups of models, columns of several tiles.
SHAPES = [(1, 1, 1), (2, 7, 3), (20, 63, 10), (65, 17, 1), (5, 16, 16), (33, 129, 4), (3, 70, 64), (2, 131, 65)]


def overlap(some):
    return on_triton.overlap(torch.from_numpy(some).to(DEVICE)).cpu().numpy()


@pytest.mark.parametrize(("models", "size", "k"), SHAPES, ids=str)
def test_agrees_with_oracle(models, size, k):
    some = bases(models, size, k)
    [found] = overlap(some[None])
    np.testing.assert_allclose(found, reference.overlap(some), rtol=0, atol=1e-12)
    assert np.array_equal(found, found.T)


def test_stacks_have_the_bits_of_each_alone():
    stacks = np.stack([bases(6, 30, 10, seed) for seed in range(3)])
    found = overlap(stacks)
    for stack, one in zip(stacks, found, strict=True):
        assert np.array_equal(one, overlap(stack[None])[0])
    assert np.array_equal(found, overlap(stacks))


def test_bad_bases_spoil_their_own_pairs_alone():
    some = bases(7, 20, 5)
    some[4] = np.nan
    [found] = overlap(some[None])
    bad = np.isnan(found)
    assert bad[4].all()
    assert bad.sum() == 13


def test_what_does_not_fit_is_refused():
    for some in (torch.ones(2, 3, 4), torch.ones(1, 2, 3, 4).double(), torch.ones(1, 2, 4, 3).mT):
        with pytest.raises(ValueError, match="overlap needs"):
            on_triton.overlap(some.to(DEVICE))
