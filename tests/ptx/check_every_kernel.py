"""Every kernel in the sources is executed at least once. Run by `make ptx`, as check_planted_faults.py is."""

import re
from pathlib import Path

import pytest
import torch

import mergekern.kernels
from mergekern.kernels import cuda_module
from mergekern.kernels.combine import Rule
from mergekern.kernels.combine import on_triton as combine
from mergekern.kernels.gram import on_triton as gram
from mergekern.kernels.overlap import on_triton as overlap
from mergekern.kernels.signs import on_triton as signs
from mergekern.kernels.spectrum import Stack, on_cuda
from mergekern.kernels.task_product import on_triton as task_product
from mergekern.kernels.trim import on_cuda as trim
from tests.ptx.cuda_ptx import PtxCudaModule
from tests.ptx.machine import Machine


@pytest.fixture
def launched(monkeypatch):
    """Return the names of kernels, as they are launched."""
    names, launch = set(), Machine.launch

    def noting(machine, name, *arguments, **options):
        names.add(name)
        return launch(machine, name, *arguments, **options)

    monkeypatch.setattr(Machine, "launch", noting)
    return names


def in_the_sources():
    """Return the names of all kernels: those of Triton are launched as NAME[grid](...)."""
    names = set(re.findall(r"__global__ void[^(]*\([^)]*\)\s*(\w+)\(", cuda_module.source()))
    for path in Path(mergekern.kernels.__file__).parent.glob("*/on_triton.py"):
        text = path.read_text("utf-8")
        jitted = set(re.findall(r"@triton\.jit.*\ndef (\w+)", text))
        names |= {name for name in jitted if re.search(rf"\b{name}\[", text)}
    return names


def test_every_kernel(launched):
    generator = torch.Generator().manual_seed(0)
    base, *tuned = torch.randn(3, 20, 18, generator=generator)
    flat = [tensor.reshape(-1) for tensor in (base, *tuned)]
    module = PtxCudaModule()
    gram.inner_products([flat])
    gram.squared_distances(flat[1:], [(0, 1)])
    signs.signs([flat], torch.ones(1, 2, dtype=torch.float64))
    overlap.overlap(torch.randn(1, 2, 9, 3, generator=generator))
    task_product.task_product([(base, tuned[0])], None, columns=4)
    task_product.omega(5, 4, 0)
    combine.combine(flat[0], flat[1:], Rule("elect", (1.0, 1.0)), torch.empty(360))
    trim.kth_largest(lambda: [(flat[0], flat[1:])], 2, 360, 5, module, torch.device("cpu"))
    on_cuda.spectra([Stack(base, tuned)], 2, 10, module)
    assert launched == in_the_sources()
