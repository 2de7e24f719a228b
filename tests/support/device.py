"""The device that tests of device code run on: a GPU, or the processor.

The processor interprets Triton and emulates CUDA, or, where MERGEKERN_TEST_DEVICE is "ptx", executes what the compilers
make of both for an H100.
"""

import copy
import importlib.util
import os

import pytest
import torch

from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.transfer import with_index
from tests.support import cuda_on_host

ON_PTX = os.environ.get("MERGEKERN_TEST_DEVICE") == "ptx"
DEVICE = with_index(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
TRITON = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux only"),
]
# Orders in which the threads of emulated CUDA run; elsewhere there is one.
ORDERS = ("any",) if ON_PTX or DEVICE.type == "cuda" else cuda_on_host.ORDERS


def needs_gpu(test):
    """Mark a test of what no interpreter sees."""
    return pytest.mark.gpu_only(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test))


def few_programs(monkeypatch, module, **tiles):
    """Let a kernel have large tiles, and so few programs, where they are interpreted; compilers take long for them."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        for name, size in tiles.items():
            monkeypatch.setattr(module, name, size)


def there(tensors):
    """Move tensors to the device; None stays None."""
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def backend(**options):
    """Return the kernels of the device. The options are those of HostCudaModule, and a GPU ignores them."""
    if DEVICE.type == "cuda":
        return dispatch.choose("cuda")
    return DeviceBackend("emulated", "the processor", DEVICE, 2, _module_on_cpu(**options))


def _module_on_cpu(**options):
    if not ON_PTX:
        return cuda_on_host.HostCudaModule(**options)
    from tests.ptx.cuda_ptx import PtxCudaModule

    return PtxCudaModule(**options)


def module(**options):
    """Return the CUDA C++ kernels of the device. A GPU ignores all options except `shared_limit`."""
    kernels = copy.copy(backend(**options).module)
    kernels.shared_limit = options.get("shared_limit", kernels.shared_limit)
    return kernels
