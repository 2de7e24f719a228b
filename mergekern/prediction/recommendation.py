"""recommend: the best merge method for each pair, by predictors of several methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError
from mergekern.prediction.model import MergePredictor
from mergekern.tables.metric_table import MetricTable

NOT_PREDICTED = "not predicted by any method"


def recommend(predictors: Iterable[MergePredictor], table: MetricTable | pd.DataFrame) -> pd.DataFrame:
    """Return the method with the best score for each pair, the most promising pairs first.

    A score that was measured takes the place of its prediction. Of equal scores, the method named first is the best.

    Args:
        predictors: one for each method, all of one target.
        table: metrics of the pairs, or some rows of `MetricTable.to_pandas()`.

    Returns:
        A row for each pair, with the columns method, score (measured or predicted), low, high, measured (bool),
        runner_up (the second-best method), lead (score above the runner-up's), clear (whether the interval of the best
        method lies above that of the runner-up), remarks. Pairs that no method predicts are last, with method None.

    Raises:
        PredictionError: no predictors, two of one method, targets that differ, or metrics that the table lacks.
    """
    predictors = list(predictors)
    _check_comparable(predictors)
    index = (table.to_pandas() if isinstance(table, MetricTable) else table).index
    offers = [_offer(predictor.method, predictor.predict(table).reindex(index)) for predictor in predictors]
    best, second = _two_best([*offers, _no_offer(index)])
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


def _offer(method: str, predicted: pd.DataFrame) -> pd.DataFrame:
    """Return a method's offer for each pair: method (None without a score), score, low, high, measured, remarks.

    Args:
        method: name of the method.
        predicted: result of `MergePredictor.predict`, in the order of the pairs.
    """
    is_measured = predicted["measured"].notna()
    score = predicted["prediction"].mask(is_measured, predicted["measured"])
    return pd.DataFrame(
        {
            "method": np.where(score.notna(), np.array(method, dtype=object), np.array(None, dtype=object)),
            "score": score,
            "low": predicted["low"].mask(is_measured, predicted["measured"]),
            "high": predicted["high"].mask(is_measured, predicted["measured"]),
            "measured": is_measured,
            "remarks": predicted["remarks"],
        }
    )


def _no_offer(index: pd.Index) -> pd.DataFrame:
    """Return an empty offer, which is the runner-up of a single method."""
    nothing = {"method": None, "score": np.nan, "low": np.nan, "high": np.nan, "measured": False, "remarks": ""}
    return pd.DataFrame(nothing, index=index)


def _two_best(offers: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the offers with the largest and the second-largest score of each pair; NaN counts as the smallest."""
    pairs = len(offers[0])
    scores = np.column_stack([offer["score"].to_numpy() for offer in offers])
    # Stable, so that equal scores keep the order of the methods.
    order = np.argsort(-scores, axis=1, kind="stable")
    stacked = pd.concat(offers)
    best, second = (stacked.iloc[order[:, place] * pairs + np.arange(pairs)] for place in (0, 1))
    return best, second
