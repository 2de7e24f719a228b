"""Statistics of single coordinates: where the task vectors of N models agree in sign, and their sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Share of the coordinates of a tensor that trimming keeps, as TIES does by default.
DENSITY = 0.2
# The statistics of pairs, in the order of the attributes.
OF_PAIRS = ("shared", "opposite", "kept_shared", "kept_opposite", "absolute")


@dataclass(frozen=True)
class CoordinateStatistics:
    """Statistics of the coordinates of one tensor of N models; float64, counts are whole numbers.

    Attributes:
        sums: (N,) Σ τ_i; of a block of pairs of different models (0,).
        shared: (N, N) coordinates that both models change.
        opposite: (N, N) those that they change in opposite directions.
        kept_shared, kept_opposite: (N, N) the same among the coordinates that both keep, when each keeps its `DENSITY`
            largest changes.
        absolute: (N, N) Σ |τ_i|·|τ_j|.
    """

    sums: np.ndarray
    shared: np.ndarray
    opposite: np.ndarray
    kept_shared: np.ndarray
    kept_opposite: np.ndarray
    absolute: np.ndarray

    @property
    def of_pairs(self) -> list[np.ndarray]:
        """The statistics of pairs, in the order of `OF_PAIRS`."""
        return [getattr(self, name) for name in OF_PAIRS]

    def select(self, models: Sequence[int]) -> CoordinateStatistics:
        """Return the statistics of some of the models, in this order."""
        pairs = np.ix_(models, models)
        return CoordinateStatistics(self.sums[models], *(matrix[pairs] for matrix in self.of_pairs))

    def between(self, split: int) -> CoordinateStatistics:
        """Return the statistics of the pairs of the first `split` models with the others."""
        pairs = slice(None, split), slice(split, None)
        return CoordinateStatistics(self.sums[:0], *(matrix[pairs] for matrix in self.of_pairs))

    def check(self) -> None:
        """Raise ValueError where these are no counts of signs."""
        for shared, opposite, name in (
            (self.shared, self.opposite, "opposite"), (self.kept_shared, self.kept_opposite, "kept_opposite"),
        ):  # fmt: skip
            if (opposite < 0).any() or (opposite > shared).any():
                raise ValueError(f"{name!r} counts more coordinates than there are, or fewer than none")
        if (self.kept_shared > self.shared).any() or (self.absolute < 0).any():
            raise ValueError("more coordinates are kept than changed, or a sum of magnitudes is negative")


def kept(count: int) -> int:
    """Return how many of the coordinates of a tensor trimming keeps, ties with the smallest of them not counted.

    >>> kept(10), kept(3)
    (2, 1)
    """
    return max(1, int(DENSITY * count))


def zero_coordinates(models: int) -> CoordinateStatistics:
    """Return the statistics of a tensor that no model changes."""
    return CoordinateStatistics(np.zeros(models), *(np.zeros((models, models)) for _ in OF_PAIRS))
