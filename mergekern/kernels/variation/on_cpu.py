"""`variation` on the CPU: the C++ kernels, or NumPy where the extension was not built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.native import address, extension
from mergekern.kernels.variation import reference


def variances(base: torch.Tensor, tuned: Sequence[torch.Tensor], threads: int = 1) -> np.ndarray:
    """Return the variance of each element over the models, (D,); see the package's docstring.

    >>> variances(torch.zeros(2), [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])])
    array([1., 0.])
    """
    if extension is None:
        return reference.variances(base, tuned)
    return extension.variances(address(base), [address(tensor) for tensor in tuned], base.numel(), threads)


def energies(base: torch.Tensor, tuned: Sequence[torch.Tensor], least: float, threads: int = 1) -> np.ndarray:
    """Return the sum of squares of each model over the elements of at least some variance, (N,).

    The sum over more elements than a segment is that of the sums over segments, in their order.
    """
    if extension is None:
        return reference.energies(base, tuned, least)
    tensors = [address(tensor) for tensor in tuned]
    return np.array(extension.energies(address(base), tensors, base.numel(), least, threads))


def changes(base: torch.Tensor, tuned: Sequence[torch.Tensor], epsilon: float, threads: int = 1) -> np.ndarray:
    """Return how many elements each model changes together with others, and how many alone, (2, N)."""
    if extension is None:
        return reference.changes(base, tuned, epsilon)
    tensors = [address(tensor) for tensor in tuned]
    return np.array(extension.changes(address(base), tensors, base.numel(), epsilon, threads)).reshape(2, -1)
