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
    measured, predicted = (
        pd.DataFrame({number: _by_pair(series) for number, series in enumerate(every)}, dtype=np.float64).dropna()
        for every in ([p.measured for p in predictors], [p.held_out for p in predictors])
    )
    compared = len(measured)
    scores = measured.mean().to_numpy() if compared else np.nan_to_num(np.array(levels), nan=-np.inf)
    best = int(np.argmax(scores))
    both = [pair for pair in measured.index if pair in set(predicted.index)]
    if len(both) < 3 or len(predictors) < 2:
        return MethodRule(best, float("inf"), 0.0, compared)
    leads = predicted.loc[both].to_numpy()
    leads = leads - leads[:, [best]]
    gains = measured.loc[both].to_numpy()
    gains = gains - gains[:, [best]]
    other = leads.argmax(1)
    rows = np.arange(len(both))
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
