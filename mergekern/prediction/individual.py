"""Correlations of single metrics with scores, tested by permuting tasks, since pairs that share a task depend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from mergekern.prediction.correlation import ROUNDING
from mergekern.prediction.pairs import as_target, check_aligned, check_once, need_pairs, task_codes


def individual_correlations(
    X: Any, y: Any, pairs: Any = None, *, n_permutations: int = 999, random_state: int = 0
) -> pd.DataFrame:
    """Correlate each metric alone with y.

    Pairs that share a task are not independent, which makes the usual p-values far too small. These p-values come from
    permutations of the tasks' names (Mantel's test). `p_value` is the share of permutations in which this metric
    correlates as strongly, `p_adjusted` the share in which any metric does (Westfall and Young). A bound on
    `p_adjusted` bounds the chance of one or more false discoveries among all metrics.

    Args:
        X: (n, metrics) values, with names if a frame; a metric is correlated over the pairs where it has a value.
        y: (n,) values; pairs without a value take no part.
        pairs: (n, 2) names; the index of X if None.
        n_permutations: number of permutations; p-values are at least 1 / (1 + n_permutations).
        random_state: decides the permutations.

    Returns:
        A frame with a row for each metric, the strongest first, and the columns r, rho, p_value, p_adjusted and n
        (number of pairs with a value). Constant metrics have NaN.

    >>> pairs = [(a, b) for a in "abcdefg" for b in "abcdefg" if a < b]
    >>> size = {name: number**2 for number, name in enumerate("abcdefg")}
    >>> X = pd.DataFrame({"rest": [n % 7 for n in range(21)], "sum": [size[a] + size[b] for a, b in pairs]})
    >>> individual_correlations(X, X["sum"] * 2.0, pairs).round(3)
              r    rho  p_value  p_adjusted   n
    sum   1.000  1.000    0.002       0.002  21
    rest  0.393  0.368    0.120       0.413  21
    """
    names = need_pairs(X, pairs)
    check_once(names)
    check_aligned(X, y)
    target = as_target(y, len(names))
    X = X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X)).add_prefix("x")
    values = X.to_numpy(dtype=np.float64)
    tasks, codes = task_codes(names)
    measured = np.full((len(tasks), len(tasks)), np.nan)
    measured[codes[:, 0], codes[:, 1]] = measured[codes[:, 1], codes[:, 0]] = target
    found = _correlations(values, target)
    random = np.random.default_rng(random_state)
    drawn = np.empty((n_permutations, len(found)))
    for row in drawn:
        renamed = random.permutation(len(tasks))[codes]
        row[:] = np.abs(_correlations(values, measured[renamed[:, 0], renamed[:, 1]]))
    # Without this margin, rounding would decide where a permutation changes nothing.
    reached = np.abs(found) - 1e-9
    p_value = (1 + (drawn >= reached).sum(0)) / (1 + n_permutations)
    strongest = np.nan_to_num(drawn).max(1, initial=0)
    p_adjusted = (1 + (strongest[:, None] >= reached).sum(0)) / (1 + n_permutations)
    both = np.isfinite(values) & np.isfinite(target)[:, None]
    out = pd.DataFrame(
        {
            "r": found,
            "rho": [
                _correlations(rankdata(column[rows])[:, None], rankdata(target[rows]))[0]
                for column, rows in zip(values.T, both.T, strict=True)
            ],
            "p_value": np.where(np.isnan(found), np.nan, p_value),
            "p_adjusted": np.where(np.isnan(found), np.nan, p_adjusted),
            "n": both.sum(0),
        },
        index=X.columns,
    )
    return out.sort_values("r", key=np.abs, ascending=False, kind="stable")


def _correlations(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's r of each column of X with y, over the rows where both have values; NaN for constant columns."""
    both = np.isfinite(X) & np.isfinite(y)[:, None]
    count = np.maximum(both.sum(0), 1)
    x = np.where(both, X, 0.0)
    target = np.where(both, np.nan_to_num(y)[:, None], 0.0)
    sizes = [np.abs(values).max(0, initial=0) * np.sqrt(count) for values in (x, target)]
    x = np.where(both, x - x.sum(0) / count, 0.0)
    target = np.where(both, target - target.sum(0) / count, 0.0)
    lengths = [np.sqrt((values**2).sum(0)) for values in (x, target)]
    varies = np.all([length > ROUNDING * size for length, size in zip(lengths, sizes, strict=True)], axis=0)
    return np.where(varies, (x * target).sum(0) / np.where(varies, lengths[0] * lengths[1], 1.0), np.nan)
