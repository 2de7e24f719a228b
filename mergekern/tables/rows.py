"""Rows of pairs, as files hold them, checked and made into matrices.

Memory follows the rows of a file, never what its metadata claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergekern._internal.text import listed
from mergekern.metrics import is_metric, metric_of

# A table has a row for every pair, or nearly: one with fewer than one pair in so many would fill memory with NaN.
SPARSEST = 16
SMALL = 10_000  # pairs that any table may have
# How far a value may be outside of the range of its metric, by rounding: of the larger of 1 and the bound.
SLACK = 1e-3


@dataclass(frozen=True)
class Rows:
    """R rows of pairs.

    Attributes:
        models: N names, in the order of the matrices.
        first, second: (R,) positions of the two models of each row.
        tensors: names of the tensors that rows are of.
        tensor: (R,) position of each row's tensor, −1 where the row is of whole models.
    """

    models: Sequence[str]
    first: np.ndarray
    second: np.ndarray
    tensors: Sequence[str]
    tensor: np.ndarray

    def check(self) -> None:
        """Check names and pairs.

        Raises:
            ValueError: no rows, a model with itself, a pair twice, or too few pairs for so many models.
        """
        if not len(self.first):
            raise ValueError("it has no rows, one for each pair of models")
        check_models(self.models)
        if (same := np.flatnonzero(self.first == self.second)).size:
            name = self.models[int(self.first[same[0]])]
            raise ValueError(f"row {same[0] + 1}: a pair is of two models, not {name!r} with itself")
        self._check_once()
        check_size(len(self.models), 1 + len(self.tensors), len(self.first))

    def matrix(self, values: np.ndarray, tensor: int = -1) -> np.ndarray:
        """Return (N, N) of the (R,) values, symmetric, from the rows of one tensor; NaN where there is no row."""
        matrix = np.full((len(self.models), len(self.models)), np.nan)
        rows = self.tensor == tensor
        first, second = self.first[rows], self.second[rows]
        matrix[first, second] = matrix[second, first] = values[rows]
        return matrix

    def lacking(self) -> str | None:
        """Return a note on the pairs that have no row of whole models; None where all have one."""
        rows = self.tensor < 0
        there = np.eye(len(self.models), dtype=bool)
        there[self.first[rows], self.second[rows]] = there[self.second[rows], self.first[rows]] = True
        i, j = np.nonzero(np.triu(~there, 1))
        if not len(i):
            return None
        pairs = listed(f"({self.models[a]}, {self.models[b]})" for a, b in zip(i.tolist(), j.tolist(), strict=True))
        return f"{len(i):,} pairs have no row in the file, and no value of any metric: {pairs}"

    def _check_once(self) -> None:
        count = len(self.models)
        low, high = np.minimum(self.first, self.second), np.maximum(self.first, self.second)
        keys = ((self.tensor.astype(np.int64) + 1) * count + low) * count + high
        order = np.argsort(keys, kind="stable")
        again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if again.size:
            row, twice = sorted((int(order[again[0]]), int(order[again[0] + 1])))
            of_tensor = f" of tensor {self.tensors[int(self.tensor[row])]!r}" if self.tensor[row] >= 0 else ""
            raise ValueError(
                f"rows {row + 1} and {twice + 1} are both of the pair {self.models[int(self.first[row])]!r} and "
                f"{self.models[int(self.second[row])]!r}{of_tensor} (either order is the same pair); keep one of them"
            )


def check_models(models: Sequence[str]) -> None:
    """Raise ValueError where names are not of two or more models, all different.

    >>> check_models(["a", "b", "a"])
    Traceback (most recent call last):
    ValueError: two models are named 'a'
    """
    if len(models) < 2:
        raise ValueError(f"it is of {len(models)} models; a table compares two or more")
    if "" in models:
        raise ValueError("a model has no name")
    seen: set[str] = set()
    for name in models:
        if name in seen:
            raise ValueError(f"two models are named {name!r}")
        seen.add(name)


def check_size(models: int, matrices: int, values: int) -> None:
    """Raise ValueError where matrices of all pairs would be much larger than what a file holds of them.

    Args:
        models: N.
        matrices: how many (N, N) matrices one metric has: 1, and 1 for each tensor.
        values: how many values or rows there are, of pairs in these matrices.
    """
    pairs = models * (models - 1) // 2
    if pairs * matrices > SMALL + SPARSEST * values:
        raise ValueError(
            f"it names {models:,} models, which are {pairs:,} pairs{f' of {matrices - 1:,} tensors' * (matrices > 1)}, "
            f"and has {values:,} rows: fewer than one pair in {SPARSEST}; keep the models whose pairs were measured"
        )


def check_values(
    models: Sequence[str],
    values: Mapping[str, np.ndarray],
    layers: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Raise ValueError where a value of a metric of the catalogue is infinite, or outside of the metric's range."""
    for name, whole in values.items():
        if not is_metric(name):
            continue
        least, most = metric_of(name).range
        low, high = least - SLACK * max(1.0, abs(least)), most + SLACK * max(1.0, abs(most))
        for tensor, matrix in ((None, whole), *layers.get(name, {}).items()):
            outside = np.argwhere(np.isinf(matrix) | (matrix < low) | (matrix > high))
            if len(outside):
                i, j = outside[0]
                of_tensor = "" if tensor is None else f" in tensor {tensor!r}"
                raise ValueError(
                    f"{name} of {models[i]!r} and {models[j]!r}{of_tensor} is {matrix[i, j]:g}; this metric is "
                    f"from {least:g} to {most:g}"
                )
