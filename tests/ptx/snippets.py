"""Small kernels of a few instructions, for tests of what each does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tests.ptx.machine import Machine
from tests.ptx.operands import Values

_HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 memory[];
.visible .entry snippet({parameters})
.reqntid {threads}
{{
.reg .pred %p<32>;
.reg .b16 %h<32>;
.reg .b32 %r<64>;
.reg .b64 %d<64>;
mov.u32 %r60, %tid.x;
"""


def kernel(
    body: str, parameters: Sequence[str] = ("out",), threads: int = 32, head: str = ".extern .shared"
) -> Machine:
    """Return a machine with one kernel, "snippet", whose parameters are addresses; %r60 is the thread's number.

    `head` begins the declaration of shared memory, and may hold others before it.

    The registers are %p (predicates), %h (16 bits), %r (32) and %d (64); `memory` is shared memory.
    """
    listed = ", ".join(f".param .u64 {name}" for name in parameters)
    begin = _HEAD.format(parameters=listed, threads=threads).replace(".extern .shared", head)
    return Machine(begin + body + "\nret;\n}\n")


def calculate(instructions: str, dtype: str, *inputs: Values, threads: int = 32) -> Values:
    """Return what instructions make of inputs: in %a, %b, %c (or their like of 64 bits) the inputs, in %out the result.

    Args:
        instructions: with {a}, {b}, {c} for the inputs' registers and {out} for that of the result.
        dtype: NumPy's name of the result's type.
        inputs: one value a thread.
    """
    body, names = "", {}
    tensors = [torch.from_numpy(np.ascontiguousarray(values).view(np.uint8).copy()) for values in inputs]
    for place, (letter, values) in enumerate(zip("abc", inputs, strict=False)):
        width = values.dtype.itemsize
        names[letter] = {2: f"%h{place}", 4: f"%r{place}", 8: f"%d{place}"}[width]
        body += f"ld.param.u64 %d60, [{letter}];\nmad.wide.u32 %d60, %r60, {width}, %d60;\n"
        body += f"ld.global.b{8 * width} {names[letter]}, [%d60];\n"
    width = np.dtype(dtype).itemsize
    names["out"] = {2: "%h20", 4: "%r20", 8: "%d20"}[width]
    body += instructions.format(**names)
    body += f"\nld.param.u64 %d60, [out];\nmad.wide.u32 %d60, %r60, {width}, %d60;\n"
    body += f"st.global.b{8 * width} [%d60], {names['out']};"
    out = torch.zeros(threads * width, dtype=torch.uint8)
    machine = kernel(body, [*"abc"[: len(inputs)], "out"], threads)
    addresses = [tensor.data_ptr() for tensor in (*tensors, out)]
    machine.launch("snippet", (1, 1), threads, addresses, shared_bytes=4096)
    return out.numpy().view(dtype).copy()
