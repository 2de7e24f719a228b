"""Statistics of one tensor of N models, a layer, and sums over layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np

from mergekern.errors import NonFiniteError
from mergekern.statistics.coordinates import CoordinateStatistics


class Bases(NamedTuple):
    """Singular vectors of one tensor of N models, an orthonormal basis for each model: float32.

    Attributes:
        left_top: (N, m, k) of the k largest singular values.
        right_top: (N, n, k) of the k largest singular values.
        right_bottom: (N, n, k) of the k smallest of all min(m, n).
    """

    left_top: np.ndarray
    right_top: np.ndarray
    right_bottom: np.ndarray


class SpectrumErrors(NamedTuple):
    """Estimated errors of the spectra of one tensor of N models, from a randomised factorisation.

    Attributes:
        values: (N, s) float64, of each leading singular value, absolute.
        vectors: (N, k) float64 in [0, 1], sine of the angle between each leading singular vector and the span of the
            true k leading ones; 1 where the span is not determined.
    """

    values: np.ndarray
    vectors: np.ndarray

    def select(self, models: Sequence[int]) -> SpectrumErrors:
        """Return those of some of the models, in this order."""
        return SpectrumErrors(self.values[models], self.vectors[models])


@dataclass(frozen=True)
class SpectrumStatistics:
    """Spectra of one m × n matrix of N models, and overlaps of their subspaces; r = min(m, n), k = min(top_k, r).

    Attributes:
        values: (N, min(spectrum_k, r)) leading singular values, float64, descending.
        rank: (N,) numbers of singular values above 1e-7·σ₁.
        left_top_overlap, right_top_overlap, right_bottom_overlap: (N, N) squared Frobenius norms of the products of
            k-dimensional bases. Of randomised factorisations the bottom ones are NaN.
        k: dimension of the subspaces.
        bases: the singular vectors; None where they are not wanted, and once they are in a file.
        errors: None for exact factorisations.
        interference: (N, N) singular task interference of the k leading triplets; None where no metric needs it.
    """

    values: np.ndarray
    rank: np.ndarray
    left_top_overlap: np.ndarray
    right_top_overlap: np.ndarray
    right_bottom_overlap: np.ndarray
    k: int
    bases: Bases | None = None
    errors: SpectrumErrors | None = None
    interference: np.ndarray | None = None

    def select(self, models: Sequence[int]) -> SpectrumStatistics:
        """Return the statistics of some of the models, in this order, without singular vectors."""
        pairs = np.ix_(models, models)
        overlaps = self.left_top_overlap[pairs], self.right_top_overlap[pairs], self.right_bottom_overlap[pairs]
        errors = None if self.errors is None else self.errors.select(models)
        interference = None if self.interference is None else self.interference[pairs]
        return SpectrumStatistics(
            self.values[models], self.rank[models], *overlaps, self.k, errors=errors, interference=interference
        )


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one tensor of N models.

    Attributes:
        name, shape: name and shape of the tensor.
        inner: (N, N) float64 inner products of the task vectors (the Gram matrix).
        squared_distance: (N, N) float64 squared distances between them.
        spectrum: None for tensors that are not matrices, and where no metric needs it.
        rounding: (N,) float64, how much of each squared length can be rounding to a narrower dtype, at most all of it;
            None where that is nothing.
        coordinates: where the task vectors agree in sign; None where no metric needs it.
    """

    name: str
    shape: tuple[int, ...]
    inner: np.ndarray
    squared_distance: np.ndarray
    spectrum: SpectrumStatistics | None = None
    rounding: np.ndarray | None = None
    coordinates: CoordinateStatistics | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor is 2-D, so that it has singular values and vectors."""
        return len(self.shape) == 2

    @property
    def unchanged(self) -> np.ndarray:
        """(N,) bool: whether the tensor of a model equals the base, as it is or rounded as the model is stored."""
        return np.diagonal(self.inner) == 0.0

    def select(self, models: Sequence[int]) -> LayerStatistics:
        """Return the statistics of some of the models, in this order."""
        pairs = np.ix_(models, models)
        spectrum = None if self.spectrum is None else self.spectrum.select(models)
        rounding = None if self.rounding is None else self.rounding[models]
        coordinates = None if self.coordinates is None else self.coordinates.select(models)
        return LayerStatistics(
            self.name, self.shape, self.inner[pairs], self.squared_distance[pairs], spectrum, rounding, coordinates
        )

    def with_rounding(self, energy: np.ndarray | None) -> LayerStatistics:
        """Return the same statistics with how much of each squared length can be rounding.

        Args:
            energy: (N,) squared length of what rounding changes, infinity where it can be all; None for nothing.
        """
        if energy is None:
            return self
        return dataclasses.replace(self, rounding=np.minimum(energy, np.diagonal(self.inner)))

    def without_bases(self) -> LayerStatistics:
        """Return the same statistics without singular vectors, which take N·(m + 2n)·k·4 bytes and no metric reads."""
        if self.spectrum is None:
            return self
        return dataclasses.replace(self, spectrum=dataclasses.replace(self.spectrum, bases=None))


class LayerSums:
    """Inner products and squared distances of N whole vectors, which are the sums of those of their layers."""

    layers: tuple[LayerStatistics, ...]

    @cached_property
    def inner(self) -> np.ndarray:
        """(N, N) inner products of the whole vectors: the sum over all layers. Read-only.

        Raises:
            NonFiniteError: a sum overflows float64.
        """
        return self._total([layer.inner for layer in self.layers])

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(N, N) squared distances between the whole vectors. Read-only.

        Raises:
            NonFiniteError: a sum overflows float64.
        """
        return self._total([layer.squared_distance for layer in self.layers])

    def _total(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            total = reduce(np.add, parts)
        if not np.isfinite(total).all():
            bad = np.flatnonzero(~np.isfinite(total).all(axis=1))
            models = getattr(self, "models", [f"model {model + 1}" for model in range(len(total))])
            raise overflow([models[model] for model in bad])
        return _read_only(total)


def overflow(models: Sequence[str]) -> NonFiniteError:
    """Return the error that says whose squared lengths, or distances, are beyond float64."""
    return NonFiniteError(
        f"{', '.join(models)}: values so large that the sum of their squares over all tensors overflows float64. "
        "Repair or leave out those checkpoints."
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    # A view, since the sum over a single layer is that layer's own array.
    view = array.view()
    view.flags.writeable = False
    return view
