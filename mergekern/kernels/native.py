"""Access to the C++ extension: the module, or None if it was not built, and the addresses of tensors that it takes."""

from __future__ import annotations

import logging

import numpy as np
import torch

from mergekern.checkpoints.dtypes import READ_DTYPES

try:
    from mergekern import _native as extension
except ImportError as error:  # the package was built without a compiler
    extension = None  # type: ignore[assignment]
    logging.getLogger("mergekern").warning(
        "the compiled kernels are missing (%s): NumPy takes their place, and is slower; installing with a C++17 "
        "compiler builds them", error,
    )  # fmt: skip

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


def vector_group() -> int:
    """Return the number of vectors that `add_gram_product` takes a multiple of."""
    return 1 if extension is None else extension.VECTOR_GROUP


def largest_difference(base: torch.Tensor, tuned: torch.Tensor) -> float:
    """Return the largest |tuned − base| of two matrices, on the calling thread alone.

    >>> largest_difference(torch.ones(2, 2), torch.tensor([[1.0, 1.0], [-3.0, 2.0]]))
    4.0
    """
    if extension is None:
        return float(np.abs(tuned.to(torch.float64).numpy() - base.to(torch.float64).numpy()).max())
    base, tuned = _with_rows(base), _with_rows(tuned)
    return extension.largest_difference(address(base), base.stride(0), address(tuned), tuned.stride(0), *tuned.shape)


def add_gram_product(
    base: torch.Tensor,
    tuned: torch.Tensor,
    of_rows: bool,
    exponent: int,
    vectors: np.ndarray,
    total: np.ndarray,
    images: np.ndarray | None = None,
) -> None:
    """Add δᵀδ·vectors, or δδᵀ·vectors (of_rows), to a total, on the calling thread alone; δ = tuned − base.

    δ is never in memory as a whole. Products and their sums within tiles are float32, of δ scaled by a power of two.

    Args:
        base, tuned: (m, n) matrices, of which the sums of all elements exist.
        of_rows: whether the vectors are of the rows.
        exponent: |δ| < 2^exponent.
        vectors: (n or m, count) float32; count a multiple of `vector_group`.
        total: (n or m, count) float64.
        images: overwritten by 2^−exponent·δ·vectors, or δᵀ·vectors, (m or n, count) float32.

    >>> total = np.zeros((2, 16))
    >>> vectors = np.ones((2, 16), dtype=np.float32)
    >>> add_gram_product(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]), False, 2, vectors, total)
    >>> total[:, 0]
    array([12.,  4.])
    """
    factor, weight = np.ldexp(1.0, -exponent), np.ldexp(1.0, 2 * exponent)
    if extension is not None:
        base, tuned, (rows, columns) = _with_rows(base), _with_rows(tuned), tuned.shape
        extension.add_gram_product(
            address(base), base.stride(0), address(tuned), tuned.stride(0), rows, columns, of_rows, factor, weight,
            vectors, total, images,
        )  # fmt: skip
        return
    delta = (factor * (tuned.to(torch.float64).numpy() - base.to(torch.float64).numpy())).astype(np.float32)
    delta = delta.T if of_rows else delta
    image = delta @ vectors
    total += weight * (delta.T @ image)
    if images is not None:
        images[:] = image


def _operands(base: torch.Tensor, tuned: torch.Tensor, out: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices of the shape of the result, whose rows are contiguous."""
    if base.shape != out.shape or tuned.shape != out.shape:
        raise ValueError(f"shapes differ: {tuple(base.shape)}, {tuple(tuned.shape)}, {out.shape}")
    return _with_rows(base), _with_rows(tuned)


def _with_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix whose rows are contiguous."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
