"""From the spectra of one tensor of all models to their statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mergekern.kernels.spectrum import Spectrum
from mergekern.statistics import Bases, SpectrumStatistics


def spectrum_statistics(
    spectra: Sequence[Spectrum], overlap: Callable[[np.ndarray, None], np.ndarray], with_bases: bool
) -> SpectrumStatistics:
    """Return the statistics of the spectra of one tensor of all models.

    Args:
        spectra: of each model; bottom vectors that it lacks are zeros.
        overlap: the kernel.
        with_bases: whether the singular vectors are wanted.
    """
    bases = Bases(*(np.stack([getattr(s, side) for s in spectra]) for side in Bases._fields))
    left_top, right_top = overlap(bases.left_top, None), overlap(bases.right_top, None)
    right_bottom = np.zeros_like(right_top)
    with_bottom = np.flatnonzero(bases.right_bottom.any(axis=(1, 2)))
    if len(with_bottom):
        right_bottom[np.ix_(with_bottom, with_bottom)] = overlap(bases.right_bottom[with_bottom], None)
    return SpectrumStatistics(
        np.stack([s.values for s in spectra]),
        np.array([s.rank for s in spectra]),
        left_top,
        right_top,
        right_bottom,
        k=bases.left_top.shape[2],
        bases=bases if with_bases else None,
    )
