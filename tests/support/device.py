"""The device that tests of device code run on: a GPU, or the processor with interpreted Triton and emulated CUDA."""

import copy
import importlib.util

import pytest
import torch

from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from tests.support.cuda_on_host import HostCudaModule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRITON = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux only"),
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def there(tensors):
    """Move tensors to the device; None stays None."""
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def backend(**options):
    """Return the kernels of the device. The options are those of HostCudaModule, and a GPU ignores them."""
    if DEVICE.type == "cuda":
        return dispatch.choose("cuda")
    return DeviceBackend("emulated", "the processor", DEVICE, 2, HostCudaModule(**options))


def module(**options):
    """Return the CUDA C++ kernels of the device. A GPU ignores all options except `shared_limit`."""
    kernels = copy.copy(backend(**options).module)
    kernels.shared_limit = options.get("shared_limit", kernels.shared_limit)
    return kernels
