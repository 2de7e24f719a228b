"""The float64 oracle of `spectrum`: a full SVD."""

from __future__ import annotations

import numpy as np
import torch

from mergekern.kernels.spectrum import RANK_TOLERANCE, Spectrum, zero_spectrum


def spectrum(base: torch.Tensor | None, tuned: torch.Tensor, top_k: int = 10, spectrum_k: int = 100) -> Spectrum:
    """Return the spectrum of tuned − base; see the package's docstring.

    >>> spectrum(None, torch.diag(torch.tensor([3.0, 2.0, 0.0]))).values
    array([3., 2., 0.])
    """
    delta = tuned.to(torch.float64)
    if base is not None:
        delta = delta - base.to(torch.float64)
    if not delta.any():
        return zero_spectrum((delta.shape[0], delta.shape[1]), top_k, spectrum_k)
    left, values, right = np.linalg.svd(delta.numpy(), full_matrices=False)
    r = len(values)
    k = min(top_k, r)
    return Spectrum(
        values[:spectrum_k],
        int((values > RANK_TOLERANCE * values[0]).sum()),
        left[:, :k].astype(np.float32),
        right[:k].T.astype(np.float32),
        right[r - k :].T.astype(np.float32),
    )
