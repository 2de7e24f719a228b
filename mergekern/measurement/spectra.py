"""The statistics of the spectra of one tensor, from those of all models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mergekern.kernels.interference import Triplets
from mergekern.kernels.spectrum import Spectrum
from mergekern.statistics import Bases, SpectrumErrors, SpectrumStatistics


def spectrum_statistics(
    spectra: Sequence[Spectrum],
    overlap: Callable[[np.ndarray, None], np.ndarray],
    with_bases: bool,
    interference: Callable[[Triplets], np.ndarray] | None = None,
) -> SpectrumStatistics:
    """Return the statistics of the spectra of one tensor of all models.

    Args:
        spectra: one for each model; missing bottom vectors are zeros. All or none have estimates of their errors.
        overlap: the kernel `overlap` of a backend.
        with_bases: whether the singular vectors are kept.
        interference: the kernel `interference`; None where no metric needs it.
    """
    values = np.stack([s.values for s in spectra])
    left_top, right_top = (_stack([getattr(s, side) for s in spectra]) for side in ("left_top", "right_top"))
    left_top_overlap, right_top_overlap = (overlap(side, None) for side in (left_top, right_top))
    errors = _errors(spectra)
    right_bottom_overlap = np.full_like(right_top_overlap, 0.0 if errors is None else np.nan)
    with_bottom = [i for i, s in enumerate(spectra) if s.right_bottom.any()]
    if with_bottom:
        among = np.ix_(with_bottom, with_bottom)
        right_bottom_overlap[among] = overlap(_stack([spectra[i].right_bottom for i in with_bottom]), None)
    bases = None
    if with_bases:
        bases = Bases(*(_stack([getattr(s, side) for s in spectra]) for side in Bases._fields))
    return SpectrumStatistics(
        values,
        np.array([s.rank for s in spectra]),
        left_top_overlap,
        right_top_overlap,
        right_bottom_overlap,
        k=spectra[0].left_top.shape[1],
        bases=bases,
        errors=errors,
        interference=None if interference is None else interference(triplets_of(values, left_top, right_top)),
    )


def triplets_of(values: np.ndarray, left_top: np.ndarray, right_top: np.ndarray) -> Triplets:
    """Return leading singular triplets, as many as there are values and vectors."""
    k = min(values.shape[1], left_top.shape[2])
    return Triplets(values[:, :k], left_top[..., :k], right_top[..., :k])


def _errors(spectra: Sequence[Spectrum]) -> SpectrumErrors | None:
    estimates = [spectrum.estimates for spectrum in spectra if spectrum.estimates is not None]
    if not estimates:
        return None
    return SpectrumErrors(np.stack([each.values for each in estimates]), np.stack([each.vectors for each in estimates]))


def _stack(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Return (d, k) vectors of N models as (N, d, k), each vector contiguous, as kernels read them."""
    return np.stack([one.T for one in vectors]).transpose(0, 2, 1)
