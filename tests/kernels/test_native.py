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
@pytest.mark.parametrize("shape", [(1, 1), (1, 1025), (3, 1024), (7, 63), (100, 1)], ids=str)
@pytest.mark.parametrize("factor", [1.0, 2.0**-70])
def test_scaled_difference_is_rounded_once(path, dtype, shape, factor):
    base, tuned = (torch.randn(shape, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    found = np.full(shape, np.nan, dtype=np.float32)
    native.scaled_difference(base, tuned, factor, found)
    assert np.array_equal(found, (factor * (tuned.double() - base.double()).numpy()).astype(np.float32))
    wide = torch.randn(9, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = np.full((9, 11), np.nan, dtype=np.float32)
    native.scaled_difference(wide[:, 20:31], wide[:, 3:14], factor, found)
    expected = factor * (wide[:, 3:14].double() - wide[:, 20:31].double()).numpy()
    assert np.array_equal(found, expected.astype(np.float32))


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
