"""make_predictor: the predictors by name, and the terms of their predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError, did_you_mean
from mergekern.prediction.additive import TaskEffectsRegressor
from mergekern.prediction.forest import ForestRegressor
from mergekern.prediction.linear import LinearMetricRegressor
from mergekern.prediction.pearson import PearsonRegressor
from mergekern.prediction.published import scale_to


@dataclass(frozen=True)
class PredictorKind:
    """A predictor that can be asked for by name.

    Attributes:
        description: what it is, in one line.
        make: class of the estimator.
        defaults: options that differ from the estimator's own defaults.
        uses_metrics: whether a pair needs a value of every metric.
    """

    description: str
    make: Callable[..., Any]
    defaults: dict[str, Any]
    uses_metrics: bool = True


PREDICTORS = {
    "dense": PredictorKind("the study's dense fit", PearsonRegressor, {"penalty": None, "solver": "adam"}),
    "sparse": PredictorKind("the study's L1 fit", PearsonRegressor, {"penalty": "l1", "solver": "adam"}),
    "linear": PredictorKind("ridge on clipped standardised metrics", LinearMetricRegressor, {}),
    "forest": PredictorKind("randomised trees on the metrics", ForestRegressor, {}),
    "additive": PredictorKind("an effect of each model, no metric", TaskEffectsRegressor, {}, uses_metrics=False),
    "additive+metrics": PredictorKind(
        "effects of the models, metrics on what they leave", TaskEffectsRegressor, {"metrics": True}
    ),
}


def predictor_kind(kind: str) -> PredictorKind:
    """Return a predictor's entry in `PREDICTORS`.

    Raises:
        PredictionError: an unknown predictor.
    """
    if kind not in PREDICTORS:
        raise PredictionError(
            f"no predictor {kind!r}{did_you_mean(kind, PREDICTORS)}; there are {', '.join(PREDICTORS)}"
        )
    return PREDICTORS[kind]


def make_predictor(kind: str, options: Mapping[str, Any] | None = None) -> Any:
    """Return an unfitted scikit-learn regressor.

    "dense" and "sparse" are the study's fits (`PearsonRegressor`), "linear" and "forest" predict from metrics alone,
    "additive" from the names of the models alone, "additive+metrics" from both. The names are given as `pairs` to `fit`
    and `predict`, or are the index of X, as in `MetricTable.to_pandas()`.

    Args:
        kind: one of `PREDICTORS`.
        options: parameters of the estimator, which replace the predictor's defaults; for example {"solver": "exact"}
            for the study's fits.

    Raises:
        PredictionError: an unknown predictor or option.

    >>> make_predictor("sparse", {"alpha": 0.5})
    PearsonRegressor(alpha=0.5, solver='adam')
    """
    entry = predictor_kind(kind)
    known = entry.make._get_param_names()  # type: ignore[attr-defined]
    for name in options or ():
        if name not in known:
            raise PredictionError(
                f"the predictor {kind!r} has no option {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}"
            )
    return entry.make(**{**entry.defaults, **(options or {})})


def contributions(estimator: Any, X: pd.DataFrame, pairs: np.ndarray) -> pd.DataFrame:
    """Return the terms of each prediction of a fitted predictor; the terms of a row add up to its prediction.

    The columns are "mean" (the prediction for a pair of which nothing is known), "model_a" and "model_b" (the effects
    of the two models), and the metrics.
    """
    if isinstance(estimator, TaskEffectsRegressor):
        terms = estimator.contributions(X, pairs)
    else:
        values = _metric_terms(estimator, X)
        terms = np.column_stack([np.full(len(X), estimator.intercept_), np.zeros((len(X), 2)), values])
    return pd.DataFrame(terms, columns=["mean", "model_a", "model_b", *X.columns], index=X.index)


def _metric_terms(estimator: Any, X: pd.DataFrame) -> np.ndarray:
    if isinstance(estimator, PearsonRegressor):
        return scale_to(X.to_numpy(dtype=np.float64), estimator.low_, estimator.high_) * estimator.coef_
    return estimator.contributions(X)
