"""The dtypes of stored tensors: one table, from which readers, the writer, merges and kernels derive theirs.

A new storage dtype touches five files at most; tests/kernels/test_shared_codes.py fails until they agree:

1. a row of `FLOATS` here;
2. where no read widens it, its code in csrc/cpu/dtypes.hpp, in the order of the rows;
3. its decoder in csrc/cpu/decode.hpp (for the tables of 8-bit formats csrc/cpu/task_vector.cpp);
4. where devices are to load it as it is, its Triton type in kernels/device_inputs.py;
5. and its branch in csrc/cuda/trim.cu. Without these two it goes to a device as float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class FloatDtype(NamedTuple):
    """One floating-point dtype that tensors of a checkpoint may be stored in.

    Attributes:
        dtype: torch's name of it.
        safetensors: its name in the header of a safetensors file; None where files of it are not read.
        is_written: whether merged models may be stored in it.
        is_widened: whether reads return float32, which holds it exactly, because no kernel decodes it.
    """

    dtype: torch.dtype
    safetensors: str | None
    is_written: bool = False
    is_widened: bool = False


FLOATS = (
    FloatDtype(torch.float64, "F64", is_written=True),
    FloatDtype(torch.float32, "F32", is_written=True),
    FloatDtype(torch.float16, "F16", is_written=True),
    FloatDtype(torch.bfloat16, "BF16", is_written=True),
    FloatDtype(torch.float8_e4m3fn, "F8_E4M3"),
    FloatDtype(torch.float8_e5m2, "F8_E5M2"),
    FloatDtype(torch.float8_e4m3fnuz, None, is_widened=True),
    FloatDtype(torch.float8_e5m2fnuz, None, is_widened=True),
)

FLOAT_DTYPES = tuple(row.dtype for row in FLOATS)
# What reads return, and so what kernels take; the order is that of the codes in C++.
READ_DTYPES = tuple(row.dtype for row in FLOATS if not row.is_widened)
WIDENED = tuple(row.dtype for row in FLOATS if row.is_widened)
FLOAT8 = tuple(dtype for dtype in FLOAT_DTYPES if dtype.itemsize == 1)

# Names in the headers of safetensors files.
INTEGER_NAMES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64,
}  # fmt: skip
FLOAT_NAMES = {row.safetensors: row.dtype for row in FLOATS if row.safetensors is not None}
COMPLEX_NAMES = {"C64": torch.complex64}
# Tensors of these have no task vector: they may be there, and take no part.
OTHER_DTYPES = (*INTEGER_NAMES.values(), torch.complex64, torch.complex128)
WRITTEN_NAMES = {row.dtype: row.safetensors for row in FLOATS if row.is_written}
WRITTEN_NAMES |= {dtype: name for name, dtype in (INTEGER_NAMES | COMPLEX_NAMES).items()}
