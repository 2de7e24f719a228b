"""Barriers and waits taken out of the compilers' own code, one kind at a time: each must be found.

Run by `make ptx`, with the compilers of machines that have GPUs. Not collected with the other tests, which need none.
"""

import re

import pytest
import torch

from mergekern.kernels import cuda_module
from mergekern.kernels.gram import on_triton as gram
from mergekern.kernels.spectrum import Stack, on_cuda
from mergekern.kernels.task_product import on_triton as task_product
from mergekern.kernels.trim import on_cuda as trim
from tests.kernels.test_gram import draw
from tests.ptx import triton_driver
from tests.ptx.cuda_ptx import PtxCudaModule, compile_with_nvrtc
from tests.ptx.machine import Machine
from tests.ptx.operands import PtxError


@pytest.fixture
def take_out(monkeypatch):
    """Return what takes all that match a pattern out of the PTX of Triton's kernels."""

    def take(pattern):
        def machine(ptx):
            changed, count = re.subn(pattern, "", ptx)
            assert count > 0
            return Machine(changed)

        monkeypatch.setattr(triton_driver, "_machines", {})
        monkeypatch.setattr(triton_driver, "Machine", machine)

    return take


def inner_products():
    layer = draw(700, 21, torch.float32)
    return gram.inner_products([layer])[0]


def test_barriers_of_triton(take_out):
    take_out(r"bar\.sync\s+0;")
    with pytest.raises(PtxError, match="a race"):
        inner_products()


def test_waits_of_triton(take_out):
    """What a copy should bring is NaN until it is waited for."""
    assert inner_products().isfinite().all()
    take_out(r"cp\.async\.wait_group\s+\d+;")
    with pytest.raises(PtxError, match="copies are on their way"):
        inner_products()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"wgmma\.wait_group\S+\s+\d+;", "products of a warpgroup are on their way"),
        (r"wgmma\.fence\S+;", r"written since the last wgmma\.fence"),
        (r"fence\.proxy\.async\S*;", r"without fence\.proxy\.async"),
    ],
)
def test_warpgroups_of_triton(take_out, pattern, message):
    take_out(pattern)
    pairs = [tuple(torch.randn(2, 64, 40, generator=torch.Generator().manual_seed(0)))]
    with pytest.raises(PtxError, match=message):
        task_product.task_product(pairs, torch.ones(1, 40, 8, dtype=torch.float64), precision="tf32x3")


def spectra(module):
    """Factorise matrices large enough that every kernel of the spectrum takes part."""
    generator = torch.Generator().manual_seed(0)
    base, *tuned = torch.randn(3, 70, 70, dtype=torch.float64, generator=generator)
    stack = Stack(base, tuned)
    return on_cuda.spectra([stack], 5, 20, module)


def magnitudes(module):
    tuned = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    return trim.kth_largest(lambda: [(torch.zeros(3000), [tuned])], 1, 3000, 100, module, torch.device("cpu"))


@pytest.mark.parametrize(
    ("file", "barrier", "place"),
    [
        ("chase.cu", "__syncwarp();", 0),
        ("chase.cu", "__syncwarp();", 1),
        ("chase.cu", "__syncthreads();", 0),
        ("cholesky.cu", "__syncthreads();", 0),
        ("common.cuh", "__syncthreads();", 0),
        ("jacobi.cu", "__syncthreads();", 0),
        ("panel.cu", "__syncthreads();", 0),
        ("trim.cu", "__syncthreads();", 0),
    ],
)
def test_barriers_of_cuda(file, barrier, place):
    text = cuda_module.source()
    start = text.index(f'#line 1 "{file}"')
    for _ in range(place + 1):
        start = text.index(barrier, start + 1)
    changed = text[:start] + text[start + len(barrier) :]
    with pytest.raises(PtxError, match=r"a race|wait at|part of"):
        (magnitudes if file == "trim.cu" else spectra)(PtxCudaModule(compile_with_nvrtc(changed)))
