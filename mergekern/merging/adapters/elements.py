"""What is done to each element of the arrays that are merged, A, B or ΔW: thin, elect a sign, add up. Float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekern.kernels.combine.reference import ordered_sum, uniform
from mergekern.merging.adapters.registry import MajoritySign


@dataclass(frozen=True)
class Elements:
    """What is done to each element, in PEFT's order: thinned, then the sign elected, then multiplied by the weights.

    Attributes:
        density: share of the elements that are kept, 0 < density ≤ 1.
        is_random: whether they are drawn, and what is kept divided by the density, or the largest are kept.
        elect: how the sign is elected: by the sum, or by the number of signs; None adds up all.
        seed: seed of what is drawn.
    """

    density: float = 1.0
    is_random: bool = False
    elect: MajoritySign | None = None
    seed: int = 0

    def kept(self, count: int) -> int | None:
        """Return how many of the largest magnitudes are kept; None where all elements are, or they are drawn."""
        return None if self.is_random or self.density == 1.0 else int(self.density * count)

    def thinned(self, values: np.ndarray, threshold: float, key: int, start: int = 0) -> np.ndarray:
        """Return the values with zeros where they are not kept.

        Args:
            values: any shape; its elements are those from `start` on of a flattened array.
            threshold: least magnitude that is kept.
            key: key of the random mask.
            start: index of the first element.

        >>> Elements(0.5, is_random=True, seed=1).thinned(np.ones(6), 0.0, key=7)
        array([2., 2., 0., 0., 2., 2.])
        """
        if self.density == 1.0:
            return values
        if not self.is_random:
            return np.where(np.abs(values) >= threshold, values, 0.0)
        drawn = uniform(key, start, values.size).reshape(values.shape)
        return np.where(drawn < int(self.density * 2.0**53), values / self.density, 0.0)

    def merged(self, values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """Return the weighted sum of thinned arrays, or the mean of those of the elected sign.

        The sign is elected of the arrays before their weights; it is + where their sum is 0. The mean divides by the
        number of arrays of that sign, not by their weights.

        >>> Elements().merged([np.array([1.0, 2.0]), np.array([3.0, -1.0])], [1.0, 2.0])
        array([7., 0.])
        >>> Elements(elect="total").merged([np.array([1.0, 2.0]), np.array([3.0, -1.0])], [1.0, 2.0])
        array([3.5, 2. ])
        """
        stacked = np.stack(values)
        weighted = stacked * np.array(weights).reshape(-1, *(1,) * (stacked.ndim - 1))
        if self.elect is None:
            return ordered_sum(weighted)
        votes = ordered_sum(stacked if self.elect == "total" else np.sign(stacked))
        agrees = np.sign(stacked) == np.where(votes >= 0, 1.0, -1.0)
        return ordered_sum(np.where(agrees, weighted, 0.0)) / np.maximum(agrees.sum(axis=0), 1)


def largest(values: np.ndarray, count: int | None) -> float:
    """Return the least of the `count` largest magnitudes; 0 where all are kept (None), infinite where none is.

    >>> largest(np.array([1.0, -3.0, 2.0]), 2)
    2.0
    """
    if count is None or count == 0:
        return 0.0 if count is None else np.inf
    magnitudes = np.abs(values).reshape(-1)
    return float(np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count])
