"""recommend: the best merge method for each pair, by predictors of several methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError
from mergekern.prediction.method_choice import MethodRule, calibration, method_rule
from mergekern.prediction.model import MergePredictor
from mergekern.tables.metric_table import MetricTable

NOT_PREDICTED = "not predicted by any method"


def recommend(predictors: Iterable[MergePredictor], table: MetricTable | pd.DataFrame) -> pd.DataFrame:
    """Return the method to take for each pair, the most promising pairs first.

    It is the method that is best overall, on the pairs measured by all methods (else by its mean predicted score), and
    another one only where it was measured to be better, or where its predicted lead exceeds a threshold that paid on
    held-out pairs (`method_choice`). A score that was measured takes the place of its prediction. Predicted scores are
    drawn to their mean as far as held-out pairs say that the most promising ones promised too much. Of equal scores,
    the method named first is the best.

    Args:
        predictors: one for each method, all of one target.
        table: metrics of the pairs, or some rows of `MetricTable.to_pandas()`.

    Returns:
        A row for each pair, with the columns method, score (measured or predicted), low, high, measured (bool),
        runner_up (the best of the other methods), lead (score above the runner-up's, negative where a larger prediction
        is not trusted), clear (whether the method's interval lies above that of the runner-up), remarks. Pairs that no
        method predicts are last, with method None.

    Raises:
        PredictionError: no predictors, two of one method, targets that differ, or metrics that the table lacks.
    """
    predictors = list(predictors)
    _check_comparable(predictors)
    index = (table.to_pandas() if isinstance(table, MetricTable) else table).index
    predicted = [predictor.uncut(table).reindex(index) for predictor in predictors]
    offers = [_offer(predictor, found) for predictor, found in zip(predictors, predicted, strict=True)]
    rule = method_rule(predictors, [float(offer["score"].mean()) for offer in offers])
    raw = np.column_stack([found["prediction"].to_numpy() for found in predicted])
    best, second = map(_with_intervals, _chosen([*offers, _no_offer(index)], rule, raw))
    recommended = pd.DataFrame(
        {
            **{name: best[name] for name in ("method", "score", "low", "high", "measured")},
            "runner_up": second["method"],
            "lead": best["score"] - second["score"],
            "clear": best["low"] > second["high"],
            "remarks": best["remarks"].where(best["score"].notna(), NOT_PREDICTED),
        }
    )
    return recommended.sort_values("score", ascending=False, kind="stable", na_position="last")


def _check_comparable(predictors: Sequence[MergePredictor]) -> None:
    methods = [predictor.method for predictor in predictors]
    targets = {predictor.target for predictor in predictors}
    if not predictors or len(set(methods)) < len(methods):
        raise PredictionError(f"one predictor for each method is needed to recommend one, not {methods}")
    if len(targets) > 1:
        raise PredictionError(f"scores of different targets cannot be compared: {', '.join(sorted(targets))}")


def _offer(predictor: MergePredictor, predicted: pd.DataFrame) -> pd.DataFrame:
    """Return a method's offer for each pair.

    Its columns are method (None without a score), score, half (of the width of the interval), lowest and highest (the
    limits of the score), measured, remarks. Predictions are drawn to their mean by `calibration` before anything is
    cut off at the limits: the interval reaches beyond the score on both sides, unless the score is a limit itself.

    Args:
        predictor: predictor of the method's scores.
        predicted: result of `MergePredictor.uncut`, in the order of the pairs.
    """
    centre, slope = calibration(predictor)
    lowest, highest = predictor.intervals.limits or (-np.inf, np.inf)
    is_measured = predicted["measured"].notna()
    prediction = predicted["prediction"]
    drawn = centre + slope * (prediction - centre) if slope < 1 else prediction
    score = drawn.clip(lowest, highest).mask(is_measured, predicted["measured"])
    return pd.DataFrame(
        {
            "method": np.where(score.notna(), np.array(predictor.method, dtype=object), np.array(None, dtype=object)),
            "score": score,
            "half": predicted["half"].mask(is_measured, 0.0),
            "lowest": lowest,
            "highest": highest,
            "measured": is_measured,
            "remarks": predicted["remarks"],
        }
    )


def _with_intervals(offer: pd.DataFrame) -> pd.DataFrame:
    """Return an offer with the columns low and high, cut off at the limits of the score."""
    ends = {"low": offer["score"] - offer["half"], "high": offer["score"] + offer["half"]}
    return offer.assign(**{name: end.clip(offer["lowest"], offer["highest"]) for name, end in ends.items()})


def _no_offer(index: pd.Index) -> pd.DataFrame:
    """Return an empty offer, which is the runner-up of a single method."""
    nothing: dict[str, Any] = {"method": None, "score": np.nan, "half": np.nan, "lowest": -np.inf, "highest": np.inf}
    nothing |= {"measured": False, "remarks": ""}
    return pd.DataFrame(nothing, index=index)


def _chosen(offers: Sequence[pd.DataFrame], rule: MethodRule, raw: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the offers of the chosen method and of the best other one for each pair; NaN counts as the smallest score.

    Args:
        offers: one for each method, and an empty one, each in the order of the pairs.
        rule: which method is the best overall, and when another one is taken.
        raw: (pairs, methods) predictions as they are.
    """
    pairs = len(offers[0])
    scores = np.column_stack([offer["score"].to_numpy() for offer in offers])
    measured = np.column_stack([offer["measured"].to_numpy(dtype=bool) for offer in offers])
    rows = np.arange(pairs)
    trusted = measured.copy()
    trusted[:, rule.best] = True
    lead = raw - raw[:, [rule.best]]
    with np.errstate(invalid="ignore"):
        trusted[:, :-1] |= lead > rule.threshold
    # Without a prediction of the best method, any other one is better than none.
    trusted |= np.isnan(scores[:, [rule.best]])
    # Stable, so that equal scores keep the order of the methods, the best overall first.
    order = [rule.best, *(place for place in range(len(offers)) if place != rule.best)]
    worth = np.where(trusted, np.nan_to_num(scores, nan=-np.inf), -np.inf)[:, order]
    chosen = np.array(order)[worth.argmax(1)]
    # Empty only where no method has a score.
    chosen = np.where(np.isneginf(worth.max(1)), len(offers) - 1, chosen)
    others = np.nan_to_num(scores, nan=-np.inf)
    others[rows, chosen] = -np.inf
    second = np.where(np.isneginf(others.max(1)), len(offers) - 1, others.argmax(1))
    stacked = pd.concat(offers)
    first_offer, second_offer = (stacked.iloc[places * pairs + rows].copy() for places in (chosen, second))
    switched = (chosen != rule.best) & ~measured[rows, chosen] & ~np.isnan(scores[:, rule.best])
    # Of such leads, the share that held-out pairs had is promised, and no more.
    excess = (1 - rule.share) * np.maximum(first_offer["score"].to_numpy() - scores[:, rule.best], 0)
    first_offer["score"] -= np.where(switched, excess, 0.0)
    return first_offer, second_offer
