"""The method for each pair: the best overall, and another one only where that paid on pairs that were held out.

Taking the method with the largest prediction for each pair takes the largest of several errors. On the study's data,
with m = 20 measured merges, that costs 0.24 points beside the best of four methods, always taking the method that was
best on the measured merges 0.10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergekern.prediction.model import MergePredictor
from mergekern.prediction.pairs import pair_key

# One-sided 99 %, since many thresholds are tried: a rule pays if its mean gain on held-out pairs is above 0 by that
# many standard errors.
STANDARD_ERRORS = 2.33
# Predictions that held-out pairs do not bear out keep their order by this slope.
LEAST_SLOPE = 0.05
# Parts of the measured pairs, each chosen for by the others.
FOLDS = 10


@dataclass(frozen=True)
class MethodRule:
    """The rule by which `recommend` chooses a method.

    Attributes:
        best: number of the method that is best overall on the pairs measured by all methods.
        threshold: another method is taken where its predicted lead over the best exceeds this; infinite for never.
        share: share of the predicted lead that was found on held-out pairs, in [0, 1].
        compared: number of pairs measured by all methods.
    """

    best: int
    threshold: float
    share: float
    compared: int


def method_rule(predictors: Sequence[MergePredictor], levels: Sequence[float]) -> MethodRule:
    """Return the rule that the measured pairs support.

    Args:
        predictors: one for each method.
        levels: mean predicted score of each method, which decide where no pair was measured by all methods.
    """
    measured, predicted = _on_measured_pairs(predictors)
    compared = len(measured)
    scores = measured.mean().to_numpy() if compared else np.nan_to_num(np.array(levels), nan=-np.inf)
    best = int(np.argmax(scores))
    both = measured.index.intersection(predicted.index)
    return _rule(best, measured.loc[both].to_numpy(), predicted.loc[both].to_numpy(), compared)


def method_regrets(predictors: Sequence[MergePredictor]) -> dict[str, float]:
    """Return what each way to choose a method costs on pairs measured by all methods, in the units of the score.

    The cost of a choice is the pair's best score less its score by the chosen method, averaged over the pairs. Each
    pair is predicted by fits without it, and in turn a tenth of the pairs is chosen for by a rule that the others gave.
    The ways are "recommended" (the rule of `recommend`), "largest prediction", "always the best method" (the one that
    is best on the other pairs), "random method" and "oracle", which knows the scores. Empty for one method, or for
    fewer than ten such pairs.
    """
    measured, predicted = _on_measured_pairs(predictors)
    both = sorted(measured.index.intersection(predicted.index))
    if len(predictors) < 2 or len(both) < FOLDS:
        return {}
    y, found = measured.loc[both].to_numpy(), predicted.loc[both].to_numpy()
    rows, overall, recommended = np.arange(len(y)), np.zeros(len(y), dtype=int), np.zeros(len(y), dtype=int)
    for test in np.array_split(np.random.default_rng(0).permutation(len(y)), FOLDS):
        train = np.delete(rows, test)
        rule = _rule(int(y[train].mean(0).argmax()), y[train], found[train], len(train))
        leads = found[test] - found[test][:, [rule.best]]
        overall[test] = rule.best
        recommended[test] = np.where(leads.max(1) > rule.threshold, leads.argmax(1), rule.best)
    most = y.max(1)
    ways = {"recommended": recommended, "largest prediction": found.argmax(1), "always the best method": overall}
    regrets = {name: float((most - y[rows, chosen]).mean()) for name, chosen in ways.items()}
    return {**regrets, "random method": float((most - y.mean(1)).mean()), "oracle": 0.0}


def _on_measured_pairs(predictors: Sequence[MergePredictor]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return measured scores and predictions of held-out pairs, pairs × methods, of pairs that all methods have."""
    measured, predicted = (
        pd.DataFrame({number: _by_pair(series) for number, series in enumerate(every)}, dtype=np.float64).dropna()
        for every in ([p.measured for p in predictors], [p.held_out for p in predictors])
    )
    return measured, predicted


def _rule(best: int, measured: np.ndarray, predicted: np.ndarray, compared: int) -> MethodRule:
    """Return the rule that (pairs, methods) scores and predictions support, where one method is the best overall."""
    if len(measured) < 3 or measured.shape[1] < 2:
        return MethodRule(best, float("inf"), 0.0, compared)
    leads, gains = (values - values[:, [best]] for values in (predicted, measured))
    other = leads.argmax(1)
    rows = np.arange(len(measured))
    return MethodRule(best, *_threshold(leads[rows, other], gains[rows, other]), compared)


def _threshold(leads: np.ndarray, gains: np.ndarray) -> tuple[float, float]:
    """Return the threshold with the surest mean gain, and the share of the predicted leads above it that was found."""
    surest, threshold, share = 0.0, float("inf"), 0.0
    for candidate in np.unique(np.append(leads[leads > 0], 0.0)):
        above = leads > candidate
        gained = np.where(above, gains, 0.0)
        sure = gained.mean() - STANDARD_ERRORS * gained.std(ddof=1) / np.sqrt(len(gained))
        if above.any() and sure > surest:
            surest, threshold = float(sure), float(candidate)
            share = float(np.clip(gains[above].mean() / leads[above].mean(), 0, 1))
    return threshold, share


def calibration(predictor: MergePredictor) -> tuple[float, float]:
    """Return (centre, slope) of the line that brings predictions to the scores that held-out pairs had, slope ≤ 1.

    Of many predictions, the largest is likely to be one that errs upwards. The line takes back what held-out pairs say
    of that. It never makes predictions more extreme, and never turns their order around.
    """
    both = pd.DataFrame(
        {"y": _by_pair(predictor.measured), "found": _by_pair(predictor.held_out)}, dtype=float
    ).dropna()
    centre, spread = float(both["found"].mean()), float(both["found"].var(ddof=0))
    if len(both) < 3 or not spread > 0:
        return 0.0, 1.0
    products = ((both["found"] - centre) * (both["y"] - both["y"].mean())).mean()
    return centre, float(np.clip(products / spread, LEAST_SLOPE, 1))


def _by_pair(series: pd.Series) -> pd.Series:
    """Return the values with sorted tuples of names as their index."""
    return pd.Series({tuple(sorted(pair_key(pair))): value for pair, value in series.items()}, dtype=np.float64)
