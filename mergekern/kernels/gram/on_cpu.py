"""`gram` on the CPU: the C++ kernel, or NumPy where the extension was not built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mergekern.kernels.gram import Blocks, Gram, gram_of_blocks
from mergekern.kernels.native import address, extension

# Elements of a block of the NumPy path. The float64 differences of 20 models take 20 MB.
_NUMPY_BLOCK = 1 << 17


def inner_products(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], threads: int = 1) -> np.ndarray:
    """Return the inner products of task vectors, (N, N) float64; base of None: of the models themselves.

    Ranges of a tensor that end at multiples of its segment add up to the bits of the whole; see the package.

    >>> inner_products(torch.ones(2), [torch.ones(2), torch.full((2,), 3.0)])
    array([[0., 0.],
           [0., 8.]])
    """
    sums = np.zeros((len(tuned),) * 2)
    if extension is None:
        _add_inner(base, tuned, sums)
    else:
        extension.add_gram(
            (0, 0) if base is None else address(base), [address(t) for t in tuned], tuned[0].numel(), 0, threads, sums
        )
    return sums


def native(blocks: Blocks, threads: int = 1, split: int = 0) -> Gram:
    """Return the Gram of task vectors by the C++ kernel; see the package's docstring.

    >>> from mergekern.kernels.gram import whole
    >>> native(whole(None, [torch.ones(2), torch.full((2,), 3.0)])).inner
    array([[ 2.,  6.],
           [ 6., 18.]])
    """

    def add_inner(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], sums: np.ndarray) -> None:
        if not all(t.is_contiguous() for t in (*tuned, *([] if base is None else [base]))):
            raise ValueError("gram needs contiguous tensors")
        there = (0, 0) if base is None else address(base)
        extension.add_gram(there, [address(t) for t in tuned], tuned[0].numel(), split, threads, sums)

    def add_squared_distances(
        tuned: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]], sums: np.ndarray
    ) -> None:
        used, positions = np.unique(pairs, return_inverse=True)
        addresses, renamed = [address(tuned[model]) for model in used], positions.reshape(-1, 2).tolist()
        extension.add_squared_distances(addresses, renamed, tuned[0].numel(), threads, sums)

    return gram_of_blocks(blocks, add_inner, add_squared_distances, split)


def numpy(blocks: Blocks, threads: int = 1, split: int = 0) -> Gram:
    """Return the Gram of task vectors by NumPy, a part of a block at a time.

    It uses BLAS, so that the last bits of a pair depend on the other models. It computes all pairs for any split.
    """
    return gram_of_blocks(blocks, _add_inner, _add_squared_distances, split)


def _add_inner(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], sums: np.ndarray) -> None:
    for start, wide in _wide_parts(tuned):
        if base is not None:
            wide -= base[start : start + wide.shape[1]].to(torch.float64).numpy()
        sums += wide @ wide.T


def _add_squared_distances(tuned: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]], sums: np.ndarray) -> None:
    for _, wide in _wide_parts(tuned):
        sums += [np.square(wide[i] - wide[j]).sum() for i, j in pairs]


def _wide_parts(tuned: Sequence[torch.Tensor]) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, tuned[0].numel(), _NUMPY_BLOCK):
        yield start, np.stack([t[start : start + _NUMPY_BLOCK].to(torch.float64).numpy() for t in tuned])
