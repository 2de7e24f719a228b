"""Statistics of one tensor of N models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Bases(NamedTuple):
    """Singular vectors of one tensor of all models: (N, m, k), (N, n, k), (N, n, k) float32."""

    left_top: np.ndarray
    right_top: np.ndarray
    right_bottom: np.ndarray


@dataclass(frozen=True)
class SpectrumStatistics:
    """Of one matrix of N models, r = min(m, n), k = min(top_k, r).

    Attributes:
        values: (N, min(spectrum_k, r)) leading singular values, float64, descending.
        rank: (N,) number of singular values above 1e-7·σ₁.
        left_top_overlap, right_top_overlap, right_bottom_overlap: (N, N) squared Frobenius norms of the products of
            k-dimensional bases.
        k: dimension of the subspaces.
        bases: the singular vectors themselves, kept only in files.
    """

    values: np.ndarray
    rank: np.ndarray
    left_top_overlap: np.ndarray
    right_top_overlap: np.ndarray
    right_bottom_overlap: np.ndarray
    k: int
    bases: Bases | None = None

    def select(self, models: Sequence[int]) -> SpectrumStatistics:
        """Return those of some of the models, without singular vectors."""
        pairs = np.ix_(models, models)
        overlaps = self.left_top_overlap[pairs], self.right_top_overlap[pairs], self.right_bottom_overlap[pairs]
        return SpectrumStatistics(self.values[models], self.rank[models], *overlaps, self.k)


@dataclass(frozen=True)
class LayerStatistics:
    """Of one tensor of N models.

    Attributes:
        name, shape: of the tensor.
        inner: (N, N) float64 inner products of the task vectors (the Gram matrix).
        squared_distance: (N, N) float64 squared distances between them.
        spectrum: for matrices, where a metric asked for it.
    """

    name: str
    shape: tuple[int, ...]
    inner: np.ndarray
    squared_distance: np.ndarray
    spectrum: SpectrumStatistics | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether singular values and vectors are defined for it."""
        return len(self.shape) == 2

    @property
    def unchanged(self) -> np.ndarray:
        """(N,) bool: the models whose tensor equals that of the base."""
        return np.diagonal(self.inner) == 0.0

    def select(self, models: Sequence[int]) -> LayerStatistics:
        """Return those of some of the models, in this order."""
        pairs = np.ix_(models, models)
        spectrum = None if self.spectrum is None else self.spectrum.select(models)
        return LayerStatistics(self.name, self.shape, self.inner[pairs], self.squared_distance[pairs], spectrum)

    def without_bases(self) -> LayerStatistics:
        """Return the same without singular vectors, which take N·(m + 2n)·k·4 bytes and no metric reads."""
        if self.spectrum is None:
            return self
        return dataclasses.replace(self, spectrum=dataclasses.replace(self.spectrum, bases=None))
