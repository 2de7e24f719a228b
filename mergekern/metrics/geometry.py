"""Task-vector geometry: lengths and angles of whole task vectors, from their Gram matrix g = Σ_l G_l."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mergekern.statistics import ZooStatistics


class Vectors(Protocol):
    """Statistics of N vectors: (N, N) inner products and squared distances."""

    @property
    def inner(self) -> np.ndarray: ...
    @property
    def squared_distance(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Geometry:
    """Lengths and mutual positions of N vectors.

    Attributes:
        inner: (N, N) inner products.
        norm: (N,) lengths.
        squared_distance: (N, N).
    """

    inner: np.ndarray
    norm: np.ndarray
    squared_distance: np.ndarray

    @staticmethod
    def from_statistics(statistics: Vectors) -> Geometry:
        """Return the geometry of whole task vectors, of one tensor of them, or of any other vectors."""
        return Geometry(statistics.inner, np.sqrt(np.diagonal(statistics.inner)), statistics.squared_distance)

    @property
    def one_minus_cosine(self) -> np.ndarray:
        """(N, N) 1 − cos, to full relative accuracy also for nearly parallel vectors; NaN for a zero vector.

        (‖a − b‖² − (‖a‖ − ‖b‖)²) / 2‖a‖‖b‖, in which nothing cancels that the squared distance has kept.
        """
        norm = np.where(self.norm > 0, self.norm, np.nan)
        a, b = norm[:, None], norm[None, :]
        # Both sides over 4, so that 2‖a‖‖b‖ does not overflow where the squared lengths do not.
        return np.clip((self.squared_distance / 4 - ((a - b) / 2) ** 2) / (a * (b / 2)), 0.0, 2.0)

    @property
    def cosine(self) -> np.ndarray:
        """(N, N); NaN for a zero vector."""
        return 1.0 - self.one_minus_cosine

    @property
    def distance(self) -> np.ndarray:
        """(N, N)."""
        return np.sqrt(self.squared_distance)

    @property
    def magnitude_ratio(self) -> np.ndarray:
        """(N, N) shorter length / longer length; NaN for a zero vector."""
        norm = np.where(self.norm > 0, self.norm, np.nan)
        return np.minimum.outer(norm, norm) / np.maximum.outer(norm, norm)


def task_vector_cosine_similarity(statistics: ZooStatistics) -> np.ndarray:
    """g_ij / √(g_ii g_jj)."""
    return Geometry.from_statistics(statistics).cosine


def task_vector_l2_distance(statistics: ZooStatistics) -> np.ndarray:
    """√(g_ii + g_jj − 2 g_ij)."""
    return Geometry.from_statistics(statistics).distance


def task_vector_dot_product(statistics: ZooStatistics) -> np.ndarray:
    """g_ij."""
    return Geometry.from_statistics(statistics).inner


def weight_space_angle(statistics: ZooStatistics) -> np.ndarray:
    """arccos of the cosine, in degrees; as 2 arcsin √((1 − cos)/2), which is accurate for small angles."""
    return np.degrees(2.0 * np.arcsin(np.sqrt(Geometry.from_statistics(statistics).one_minus_cosine / 2.0)))


def task_vector_magnitude_ratio(statistics: ZooStatistics) -> np.ndarray:
    """Shorter length / longer length; NaN where a vector is zero."""
    return Geometry.from_statistics(statistics).magnitude_ratio
