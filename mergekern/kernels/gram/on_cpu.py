"""`gram` on the CPU: the C++ kernel, or NumPy where the extension was not built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mergekern.kernels.gram import Gram, distances_from_inner
from mergekern.kernels.native import address, extension

# Elements of a block of the NumPy path: its float64 differences of 20 models take 20 MB.
_NUMPY_BLOCK = 1 << 17


def native(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], threads: int = 1) -> Gram:
    """Return the Gram of task vectors by the C++ kernel; bit-identical for every number of threads."""
    if not all(t.is_contiguous() for t in (*tuned, *([] if base is None else [base]))):
        raise ValueError("gram needs contiguous tensors")
    count = tuned[0].numel()
    addresses = [address(t) for t in tuned]
    inner = extension.gram((0, 0) if base is None else address(base), addresses, count, threads)
    distance, spoilt = distances_from_inner(inner)
    if spoilt:
        _put(distance, spoilt, extension.squared_distances(addresses, spoilt, count, threads))
    return Gram(inner, distance)


def numpy(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], threads: int = 1) -> Gram:
    """Return the Gram of task vectors by NumPy, a block at a time."""
    inner = np.zeros((len(tuned), len(tuned)))
    for start, wide in _wide_blocks(tuned):
        if base is not None:
            wide -= base[start : start + wide.shape[1]].to(torch.float64).numpy()
        inner += wide @ wide.T
    distance, spoilt = distances_from_inner(inner)
    if spoilt:
        sums = np.zeros(len(spoilt))
        for _, wide in _wide_blocks(tuned):
            sums += [np.square(wide[i] - wide[j]).sum() for i, j in spoilt]
        _put(distance, spoilt, sums)
    return Gram(inner, distance)


def _wide_blocks(tuned: Sequence[torch.Tensor]) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, tuned[0].numel(), _NUMPY_BLOCK):
        yield start, np.stack([t[start : start + _NUMPY_BLOCK].to(torch.float64).numpy() for t in tuned])


def _put(matrix: np.ndarray, pairs: list[tuple[int, int]], values: np.ndarray) -> None:
    i, j = np.array(pairs).T
    matrix[i, j] = matrix[j, i] = values
