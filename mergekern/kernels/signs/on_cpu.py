"""`signs` on the CPU: the C++ kernels, or NumPy where the extension was not built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.gram import Blocks, wanted_pairs
from mergekern.kernels.native import address, extension
from mergekern.kernels.signs import Signs

# Elements of a block of the NumPy path. The float64 differences of 20 models take 20 MB.
_NUMPY_BLOCK = 1 << 17


def native(blocks: Blocks, thresholds: Sequence[float], threads: int = 1, split: int = 0) -> Signs:
    """Return the agreement of signs by the C++ kernels; see the package's docstring.

    >>> from mergekern.kernels.gram import whole
    >>> native(whole(None, [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])]), [0.0, 0.0]).opposite
    array([[0., 1.],
           [1., 0.]])
    """
    models = len(thresholds)
    counts, absolute, sums = np.zeros((4, models, models), dtype=np.int64), np.zeros((models,) * 2), np.zeros(models)
    for base, tuned in blocks():
        there = (0, 0) if base is None else address(base)
        addresses, size = [address(t) for t in tuned], tuned[0].numel()
        extension.add_sign_counts(there, addresses, size, split, list(thresholds), threads, counts, sums)
        extension.add_gram(there, addresses, size, split, threads, absolute, absolute=True)
        del base, tuned  # before the next ones are read
    shared, opposite, kept_shared, kept_opposite = counts.astype(np.float64)
    return Signs(sums, shared, opposite, kept_shared, kept_opposite, absolute)


def numpy(blocks: Blocks, thresholds: Sequence[float], threads: int = 1, split: int = 0) -> Signs:
    """Return the agreement of signs by NumPy, a part of a block at a time; it computes all pairs for any split."""
    models = len(thresholds)
    found = Signs(np.zeros(models), *np.zeros((5, models, models)))
    for base, tuned in blocks():
        for start in range(0, tuned[0].numel(), _NUMPY_BLOCK):
            part = slice(start, start + _NUMPY_BLOCK)
            delta = np.stack([t[part].to(torch.float64).numpy() for t in tuned])
            if base is not None:
                delta -= base[part].to(torch.float64).numpy()
            _add(delta, thresholds, found)
        del base, tuned
    for matrix in found[1:]:
        matrix[~wanted_pairs(models, split)] = 0.0
    return found


def _add(delta: np.ndarray, thresholds: Sequence[float], found: Signs) -> None:
    """Add what a part (N, d) of the task vectors gives."""
    size, kept = np.abs(delta), np.abs(delta) >= np.asarray(thresholds)[:, None]
    for signs, shared, opposite in (
        (np.sign(delta), found.shared, found.opposite),
        (np.sign(delta) * kept, found.kept_shared, found.kept_opposite),
    ):
        both, agreement = np.abs(signs) @ np.abs(signs).T, signs @ signs.T
        shared += both
        opposite += (both - agreement) / 2
    found.absolute[:] += size @ size.T
    found.sums[:] += delta.sum(axis=1)
