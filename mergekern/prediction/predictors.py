"""make_predictor: the predictors by name, the one that suits what is known, and the terms of their predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from mergekern.errors import PredictionError, did_you_mean
from mergekern.prediction.additive import TaskEffectsRegressor
from mergekern.prediction.forest import ForestRegressor
from mergekern.prediction.linear import LinearMetricRegressor
from mergekern.prediction.pairs import find_pairs
from mergekern.prediction.pearson import PearsonRegressor
from mergekern.prediction.prior import OWN, PriorRegressor
from mergekern.prediction.probe_sum import ProbeSumRegressor
from mergekern.prediction.published import scale_to


@dataclass(frozen=True)
class PredictorKind:
    """A predictor that can be asked for by name.

    Attributes:
        description: what it is, in one line.
        make: class of the estimator.
        defaults: options that differ from the estimator's own defaults.
        uses_metrics: whether a pair needs a value of every metric.
        uses_model_scores: whether a pair needs model scores, which are no metrics.
        uses_probes: whether a pair needs merge probes by the method.
    """

    description: str
    make: Callable[..., Any]
    defaults: dict[str, Any]
    uses_metrics: bool = True
    uses_model_scores: bool = False
    uses_probes: bool = False


def available_kind(columns: Iterable[str], measured: int, target: str = "accuracy") -> str:
    """Return the name of the predictor that suits what is known: "prior", "prior+additive" or "additive+metrics".

    Model scores come first. Where merges are measured, the models' effects correct them; without model scores, effects
    are fitted to y itself, and metrics are added where a test lets them in.

    Args:
        columns: names of the columns of the pairs.
        measured: number of measured merges.
        target: what is predicted; the prior knows accuracy and normalized_accuracy.

    Raises:
        PredictionError: nothing is known: no merge was measured, and there are no model scores.

    >>> available_kind(["own_accuracy_mean", "base_accuracy_mean", "stable_rank"], measured=0)
    'prior'
    """
    if OWN in columns and target in ("accuracy", "normalized_accuracy"):
        return "prior+additive" if measured else "prior"
    if not measured:
        raise PredictionError(
            f"no merge was measured, and without model scores nothing is known of {target}: list the models' own "
            "accuracy and the base's (mergekern.model_scores; --models on the command line), or measure merges"
        )
    return "additive+metrics"


class AutoRegressor(RegressorMixin, BaseEstimator):
    """The predictor that suits what is known of the pairs: model scores, then effects of models, then metrics.

    See `available_kind`. Model scores are columns of X with their names, as `model_scores` returns them.

    Args:
        target: what y is; the prior is for "accuracy" and "normalized_accuracy".

    Attributes:
        kind_: name of the predictor that is used.
        model_: the fitted predictor.

    >>> pairs = pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])
    >>> X = pd.DataFrame({"own_accuracy_mean": [0.9, 0.8], "base_accuracy_mean": [0.5, 0.6]}, index=pairs)
    >>> AutoRegressor().fit(X).kind_, AutoRegressor().fit(X, [0.8, 0.7]).kind_
    ('prior', 'prior+additive')
    """

    def __init__(self, target: str = "accuracy") -> None:
        self.target = target

    def fit(self, X: Any, y: Any = None, pairs: Any = None) -> AutoRegressor:
        """Fit to (n,) targets of (n, 2) pairs; without y, X must have model scores.

        Raises:
            PredictionError: neither y nor model scores.
        """
        columns = [str(name) for name in getattr(X, "columns", ())]
        if y is None and OWN not in columns:
            raise PredictionError(
                f"requires y to be passed, but the target y is None: X has no column {OWN} to predict from; join "
                "mergekern.model_scores(models, source)"
            )
        self.kind_ = available_kind(columns, 0 if y is None else np.size(np.asarray(y)), self.target)
        target = self.target if PREDICTORS[self.kind_].uses_model_scores else None
        names = find_pairs(X, pairs)
        names = find_pairs(y) if names is None and y is not None else names
        self.model_ = make_predictor(self.kind_, target=target)
        self.model_.fit(X, y, pairs=names)
        self.n_features_in_ = self.model_.n_features_in_
        if hasattr(self.model_, "feature_names_in_"):
            self.feature_names_in_ = self.model_.feature_names_in_
        return self

    def predict(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) predictions of (n, 2) pairs."""
        check_is_fitted(self)
        return self.model_.predict(X, pairs=pairs)

    def predict_sd(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) standard deviations about the predictions, as the used predictor has them."""
        check_is_fitted(self)
        return self.model_.predict_sd(X, pairs=pairs)

    def contributions(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n, 3 + p) terms that sum to the prediction, as the used predictor has them."""
        check_is_fitted(self)
        return self.model_.contributions(X, pairs)


PREDICTORS = {
    "dense": PredictorKind("the study's dense fit", PearsonRegressor, {"penalty": None, "solver": "adam"}),
    "sparse": PredictorKind("the study's L1 fit", PearsonRegressor, {"penalty": "l1", "solver": "adam"}),
    "linear": PredictorKind("ridge on clipped standardised metrics", LinearMetricRegressor, {}),
    "forest": PredictorKind("randomised trees on the metrics", ForestRegressor, {}),
    "additive": PredictorKind("an effect of each model, no metric", TaskEffectsRegressor, {}, uses_metrics=False),
    "additive+metrics": PredictorKind(
        "effects of the models, metrics on what they leave", TaskEffectsRegressor, {"metrics": True}
    ),
    "prior": PredictorKind(
        "accuracies of models and base by a fixed rule", PriorRegressor, {}, uses_metrics=False, uses_model_scores=True
    ),
    "prior+additive": PredictorKind(
        "the prior, corrected by effects of the models",
        PriorRegressor,
        {"effects": True},
        uses_metrics=False,
        uses_model_scores=True,
    ),
    "probes": PredictorKind(
        "merge probes, summed with fixed weights",
        ProbeSumRegressor,
        {},
        uses_metrics=False,
        uses_probes=True,
    ),
    "probes+metrics": PredictorKind(
        "merge probes and metrics, summed with fixed weights, corrected by measured merges",
        ProbeSumRegressor,
        {"metrics": True},
        uses_probes=True,
    ),
    "auto": PredictorKind("what suits the things known: prior, effects, metrics", AutoRegressor, {}),
}

# What predicts where no predictor is asked for.
DEFAULT_KIND = "auto"


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


def make_predictor(kind: str, options: Mapping[str, Any] | None = None, *, target: str | None = None) -> Any:
    """Return an unfitted scikit-learn regressor.

    "dense" and "sparse" are the study's fits (`PearsonRegressor`), "linear" and "forest" predict from metrics alone,
    "additive" from the names of the models alone, "additive+metrics" from both. "prior" predicts from `model_scores`
    without any measured merge, "prior+additive" corrects that by measured merges, "probes" sums merge probes with fixed
    weights, "probes+metrics" adds metrics and corrects the sum by measured merges, and "auto" takes what suits the
    columns and scores given. The names are given as `pairs` to `fit` and `predict`, or are the index of X, as in
    `MetricTable.to_pandas()`.

    Args:
        kind: one of `PREDICTORS`.
        options: parameters of the estimator, which replace the predictor's defaults; for example {"solver": "exact"}
            for the study's fits.
        target: "accuracy" or "normalized_accuracy", for "prior", "prior+additive" and "auto"; the same as the option.

    Raises:
        PredictionError: an unknown predictor or option.

    >>> make_predictor("sparse", {"alpha": 0.5})
    PearsonRegressor(alpha=0.5, solver='adam')
    """
    entry = predictor_kind(kind)
    known = entry.make._get_param_names()  # type: ignore[attr-defined]
    if target is not None:
        options = {**(options or {}), "target": target}
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
    if isinstance(estimator, (TaskEffectsRegressor, PriorRegressor, AutoRegressor)):
        terms = estimator.contributions(X, pairs)
    else:
        values = _metric_terms(estimator, X)
        terms = np.column_stack([np.full(len(X), estimator.intercept_), np.zeros((len(X), 2)), values])
    return pd.DataFrame(terms, columns=["mean", "model_a", "model_b", *X.columns], index=X.index)


def _metric_terms(estimator: Any, X: pd.DataFrame) -> np.ndarray:
    if isinstance(estimator, PearsonRegressor):
        return scale_to(X.to_numpy(dtype=np.float64), estimator.low_, estimator.high_) * estimator.coef_
    return estimator.contributions(X)
