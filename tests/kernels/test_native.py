import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mergekern.checkpoints.dtypes import READ_DTYPES
from mergekern.kernels import native

DTYPES = list(READ_DTYPES)


@pytest.fixture(params=["extension", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(native, "extension", None)
    elif native.extension is None:
        pytest.skip("not built")


def difference(base, tuned):
    out = np.full(tuple(base.shape), np.nan)
    native.difference(base, tuned, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 1025), (3, 1024), (7, 63), (100, 1)], ids=str)
def test_difference_is_exact(path, dtype, shape):
    base, tuned = (torch.randn(shape, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    found = difference(base, tuned)
    assert np.array_equal(found, (tuned.double() - base.double()).numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 1025), (97, 200), (200, 97), (5, 63), (100, 1)], ids=str)
def test_largest_difference(path, dtype, shape):
    for scale in (1.0, 0.25, 16.0):
        base, tuned = pair_of(shape, dtype, scale)
        expected = float((tuned.double() - base.double()).abs().max())
        assert native.largest_difference(base, tuned) == pytest.approx(expected, rel=1e-7)
    assert native.largest_difference(base, base) == 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 1025), (97, 200), (200, 97), (5, 63), (100, 1)], ids=str)
@pytest.mark.parametrize("of_rows", [False, True])
def test_gram_product(path, dtype, shape, of_rows):
    """Every width of a panel of vectors, tiles that are not full, and rows of larger matrices."""
    for base, tuned in (pair_of(shape, dtype), cut_of(shape, dtype)):
        delta = (tuned.double() - base.double()).numpy()
        delta = delta.T if of_rows else delta
        exponent = int(np.frexp(np.abs(delta).max())[1])
        for count in (16, 48, 112):
            vectors = np.random.default_rng(count).choice([-1.0, 1.0], (delta.shape[1], count)).astype(np.float32)
            total, images = np.ones(vectors.shape), np.full((len(delta), count), np.nan, dtype=np.float32)
            native.add_gram_product(base, tuned, of_rows, exponent, vectors, total, images)
            expected = delta @ vectors
            bound = 1e-6 * np.abs(delta).sum(axis=1, keepdims=True)
            assert (np.abs(np.ldexp(images.astype(np.float64), exponent) - expected) <= bound).all()
            bound = 1e-6 * (np.abs(delta).T @ np.abs(delta).sum(axis=1, keepdims=True))
            assert (np.abs(total - 1.0 - delta.T @ expected) <= bound + 1e-15).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 3e38])
def test_gram_product_of_tiny_and_huge_values(path, scale):
    base = torch.zeros(3, 40)
    tuned = (torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).double() * scale).float()
    base[0, 0], tuned[0, 0] = -tuned[0, 1], tuned[0, 1]
    exponent = int(np.frexp(native.largest_difference(base, tuned))[1])
    total = np.zeros((40, 16))
    native.add_gram_product(base, tuned, False, exponent, np.eye(40, 16, dtype=np.float32), total)
    delta = (tuned.double() - base.double()).numpy()
    expected = delta.T @ delta[:, :16]
    assert np.abs(total - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.skipif(native.extension is None, reason="not built")
def test_a_vectors_product_does_not_depend_on_the_others():
    base, tuned = pair_of((130, 70), torch.float32)
    vectors = np.random.default_rng(0).standard_normal((70, 80)).astype(np.float32)
    every, some = np.zeros((70, 80)), np.zeros((70, 16))
    native.add_gram_product(base, tuned, False, 4, vectors, every)
    native.add_gram_product(base, tuned, False, 4, vectors[:, 50:66].copy(), some)
    assert np.array_equal(every[:, 50:66], some)


@pytest.mark.skipif(native.extension is None, reason="not built")
def test_sizes_of_vectors_are_checked():
    base, tuned = pair_of((5, 7), torch.float32)
    for vectors, total, images in (((5, 16), (7, 16), None), ((7, 15), (7, 15), None), ((7, 16), (7, 16), (7, 16))):
        image = None if images is None else np.zeros(images, dtype=np.float32)
        with pytest.raises(ValueError, match=r"vectors|images"):
            native.add_gram_product(base, tuned, False, 0, np.zeros(vectors, dtype=np.float32), np.zeros(total), image)


def pair_of(shape, dtype, scale=1.0):
    return [(scale * torch.randn(shape, generator=torch.Generator().manual_seed(s))).to(dtype) for s in (0, 1)]


def cut_of(shape, dtype):
    """Return two overlapping parts of one wider matrix."""
    [wide, _] = pair_of((shape[0] + 3, shape[1] + 20), dtype)
    return wide[1 : shape[0] + 1, 3 : shape[1] + 3], wide[3:, 20:]


def test_difference_of_columns_and_transposes(path):
    base, tuned = (torch.randn(40, 30, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    expected = (tuned.double() - base.double()).numpy()
    assert np.array_equal(difference(base[:, 3:20], tuned[:, 3:20]), expected[:, 3:20])
    assert np.array_equal(difference(base.T, tuned.T), expected.T)
    assert np.array_equal(difference(base, tuned.T.contiguous().T), expected)


def test_difference_leaves_its_operands(path):
    base, tuned = torch.ones(3, 3, dtype=torch.float64), torch.full((3, 3), 2.0, dtype=torch.float64)
    difference(base, tuned)
    assert (base == 1).all()
    assert (tuned == 2).all()


@pytest.mark.skipif(native.extension is None, reason="not built")
@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (12,)], ids=str)
def test_difference_refuses_another_shape(shape):
    with pytest.raises(ValueError):
        native.difference(torch.ones(3, 4), torch.ones(3, 4), np.empty(shape))


def test_address_refuses_other_devices():
    with pytest.raises(ValueError, match="CPU"):
        native.address(torch.ones(2, device="meta"))


NO_SUCH = 77  # the exit status of a processor without these instructions
RERUN = f"""
import os, sys
import pytest
from mergekern.kernels import native

if native.extension.instruction_set() != os.environ["MERGEKERN_INSTRUCTION_SET"]:
    sys.exit({NO_SUCH})
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.skipif(native.extension is None, reason="the extension was not built")
@pytest.mark.parametrize("instructions", ["generic", "avx2"])
def test_every_instruction_set_passes_the_kernels_tests(instructions):
    """Each instruction set is asked for, since the processor would choose its best one and never run the others."""
    environment = os.environ | {"MERGEKERN_INSTRUCTION_SET": instructions}
    files = ["tests/kernels/test_gram.py", "tests/kernels/test_native.py", "tests/kernels/test_tridiagonal.py"]
    chosen = [
        *files,
        "-k",
        "not instruction_set and not numpy and not Lapack",
        "-m",
        "not gpu",
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-c", RERUN, *chosen]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode == NO_SUCH:
        pytest.skip(f"the processor has no {instructions}")
    assert run.returncode == 0, run.stdout[-2000:]
    assert "skipped" not in run.stdout, run.stdout[-2000:]
