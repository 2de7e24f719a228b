"""Inputs of device kernels: addresses of tensors that share a storage dtype, and tables of integers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
import triton
import triton.language as tl

# Storage dtypes that kernels can load, in the order of their codes in csrc/cuda/trim.cu. Others are converted first.
LOADED = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Storage dtypes for which Triton can compile products. Triton 3.6 fails on float64 products of 16-bit loads.
STORAGE = dict(LOADED)
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
    del STORAGE[torch.float16], STORAGE[torch.bfloat16]
# Bytes of the widest load. It needs an aligned address, and the compiler must be told that addresses are aligned.
ALIGNMENT = 16


def in_one_dtype(
    tensors: Sequence[torch.Tensor | None], storage: Collection[torch.dtype] = STORAGE
) -> list[torch.Tensor | None]:
    """Return the tensors in one storage dtype that holds all of them exactly. Tensors of that dtype are not copied.

    A tensor that occurs several times, as the base of many models, is converted once.

    >>> found = in_one_dtype([None, torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.bfloat16)])
    >>> [tensor if tensor is None else tensor.dtype for tensor in found]
    [None, torch.float32, torch.float32]
    """
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(dtypes) == 1 and dtypes <= set(storage):
        return list(tensors)
    common = torch.float64 if torch.float64 in dtypes else torch.float32
    different = {id(tensor): tensor for tensor in tensors if tensor is not None}
    converted = {key: tensor.to(common) for key, tensor in different.items()}
    return [tensor if tensor is None else converted[id(tensor)] for tensor in tensors]


def addresses(tensors: Sequence[torch.Tensor | None]) -> list[int]:
    """Return the data pointers of tensors, 0 for None."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def to_device(tables: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Return integer tables as int64 tensors on a device, by one asynchronous copy.

    Each table is aligned to 16 bytes, so that kernels are compiled for one alignment only.

    >>> to_device([np.array([1, 2, 3]), np.array([[4]])], torch.device("cpu"))
    [tensor([1, 2, 3]), tensor([[4]])]
    """
    starts = np.cumsum([0] + [len(table.ravel()) + len(table.ravel()) % 2 for table in tables])
    whole = torch.zeros(int(starts[-1]), dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    for start, table in zip(starts, tables, strict=False):
        whole[start : start + table.size] = torch.from_numpy(np.ascontiguousarray(table, dtype=np.int64)).ravel()
    there = whole.to(device, non_blocking=True)
    return [there[start : start + table.size].view(table.shape) for start, table in zip(starts, tables, strict=False)]
