"""`trim` by CUDA C++: radix select for all models of a tensor at once, without waiting for the host.

Each block of threads has one histogram of 13 bits in shared memory, for all elements that it reads. Five passes find
the 63 bits of a float64. The device itself selects the next digit from the counts, so that the host never waits. A
Triton kernel would need a histogram per tile, and would have to write or add it every few thousand elements.

Bytes: 5 reads of τ; the base is read once for all models if the cache holds it. Atomic additions add integers only, so
that their order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.cuda_module import CudaModule
from mergekern.kernels.device_inputs import LOADED, addresses, in_one_dtype, to_device
from mergekern.kernels.trim import ModelBlocks

# These must equal trim.cu: (lowest bit, width) of each digit of a float64 without its sign; number of counts of a
# digit.
DIGITS = ((50, 13), (37, 13), (24, 13), (11, 13), (0, 11))
BINS = 1 << 13
THREADS = 256
# Elements of a block, enough that clearing and adding its counts takes little of the time; largest number of blocks of
# a model.
CHUNK = 1 << 14
BLOCKS = 512


def kth_largest(
    blocks: ModelBlocks, models: int, count: int, k: int, module: CudaModule, device: torch.device
) -> torch.Tensor:
    """Return the k-th largest magnitude of every model, (models,) float64 on the device, without waiting.

    Args:
        blocks: returns (base or None, tuned) of all blocks, flat and contiguous, on the device.
        models: number of tuned tensors in a block.
        count: number of values of a model in all blocks together.
        k: from 1 to count.
        module: the CUDA C++ kernels.
        device: device of the blocks.
    """
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to {count}, not {k}")
    start = np.stack([np.zeros(models, dtype=np.int64), np.full(models, k)], axis=1)
    [states] = to_device([start], device)
    counts = torch.zeros(models, BINS, dtype=torch.int64, device=device)
    tables: dict[tuple[int, ...], torch.Tensor] = {}  # blocks that stay in place use one table in all passes
    for shift, width in DIGITS:
        for base, tuned in blocks():
            stored = _checked(base, tuned, models)
            size, storage = stored[-1].numel(), list(LOADED).index(stored[-1].dtype)
            if size == 0:
                continue
            key = tuple(addresses(stored))
            if key not in tables:
                [tables[key]] = to_device([np.array(key)], device)
            grid = (min(-(-size // CHUNK), BLOCKS), models)
            module.launch(
                "count_magnitudes", grid, THREADS, [tables[key], states, counts, size, shift, width, storage], 4 * BINS
            )
        module.launch("pick_digit", (models, 1), THREADS, [states, counts, width], 8 * THREADS)
    return states[:, 0].contiguous().view(torch.float64)


def _checked(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], models: int) -> list:
    """Return base and tuned in one storage dtype."""
    given = [tensor for tensor in (base, *tuned) if tensor is not None]
    if len(tuned) != models or not all(
        t.dim() == 1 and t.is_contiguous() and t.numel() == tuned[0].numel() for t in given
    ):
        raise ValueError(f"trim needs flat, contiguous tensors of one length, of {models} models")
    return in_one_dtype([base, *tuned], LOADED)
