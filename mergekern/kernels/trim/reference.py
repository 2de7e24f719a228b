"""The float64 oracle of `trim`: a full sort."""

from __future__ import annotations

import numpy as np
import torch


def kth_largest(base: torch.Tensor | None, tuned: torch.Tensor, k: int) -> float:
    """Return the k-th largest magnitude of tuned − base.

    >>> kth_largest(None, torch.tensor([1.0, -3.0, 2.0, 3.0]), 3)
    2.0
    """
    delta = tuned.to(torch.float64).numpy().ravel()
    if base is not None:
        delta = delta - base.to(torch.float64).numpy().ravel()
    return float(np.sort(np.abs(delta))[-k])
