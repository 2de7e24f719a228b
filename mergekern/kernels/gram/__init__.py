"""gram: inner products and squared distances of N task vectors, one tensor at a time.

    inner[i, j]            = <τ_i, τ_j>,      τ_i = tuned_i − base
    squared_distance[i, j] = ‖τ_i − τ_j‖²

Inputs: base (D,) or None for zero, tuned N × (D,), each in its own storage dtype (`checkpoints.dtypes.READ_DTYPES`),
whole or in ranges of elements. Outputs: two (N, N) float64 matrices, symmetric. The difference is exact, and sums are
float64.

With `split` > 0 only the pairs i < split ≤ j and i = j are computed. These are the new pairs when models are added to
`split` existing ones. Other entries are zeros.

Backends: `on_cpu`, C++ or NumPy; `on_triton`, many tensors in one launch. With the C++ kernel the result for a pair
depends on its two models and the base only, to the last bit. It does not depend on other models, their order, the
split, or the number of threads, nor on the division into ranges, if ranges end at multiples of its segment of 2¹⁷
elements.

Bytes: (N + 1)·D·itemsize read once. Flops: N(N + 1)·D, or 2·(split·(N − split) + N)·D.

Squared distances are a separate result because of cancellation: for models that differ by 1e-6 of their norm,
g_ii + g_jj − 2 g_ij has at most three correct digits. If it falls below `CANCELLATION`, a second pass over the tensors
computes the sum of (tuned_i − tuned_j)², in which the base does not appear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

# Each call returns a new iterator over (base, tuned) of consecutive ranges of elements.
Blocks = Callable[[], Iterable[tuple[torch.Tensor | None, Sequence[torch.Tensor]]]]

# Float64 sums over a tensor have an error of about 1e-15 relative to g_ii + g_jj. A difference below this share of it
# would have a relative error above 1e-7.
CANCELLATION = 1e-8


class Gram(NamedTuple):
    """Inner products and squared distances of N task vectors, (N, N) float64 each; sums over tensors add up."""

    inner: np.ndarray
    squared_distance: np.ndarray


def whole(base: torch.Tensor | None, tuned: Sequence[torch.Tensor]) -> Blocks:
    """Return tensors in memory as one block."""
    return lambda: [(base, tuned)]


def gram_of_blocks(
    blocks: Blocks,
    add_inner: Callable[[torch.Tensor | None, Sequence[torch.Tensor], np.ndarray], None],
    add_squared_distances: Callable[[Sequence[torch.Tensor], Sequence[tuple[int, int]], np.ndarray], None],
    split: int = 0,
) -> Gram:
    """Return the Gram of tensors that are read in blocks. Cancellation is decided by the sums over all blocks.

    Args:
        blocks: returns (base, tuned) of every block; called once, and a second time if distances cancel.
        add_inner: function of (base, tuned, sums) that adds the inner products of one block to (N, N) sums.
        add_squared_distances: function of (tuned, pairs, sums) that adds the squared distances of pairs to (P,) sums.
        split: number of the first new model; see the package's docstring.
    """
    inner: np.ndarray | None = None
    for base, tuned in blocks():
        if inner is None:
            inner = np.zeros((len(tuned),) * 2)
        add_inner(base, tuned, inner)
        del base, tuned  # before the next ones are read
    if inner is None:
        raise ValueError("gram needs at least one block")
    inner[~wanted_pairs(len(inner), split)] = 0.0
    distance, spoilt = distances_from_inner(inner, split)
    if spoilt:
        sums = np.zeros(len(spoilt))
        for base, tuned in blocks():
            add_squared_distances(tuned, spoilt, sums)
            del base, tuned
        i, j = np.array(spoilt).T
        distance[i, j] = distance[j, i] = sums
    return Gram(inner, distance)


def wanted_pairs(models: int, split: int) -> np.ndarray:
    """Return a mask (N, N) of bool with the pairs that a split selects; a split of 0 selects all.

    >>> wanted_pairs(3, 2).astype(int)
    array([[1, 0, 1],
           [0, 1, 1],
           [1, 1, 1]])
    """
    if split == 0:
        return np.ones((models, models), dtype=bool)
    is_new = np.arange(models) >= split
    return np.not_equal.outer(is_new, is_new) | np.eye(models, dtype=bool)


def split_among(some: Sequence[int], split: int) -> int:
    """Return the split that selects the same pairs among a subset of the models, given by ascending positions.

    >>> split_among([1, 3, 4], 2), split_among([1, 3], 0), split_among([3, 4], 2)
    (1, 0, 2)
    """
    if split == 0:
        return 0
    # All models are old, or all are new: a split behind the last selects only the pairs i = j.
    return sum(model < split for model in some) or len(some)


def distances_from_inner(inner: np.ndarray, split: int = 0) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return squared distances computed from inner products, and the pairs i < j for which they are inaccurate.

    >>> distances_from_inner(np.array([[4.0, 1.0], [1.0, 9.0]]))[0]
    array([[ 0., 11.],
           [11.,  0.]])
    """
    square = np.diagonal(inner)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported by the caller
        size = square[:, None] + square[None, :]
        distance = np.maximum(size - 2.0 * inner, 0.0)
    np.fill_diagonal(distance, 0.0)
    wanted = wanted_pairs(len(inner), split)
    distance[~wanted] = 0.0
    spoilt = np.triu(wanted & (distance <= CANCELLATION * size), 1) & (size > 0)
    return distance, [(int(i), int(j)) for i, j in np.argwhere(spoilt)]
