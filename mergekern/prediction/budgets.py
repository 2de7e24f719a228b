"""budget_curve: how well the other pairs are predicted after so many merges were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError
from mergekern.prediction.correlation import pearson_r
from mergekern.prediction.pairs import complete_pairs
from mergekern.prediction.predictors import make_predictor, predictor_kind
from mergekern.prediction.prior import OWN, PRIOR_COLUMNS
from mergekern.prediction.refits import fit_estimator, predict_pairs
from mergekern.prediction.splitters import MeasuredPairs

BUDGETS = (0, 5, 10, 20, 40)
# Without a fit, or with the mean of the measured pairs: what a predictor stands beside.
NO_FIT, MEAN, RANDOM = "own accuracy, no fit", "mean of the measured", "random"
COLUMNS = ("r", "rmse", "regret")
Rows: TypeAlias = tuple[np.ndarray, np.ndarray]


def budget_curve(
    X: Any,
    y: Any,
    pairs: Any = None,
    *,
    target: str = "accuracy",
    kinds: Iterable[str] = ("prior+additive", "additive"),
    budgets: Sequence[int] = BUDGETS,
    n_repeats: int = 10,
    random_state: int = 0,
) -> pd.DataFrame:
    """Return how well predictors do on the pairs that are not measured, by the number of measured merges.

    The measured merges are drawn at random, the same ones for every predictor. With 0 of them, "prior+additive" is the
    prior, and a predictor that knows nothing without merges has no row. Predictors of model scores have no row where X
    has none. Budgets that leave fewer than three pairs to predict are left out.

    Args:
        X: (n, columns) frame of metrics and model scores; it names the pairs, or `pairs` does.
        y: (n,) measured scores.
        pairs: (n, 2) names; the index of X if None.
        target: what y is.
        kinds: names of predictors, of `PREDICTORS`.
        budgets: numbers of measured merges.
        n_repeats: draws for each number.
        random_state: decides the draws.

    Returns:
        The index (predictor, merges), and the means over the draws of r (Pearson's), rmse (in the units of y) and
        regret (what the pair with the largest prediction falls short of the best of the pairs). The baselines are
        "own accuracy, no fit" (where X has it), "mean of the measured" (no r and no regret: it ranks nothing) and
        "random", whose regret is the expected one.

    Raises:
        PredictionError: an unknown predictor, or a budget below 0.

    >>> pairs = [(a, b) for a in "abcdefgh" for b in "abcdefgh" if a < b]
    >>> size = dict(zip("abcdefgh", np.linspace(0.4, 0.5, 8)))
    >>> X = pd.DataFrame({"own_accuracy_mean": 0.9}, index=pd.MultiIndex.from_tuples(pairs))
    >>> found = budget_curve(X, [size[a] + size[b] for a, b in pairs], kinds=["additive"], budgets=[10, 20])
    >>> bool(found.loc[("additive", 20), "r"] > found.loc[("additive", 10), "r"] > 0.8)
    True
    """
    data = complete_pairs(X, y, pairs)
    if any(budget < 0 for budget in budgets):
        raise PredictionError(f"merges are 0 or more, not {min(budgets)}")
    has_own = OWN in data.X
    candidates = {}
    for kind in kinds:
        entry = predictor_kind(kind)
        if not entry.uses_model_scores:
            candidates[kind] = make_predictor(kind), data.X
        elif has_own:
            scores = data.X[[name for name in PRIOR_COLUMNS if name in data.X]]
            candidates[kind] = make_predictor(kind, target=target), scores
    rows: dict[tuple[str, int], list[list[float]]] = {}
    for budget in budgets:
        if len(data.y) - budget < 3:
            continue
        for train, test in _draws(data.pairs, budget, n_repeats, random_state):
            left = data.y[test]
            for kind, (estimator, columns) in candidates.items():
                if budget or predictor_kind(kind).uses_model_scores:
                    fitted = fit_estimator(estimator, columns.iloc[train], data.y[train], data.pairs[train])
                    found = predict_pairs(fitted, columns.iloc[test], data.pairs[test])
                    rows.setdefault((kind, budget), []).append(_figures(found, left))
            if has_own:
                rows.setdefault((NO_FIT, budget), []).append(_figures(data.X[OWN].to_numpy()[test], left))
            if budget:
                mean = float(np.sqrt(((left - data.y[train].mean()) ** 2).mean()))
                rows.setdefault((MEAN, budget), []).append([np.nan, mean, np.nan])
            rows.setdefault((RANDOM, budget), []).append([np.nan, np.nan, float(left.max() - left.mean())])
    means = {key: np.mean(values, axis=0) for key, values in rows.items()}
    order = [*candidates, NO_FIT, MEAN, RANDOM]
    keys = sorted(means, key=lambda key: (order.index(key[0]), key[1]))
    index = pd.MultiIndex.from_tuples(keys, names=["predictor", "merges"])
    return pd.DataFrame([means[key] for key in keys], index, COLUMNS)


def _draws(
    pairs: np.ndarray, budget: int, n_repeats: int, random_state: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield (measured, other) rows."""
    if budget == 0:
        return [(np.zeros(0, dtype=int), np.arange(len(pairs)))]
    folds = MeasuredPairs(budget, n_repeats, random_state).folds(pairs)
    return ((fold.train, fold.test) for fold in folds)


def _figures(predictions: np.ndarray, y: np.ndarray) -> list[float]:
    """Return r, rmse and the regret of the best pair."""
    rmse = float(np.sqrt(((predictions - y) ** 2).mean()))
    return [pearson_r(predictions, y), rmse, float(y.max() - y[np.argmax(predictions)])]
