"""trim: the exact k-th largest magnitude of a task vector, by a window that a sample guesses, or by radix select.

    kth_largest(τ, k) = the k-th largest of |τ_e|, ties counted one by one,      τ = tuned − base

Inputs: blocks of base (or None for zero) and tuned, each in its own storage dtype; k from 1 to the number of elements.
Output: a float64, one of the |τ_e|.

On the CPU, a tensor that is held whole is read once: a sample guesses a window around the k-th largest; the values
above it and those that equal its ends are counted, those within are collected, and the result is selected among them.
If it lies elsewhere, which is unlikely, radix select follows.

Radix select: non-negative float64 numbers are ordered like their bit patterns. Each pass counts the values that agree
with the digits found so far, by their next digit (16 bits; 13 on a device). The counts determine the bin of the k-th
largest value. On the CPU the last few values are collected, and the result is selected among them. Each pass reads
every value once, in blocks of any order and size, so that a vector need not fit in memory.

Backends: `on_cpu`, counting by C++ or NumPy; `on_cuda`, for all models of a tensor at once.

Bytes: 1 read of τ, or by radix 2 or 3, on a device 5. Flops: one subtraction per value and read. Memory: a twentieth of
the values as float64, or 0.5 MB of counts per thread and at most 32 MB of collected values; on a device 64 KB of counts
per model. A tensor of 11.5 million values in bfloat16 takes 1.1 ns of processor time a value; by radix 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

# Returns an iterator over (base, tuned) of all blocks, flat and in any order. It is called once per pass.
Blocks = Callable[[], Iterable[tuple[torch.Tensor | None, torch.Tensor]]]
# The same, with the tuned tensors of several models.
ModelBlocks = Callable[[], Iterable[tuple[torch.Tensor | None, Sequence[torch.Tensor]]]]

# (lowest bit, width) of each digit of a float64 without its sign.
DIGITS = ((47, 16), (31, 16), (15, 16), (0, 15))
