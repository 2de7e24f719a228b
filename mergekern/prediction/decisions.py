"""Questions to a recommendation: the best pair, partner, method and group, what to measure next, and when to stop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
from scipy.stats import norm

from mergekern.errors import PredictionError, did_you_mean

# Up to this many groups are all compared.
MOST_GROUPS = 20_000
# A measurement that promises less, a tenth of a point of accuracy, is not worth a merge.
TOLERANCE = 0.001


def best_pair(recommended: pd.DataFrame) -> pd.Series:
    """Return the row of the pair with the best score; `recommended` is what `recommend` returns."""
    return recommended.dropna(subset=["score"]).iloc[0]


def best_partners(recommended: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of a model's pairs, the best partner first.

    Raises:
        PredictionError: no pair has this model.
    """
    of_model = [model in pair for pair in recommended.index]
    if not any(of_model):
        known = sorted({str(name) for pair in recommended.index for name in pair})
        raise PredictionError(f"no model {model!r}{did_you_mean(model, known)} in the table")
    return recommended[of_model]


def best_method(recommended: pd.DataFrame, model_a: str, model_b: str) -> str | None:
    """Return the method recommended for a pair, in either order; None if none predicts it.

    Raises:
        PredictionError: there is no such pair.
    """
    of_both = best_partners(recommended, model_a)
    rows = of_both[[model_b in pair for pair in of_both.index]]
    if model_a == model_b or rows.empty:
        raise PredictionError(f"no pair of {model_a!r} and {model_b!r} in the table")
    return rows["method"].iloc[0]


def best_group(recommended: pd.DataFrame, k: int) -> list[str]:
    """Return the k models whose pairs have the largest mean score: candidates for one merge of all of them.

    All groups are compared if there are no more than 20,000; else the best pair is filled up greedily, and models are
    exchanged as long as that helps. A merge of k models is judged by its pairs: no merge of more than two is predicted.

    Raises:
        PredictionError: k is not from 2 to the number of models, or pairs without a score are in the way.

    >>> pairs = pd.MultiIndex.from_tuples([("a", "b"), ("a", "c"), ("b", "c")])
    >>> best_group(pd.DataFrame({"score": [0.7, 0.9, 0.6]}, index=pairs), 2)
    ['a', 'c']
    """
    names = sorted({str(name) for pair in recommended.index for name in pair})
    if not 2 <= k <= len(names):
        raise PredictionError(f"a group is of 2 to {len(names)} models, not {k}")
    scores = np.full((len(names), len(names)), -np.inf)
    np.fill_diagonal(scores, 0.0)
    known = recommended["score"].dropna()
    for pair, score in zip(known.index, known, strict=True):
        first, second = (names.index(str(name)) for name in pair)
        scores[first, second] = scores[second, first] = score

    def worth(group: tuple[int, ...]) -> float:
        return float(scores[np.ix_(group, group)].sum())

    if comb(len(names), k) <= MOST_GROUPS:
        found = max(combinations(range(len(names)), k), key=worth)
    else:
        found = _exchanged(worth, len(names), k)
    if not np.isfinite(worth(found)):
        raise PredictionError(f"no {k} models have a score for each of their pairs")
    return [names[model] for model in sorted(found)]


def _exchanged(worth: Callable[[tuple[int, ...]], float], models: int, k: int) -> tuple[int, ...]:
    group: tuple[int, ...] = max(combinations(range(models), 2), key=worth)
    while len(group) < k:
        group = max(((*group, model) for model in range(models) if model not in group), key=worth)
    while True:
        exchanges = (
            (*group[:place], *group[place + 1 :], model)
            for place in range(k)
            for model in range(models)
            if model not in group
        )
        better = max(exchanges, key=worth, default=group)
        if not worth(better) > worth(group):
            return group
        group = better


def next_measurements(recommended: pd.DataFrame, level: float = 0.8, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Return the unmeasured pairs by how far each is expected to beat the best measured pair, the most promising first.

    The expected improvement of a pair is the mean of max(0, score − best measured score), for a normal distribution
    about its score whose middle part of `level` is the conformal interval (Jones et al. 1998). NaN, at the top, where
    the width of the interval is not known. Measuring can stop when the first row's `worth_measuring` is False.

    Args:
        recommended: what `recommend` returns.
        level: level of the predictors' conformal intervals.
        tolerance: expected improvement below which a measurement is not worth it, in the units of the score.

    Returns:
        The index (model_a, model_b), and the columns method, score, expected_improvement, worth_measuring.
    """
    measured = recommended["measured"].to_numpy(dtype=bool)
    left = recommended[~measured & recommended["score"].notna()]
    best = float(recommended["score"][measured].max()) if measured.any() else -np.inf
    sd = ((left["high"] - left["low"]) / 2 / norm.isf((1 - level) / 2)).to_numpy(dtype=np.float64)
    lead = left["score"].to_numpy(dtype=np.float64) - best
    with np.errstate(divide="ignore", invalid="ignore"):
        z = lead / sd
        expected = np.where(sd > 0, lead * norm.cdf(z) + sd * norm.pdf(z), np.maximum(lead, 0))
    expected = np.where(np.isnan(sd) | ~np.isfinite(lead), np.nan, expected)
    found = left[["method", "score"]].assign(
        expected_improvement=expected, worth_measuring=np.isnan(expected) | (expected > tolerance)
    )
    return found.sort_values("expected_improvement", ascending=False, kind="stable", na_position="first")
