"""Conformal intervals: widths from errors on held-out pairs, by prediction and number of measured models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError
from mergekern.prediction.error_scale import ErrorScale, fit_error_scale
from mergekern.prediction.pairs import task_codes
from mergekern.prediction.refits import Refits

# Number of folds that hold out single pairs, and rough number of folds that hold out all pairs of two models.
PAIR_FOLDS = 10
TASK_FOLDS = 40


@dataclass(frozen=True)
class ConformalIntervals:
    """Widths of conformal intervals, by how many of a pair's models (0, 1 or 2) have a measured merge.

    Attributes:
        level: share of pairs that the intervals shall cover.
        widths: half widths of the intervals where `scale` is 1, in predicted standard deviations if the estimator
            predicts them, else in the units of y; None if too few pairs could be held out.
        held_out: numbers of held-out pairs that the widths were computed from.
        limits: lowest and highest possible value of y, which no interval passes; None where there are none.
        scale: how the widths change with the prediction.

    >>> intervals = ConformalIntervals(0.8, {0: None, 1: 2.0, 2: 1.0}, {0: 2, 1: 30, 2: 30})
    >>> low, high = intervals.around(np.array([0.7, 0.9]), np.array([0.1, 0.1]), np.array([1, 2]))
    >>> low.round(2).tolist(), high.round(2).tolist()
    ([0.5, 0.8], [0.9, 1.0])
    """

    level: float
    widths: dict[int, float | None]
    held_out: dict[int, int]
    limits: tuple[float, float] | None = None
    scale: ErrorScale = field(default_factory=ErrorScale)

    def around(self, predictions: np.ndarray, sd: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (low, high), (n,) each, for predictions, their standard deviations and numbers of measured models."""
        half = self.half_widths(predictions, sd, measured)
        return self.cut(predictions - half), self.cut(predictions + half)

    def half_widths(self, predictions: np.ndarray, sd: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Return (n,) half widths before they are cut at the limits; NaN where they are not known."""
        widths = np.array([np.nan if (w := self.widths[int(k)]) is None else w for k in measured], dtype=np.float64)
        return widths * sd * self.scale.at(predictions)

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Return values, those beyond the limits replaced by them."""
        return values if self.limits is None else np.clip(values, *self.limits)


def conformal_intervals(
    estimator: Any, X: pd.DataFrame, y: np.ndarray, pairs: np.ndarray, *, level: float = 0.8, random_state: int = 0
) -> ConformalIntervals:
    """Measure an estimator's errors on held-out pairs, and return widths that cover them (Vovk 2015).

    This is cross-conformal prediction. Some folds hold out random pairs, whose models keep other merges; others hold
    out two models with all their pairs. A held-out pair counts for the number of its models that are in the training
    pairs. Errors are divided by predicted standard deviations, and by an `ErrorScale` that is fitted to the held-out
    pairs of two measured models (normalised conformal prediction, Papadopoulos et al. 2011): merges that are predicted
    to be bad often err more.

    Raises:
        PredictionError: level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise PredictionError(f"the level of intervals is a share between 0 and 1, not {level!r}")
    refits = Refits(estimator, X, y, pairs)
    rows = []
    for train, test in _folds(pairs, random_state):
        predictions = refits.predictions(train)[test]
        ratios = np.abs(y[test] - predictions) / refits.sd(train)[test]
        measured = np.isin(pairs[test], np.unique(pairs[train])).sum(1)
        rows.append(np.column_stack([measured, predictions, ratios]))
    measured, predictions, ratios = np.concatenate([np.empty((0, 3)), *rows]).T
    scale = fit_error_scale(predictions[measured == 2], ratios[measured == 2])
    ratios = ratios / scale.at(predictions)
    of_count = {count: ratios[measured == count] for count in range(3)}
    widths = {count: _quantile(found, level) for count, found in of_count.items()}
    return ConformalIntervals(level, widths, {count: len(found) for count, found in of_count.items()}, scale=scale)


def _folds(pairs: np.ndarray, random_state: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train, test) rows; they depend on the names and on random_state, not on the order of rows."""
    names, codes = task_codes(pairs)
    random = np.random.default_rng(random_state)
    order = np.lexsort(codes.T)
    for part in np.array_split(random.permutation(order), max(min(PAIR_FOLDS, len(order)), 1)):
        yield from _split(np.isin(np.arange(len(codes)), part))
    each = len(names) // 2
    for _ in range(math.ceil(TASK_FOLDS / max(each, 1))):
        shuffled = random.permutation(len(names))
        for couple in np.array_split(shuffled, max(each, 1)):
            yield from _split(np.any(np.isin(codes, couple), axis=1))


def _split(test: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if test.any() and (~test).sum() >= 2:
        yield np.flatnonzero(~test), np.flatnonzero(test)


def _quantile(ratios: np.ndarray, level: float) -> float | None:
    """Return the smallest ratio that covers `level` of the held-out pairs and one more; None if there are too few."""
    rank = math.ceil((len(ratios) + 1) * level)
    return None if rank > len(ratios) else float(np.sort(ratios)[rank - 1])
