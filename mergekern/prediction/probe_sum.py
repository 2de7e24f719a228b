"""ProbeSumRegressor: merges ranked by merge probes, or by solo probes, base and metrics, with fixed weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mergekern.errors import PredictionError
from mergekern.prediction.linear import ClippedScaler, LinearMetricRegressor
from mergekern.prediction.pairs import UnnamedPairsWarning, find_pairs, task_codes

# Weights of standardised columns, chosen on zoos of 12 multilayer perceptrons and 12 convolutional networks, by mean r
# over 4 methods. With direct probes, loss and accuracy together have .82 and .80 of the normalised accuracy of unseen
# pairs; solo and base losses beside them take away up to .23. `python/probe_study.py` computes them.
DIRECT = {"direct_loss_mean": -1.0, "direct_accuracy_mean": 1.0}
SOLO = {"solo_loss_mean": -1.0, "base_loss_mean": -0.5}
# Methods that leave a single model nearly unchanged (tsv, weight average) have solo probes that say little. How far two
# task vectors point in one direction, and how long they are, is then what there is.
WITH_METRICS = {
    **SOLO, "solo_accuracy_mean": 1.0, "task_vector_cosine_similarity": 0.5, "task_vector_l2_distance": -0.5,
}  # fmt: skip
# The sum keeps its order where few measured merges contradict it: its slope is at least this share of the ratio of the
# standard deviations.
LEAST_SLOPE = 0.05
# Measured merges of so many models can hold out groups of models, and tell what columns say of models without any.
FEWEST_MODELS = 6


def probe_weights(columns: Iterable[str], method: str | None = None, metrics: bool = False) -> dict[str, float]:
    """Return the columns that the sum is of, with their weights: of direct probes, or else of solo probes and the base.

    Args:
        columns: names of the columns that there are.
        method: whose probes; None where there are probes by one method only.
        metrics: whether metrics stand beside solo probes.

    Raises:
        PredictionError: probes by several methods, and none is named.

    >>> probe_weights(["stable_rank", "solo_loss_mean[ties]", "solo_loss_mean[tsv]", "base_loss_mean"], "tsv")
    {'solo_loss_mean[tsv]': -1.0, 'base_loss_mean': -0.5}
    >>> probe_weights(["solo_loss_mean[tsv]", "direct_loss_mean[tsv]", "base_loss_mean"])
    {'direct_loss_mean[tsv]': -1.0}
    """
    names = [(str(name), *str(name).rstrip("]").partition("[")[::2]) for name in columns]
    methods = sorted({of for _, probe, of in names if of and (probe in DIRECT or probe in SOLO)})
    if method is None and len(methods) > 1:
        raise PredictionError(f"there are probes by {', '.join(methods)}; say which method is predicted: method=")
    for weights in (DIRECT, WITH_METRICS if metrics else SOLO):
        found = {name: weights[probe] for name, probe, of in names if probe in weights and of in ("", method or of)}
        if found:
            return found
    return {}


def own_columns(columns: Iterable[str], method: str | None = None) -> list[str]:
    """Return the columns that are no probes by another method.

    >>> own_columns(["stable_rank", "solo_loss_mean[ties]", "solo_loss_mean[tsv]"], "tsv")
    ['stable_rank', 'solo_loss_mean[tsv]']
    """
    return [name for name in map(str, columns) if method is None or name.endswith(f"[{method}]") or "[" not in name]


class ProbeSumRegressor(RegressorMixin, BaseEstimator):
    """Sum of standardised probes with fixed signs and weights, for models of which no merge was measured.

    A pair merges the better, the less loss and the more accuracy its direct probe has. Without direct probes, the sum
    is of the losses that a merge method adds to each model alone (solo probes), and of the base's losses on their
    tasks, with half the weight. Columns are standardised over the pairs of `fit`, limited to 3 standard deviations, and
    found by their names, as `merge_probes` gives them.

    Only a level and a slope are fitted. Without y they are 0 and 1: predictions then rank pairs, and are no accuracies.

    With `metrics=True`, accuracies of solo probes, cosine and L2 distance of task vectors have fixed weights beside the
    losses. From measured merges of six models on, ridge regression on all columns but probes by other methods corrects
    what level and slope leave, as far as groups of held-out models show that it helps
    (`LinearMetricRegressor(unseen=True)`).

    Args:
        method: whose probes are read, by the names of columns such as "solo_loss_mean[tsv]"; None where X has probes by
            one method only.
        metrics: whether to read the metrics too.

    Attributes:
        columns_: names of the columns that the sum is of.
        intercept_: prediction for a pair whose losses are all at their mean.
        slope_: change of the prediction as the sum grows by 1; not below 0.
        scaler_: standardises the columns.
        weights_of_columns_: their weights.
        correction_: what corrects the sum; None if nothing does.
        corrected_: names of the columns that it reads.

    >>> import pandas as pd
    >>> X = pd.DataFrame({"solo_loss_mean[tsv]": [0.1, 0.2, 0.6], "base_loss_mean": [2.0, 1.0, 3.0]})
    >>> ProbeSumRegressor().fit(X).predict(X).round(2).tolist()
    [0.93, 1.08, -2.0]
    >>> ProbeSumRegressor().fit(X, [0.9, 0.8, 0.5]).predict(X).round(2).tolist()
    [0.84, 0.86, 0.5]
    """

    def __init__(self, method: str | None = None, metrics: bool = False) -> None:
        self.method = method
        self.metrics = metrics

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        # Columns without names cannot be probes: all rows then have the mean of y as their prediction.
        tags.regressor_tags.poor_score = True
        return tags

    def fit(self, X: Any, y: Any = None, pairs: Any = None) -> ProbeSumRegressor:
        """Standardise the columns of X, and fit level and slope to (n,) targets if they are given.

        Raises:
            PredictionError: X has no column of probes and no y is given, or probes by several methods.
        """
        weights = probe_weights(getattr(X, "columns", ()), self.method, self.metrics)
        self.columns_ = list(weights)
        example = f"solo_loss_mean[{self.method or 'tsv'}]"
        measured = y is not None and np.size(np.asarray(y)) > 0
        if not (self.columns_ or measured):
            raise PredictionError(
                f"requires y to be passed, but the target y is None: X has no column of probes, such as {example}; "
                "join mergekern.merge_probes(..., direct=True, model_scores=True)"
            )
        if not self.columns_:
            said = f"X has no column such as {example}, so that the mean of y is predicted; join mergekern.merge_probes"
            warnings.warn(said, UnnamedPairsWarning, stacklevel=2)
        if measured:
            values, target = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
            target = target.astype(np.float64)
        else:
            values, target = validate_data(self, X, dtype=np.float64), np.zeros(0)
        self.places_ = np.array([list(X.columns).index(name) for name in self.columns_], dtype=np.int64)
        self.intercept_, self.slope_ = 0.0, 1.0
        self.weights_of_columns_ = np.array(list(weights.values()))
        self.corrected_, self.correction_ = own_columns(getattr(X, "columns", ()), self.method), None
        if self.columns_:
            self.scaler_ = ClippedScaler().fit(values)
        if measured:
            sums = self._terms(values).sum(1)
            self._fit_line(sums, target)
            names = find_pairs(X, pairs) if self.metrics and self.columns_ else None
            if names is not None and len(task_codes(names)[0]) >= FEWEST_MODELS:
                left = target - self.intercept_ - self.slope_ * sums
                self.correction_ = LinearMetricRegressor(unseen=True).fit(X[self.corrected_], left, names)
                self.intercept_ += self.correction_.intercept_
        return self

    def _fit_line(self, sums: np.ndarray, y: np.ndarray) -> None:
        spread = float(sums.std())
        slope = 0.0
        if spread > 0:
            slope = float(((sums - sums.mean()) * (y - y.mean())).mean()) / spread**2
            slope = max(slope, LEAST_SLOPE * float(y.std()) / spread)
        self.slope_ = slope
        self.intercept_ = float(y.mean() - slope * sums.mean())

    def predict(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) predictions; the names of the pairs are ignored."""
        return self.contributions(X).sum(1) + self.intercept_

    def contributions(self, X: Any) -> np.ndarray:
        """Return (n, p) contributions: how far each column moves the prediction of each pair from `intercept_`."""
        check_is_fitted(self)
        values = validate_data(self, X, dtype=np.float64, reset=False)
        terms = np.zeros(values.shape)
        terms[:, self.places_] = self.slope_ * self._terms(values)
        if self.correction_ is not None:
            places = [list(X.columns).index(name) for name in self.corrected_]
            terms[:, places] += self.correction_.contributions(X[self.corrected_])
        return terms

    def _terms(self, values: np.ndarray) -> np.ndarray:
        """Return the (n, columns) weighted standardised columns that the sum is of."""
        if not self.columns_:
            return values[:, :0]
        return self.scaler_.transform(values)[:, self.places_] * self.weights_of_columns_
