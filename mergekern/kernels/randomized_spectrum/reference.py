"""The float64 oracle of `randomized_spectrum`: the leading part of a full SVD, and how far a result is from it."""

from __future__ import annotations

import numpy as np
import torch

from mergekern.kernels.spectrum import Estimates, Spectrum


def errors(base: torch.Tensor | None, tuned: torch.Tensor, found: Spectrum) -> Estimates:
    """Return the true errors of a spectrum of tuned − base, in the form of the estimates.

    >>> from mergekern.kernels.spectrum import reference
    >>> tuned = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> found = reference.spectrum(None, tuned, top_k=2)
    >>> errors(None, tuned, found._replace(values=found.values + 0.5)).values
    array([0.5, 0.5, 0.5])
    """
    delta = tuned.double() if base is None else tuned.double() - base.double()
    left, values, right = np.linalg.svd(delta.numpy(), full_matrices=False)
    k = found.left_top.shape[1]
    outside = [
        np.linalg.norm(side.T.astype(np.float64) @ rest, axis=1)
        for side, rest in ((found.left_top, left[:, k:]), (found.right_top, right[k:].T))
    ]
    return Estimates(np.abs(values[: len(found.values)] - found.values), np.maximum(*outside))
