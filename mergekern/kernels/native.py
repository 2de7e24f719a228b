"""Access to the C++ extension: the module, or None if it was not built, and the addresses of tensors that it takes."""

from __future__ import annotations

import numpy as np
import torch

from mergekern.checkpoints.dtypes import READ_DTYPES

try:
    from mergekern import _native as extension
except ImportError:  # the package was built without a compiler
    extension = None  # type: ignore[assignment]

# Codes of csrc/cpu/dtypes.hpp.
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(READ_DTYPES)}


def address(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the data pointer of a tensor and the code of its dtype, as arguments for the extension."""
    if tensor.device.type != "cpu":
        raise ValueError("the C++ kernels need CPU tensors")
    return tensor.data_ptr(), _DTYPE_CODES[tensor.dtype]


def row_addresses(matrix: np.ndarray) -> list[tuple[int, int]]:
    """Return address and code for each row of a C-contiguous float64 or float32 matrix."""
    if not matrix.flags.c_contiguous:
        raise ValueError("the C++ kernels need contiguous rows")
    code = _DTYPE_CODES[{"float64": torch.float64, "float32": torch.float32}[matrix.dtype.name]]
    first, step = matrix.ctypes.data, matrix.strides[0]
    return [(first + step * row, code) for row in range(len(matrix))]


def difference(base: torch.Tensor, tuned: torch.Tensor, out: np.ndarray) -> None:
    """Write tuned − base of two matrices to a C-contiguous float64 array, on the calling thread only.

    >>> out = np.empty((2, 2))
    >>> difference(torch.ones(2, 2), torch.eye(2), out)
    >>> out
    array([[ 0., -1.],
           [-1.,  0.]])
    """
    if extension is None:
        np.subtract(tuned.to(torch.float64).numpy(), base.to(torch.float64).numpy(), out=out)
        return
    base, tuned = _operands(base, tuned, out)
    extension.difference(address(base), base.stride(0), address(tuned), tuned.stride(0), out)


def scaled_difference(base: torch.Tensor, tuned: torch.Tensor, factor: float, out: np.ndarray) -> None:
    """Write factor · (tuned − base) of matrices to a C-contiguous float32 array, rounded once, on this thread alone.

    >>> out = np.empty((1, 2), dtype=np.float32)
    >>> scaled_difference(torch.ones(1, 2), torch.tensor([[3.0, 1.0]]), 0.5, out)
    >>> out
    array([[1., 0.]], dtype=float32)
    """
    if extension is None:
        delta = tuned.to(torch.float64).numpy() - base.to(torch.float64).numpy()
        np.multiply(delta, factor, out=out, casting="same_kind")
        return
    base, tuned = _operands(base, tuned, out)
    extension.scaled_difference(address(base), base.stride(0), address(tuned), tuned.stride(0), factor, out)


def _operands(base: torch.Tensor, tuned: torch.Tensor, out: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices of the shape of the result, whose rows are contiguous."""
    if base.shape != out.shape or tuned.shape != out.shape:
        raise ValueError(f"shapes differ: {tuple(base.shape)}, {tuple(tuned.shape)}, {out.shape}")
    base, tuned = (t if t.stride(1) == 1 else t.contiguous() for t in (base, tuned))
    return base, tuned
