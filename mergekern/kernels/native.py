"""Access to the C++ extension: whether it was built, and tensors as the addresses that it takes."""

from __future__ import annotations

import numpy as np
import torch

try:
    from mergekern import _native as extension
except ImportError:  # the package was installed without a compiler
    extension = None  # type: ignore[assignment]

# Codes of csrc/cpu/dtypes.hpp.
_DTYPE_CODES = {
    torch.float64: 0,
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 5,
}


def address(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what the extension takes for a tensor: its data pointer and the code of its dtype."""
    if tensor.device.type != "cpu":
        raise ValueError("the C++ kernels need CPU tensors")
    return tensor.data_ptr(), _DTYPE_CODES[tensor.dtype]


def difference(base: torch.Tensor, tuned: torch.Tensor) -> np.ndarray:
    """Return tuned − base of matrices as a C-contiguous float64 array, on the calling thread alone.

    >>> difference(torch.ones(2, 2), torch.eye(2))
    array([[ 0., -1.],
           [-1.,  0.]])
    """
    if extension is None:
        delta = tuned.to(torch.float64, copy=True).sub_(base.to(torch.float64))
        return np.ascontiguousarray(delta.numpy())
    base, tuned = (t if t.stride(1) == 1 else t.contiguous() for t in (base, tuned))
    rows, columns = tuned.shape
    return extension.difference(address(base), base.stride(0), address(tuned), tuned.stride(0), rows, columns)
