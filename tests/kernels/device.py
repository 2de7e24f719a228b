"""Where kernels written for a device are tested: on the GPU if there is one, otherwise interpreted on the CPU."""

import importlib.util

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRITON = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux only"),
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def there(tensors):
    """Return tensors, or None, on the device."""
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]
