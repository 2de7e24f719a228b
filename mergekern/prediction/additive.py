"""TaskEffectsRegressor: y_ab = μ + t_a + t_b, an effect for each model; optionally plus a linear model of metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import chi2
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mergekern.errors import PredictionError
from mergekern.prediction.linear import ClippedScaler, LinearMetricRegressor
from mergekern.prediction.mixed import MixedModel, fit_mixed, fit_robust
from mergekern.prediction.pairs import names_to_fit, names_to_predict, task_codes


class TaskEffectsRegressor(RegressorMixin, BaseEstimator):
    """Additive task effects with partial pooling: y_ab = μ + t_a + t_b + e, t ~ N(0, σ_t²).

    The fewer merges of a model are measured, the more its effect shrinks towards 0. The variances that decide by how
    much are estimated from the data (REML). A model without a measured merge has the effect 0, with standard deviation
    σ_t. Residuals have the heavy tails of Student's t, so that one failed merge does not spoil the effects of both its
    models.

    With `metrics=True`, a likelihood-ratio test decides at `level` whether the metrics explain anything. If they do, a
    linear model of them, with a variance of its own, is added to the effects. A pair of two models without a measured
    merge has no effects: `LinearMetricRegressor(unseen=True)`, fitted to y itself, predicts it from its metrics.

    Without the names of the pairs there are no effects. Predictions are then the mean of y, or with metrics those of
    the linear model, and a warning says so. Fitted to named pairs, it predicts named pairs only.

    Args:
        metrics: whether to add the metrics.
        level: significance level of the test that lets the metrics in, in (0, 0.5].
        dof: degrees of freedom of Student's t.

    Attributes:
        tasks_: (T,) names of the models, sorted.
        mean_: μ.
        effects_: (T,) effects, in the units of y.
        effect_sd_: (T,) posterior standard deviations of the effects.
        coef_: (p,) change of the prediction as each metric grows by one standard deviation; 0 if the metrics do not
            enter. Only with `metrics`.
        metrics_enter_: whether the test let the metrics in. Only with `metrics`.
        task_variance_, metric_variance_, residual_variance_: variance of y due to one task, to the metrics, and to
            neither.
        metric_model_: the predictor of pairs of two unmeasured models. Only with `metrics`.

    >>> pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"), ("a", "e")]
    >>> model = TaskEffectsRegressor().fit(np.zeros((7, 1)), [0.93, 0.81, 0.72, 0.7, 0.59, 0.5, 0.85], pairs)
    >>> dict(zip(model.tasks_.tolist(), model.effects_.round(2).tolist()))
    {'a': 0.17, 'b': 0.05, 'c': -0.05, 'd': -0.15, 'e': -0.02}
    >>> model.predict(np.zeros((3, 1)), [("b", "e"), ("b", "new"), ("new", "newer")]).round(2).tolist()
    [0.73, 0.75, 0.7]
    """

    def __init__(self, metrics: bool = False, level: float = 0.01, dof: float = 4.0) -> None:
        self.metrics = metrics
        self.level = level
        self.dof = dof

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = not self.metrics
        # Without names of pairs and without metrics, all rows have the same prediction.
        tags.regressor_tags.poor_score = not self.metrics
        return tags

    def fit(self, X: Any, y: Any, pairs: Any = None) -> TaskEffectsRegressor:
        """Fit to (n,) targets of (n, 2) pairs, and with `metrics` to their (n, p) metrics, which else are ignored."""
        if not 0 < self.level <= 0.5 or not self.dof > 0:
            raise PredictionError(f"level must be in (0, 0.5] and dof positive, not {self.level!r} and {self.dof!r}")
        simpler = "the linear model of metrics is fitted" if self.metrics else "the mean of y is predicted"
        names = names_to_fit(X, y, pairs, f"no effects can be fitted and {simpler}")
        values, target = validate_data(
            self, X, y, y_numeric=True, dtype=np.float64, ensure_all_finite=True if self.metrics else "allow-nan"
        )
        target = target.astype(np.float64)
        self.tasks_ = np.array([], dtype=str) if names is None else task_codes(names)[0]
        incidence = self._incidence(names, len(target))
        model = fit_robust(incidence, np.zeros(len(self.tasks_), dtype=int), target, self.dof)
        if self.metrics:
            self.scaler_ = ClippedScaler().fit(values)
            self.metric_model_ = LinearMetricRegressor(unseen=names is not None).fit(values, target, names)
            model = self._with_metrics(model, incidence, self.scaler_.transform(values), target)
        self._keep(model)
        return self

    def _with_metrics(
        self, effects: MixedModel, incidence: np.ndarray, scaled: np.ndarray, y: np.ndarray
    ) -> MixedModel:
        """Return the model with metrics if it is significantly more likely, else the model without them."""
        self.metrics_enter_ = False
        self.coef_ = np.zeros(scaled.shape[1])
        self.metric_variance_ = 0.0
        tasks = incidence.shape[1]
        if tasks == 0:
            return effects
        design = np.hstack([incidence, scaled / np.sqrt(scaled.shape[1])])
        groups = np.repeat([0, 1], [tasks, scaled.shape[1]])
        both = fit_mixed(design, groups, y, effects.weights)
        # Variances cannot be negative: under the null hypothesis, half of the statistic's distribution is at 0.
        if effects.deviance - both.deviance <= chi2.isf(2 * self.level, 1):
            return effects
        self.metrics_enter_ = True
        self.coef_ = both.coefficients[tasks:] / np.sqrt(scaled.shape[1])
        self.metric_variance_ = float(both.variances[1])
        return both

    def _keep(self, model: MixedModel) -> None:
        tasks = len(self.tasks_)
        self.mean_ = model.mean
        self.effects_ = model.coefficients[:tasks]
        self.effect_sd_ = np.sqrt(np.diagonal(model.covariance)[1 : 1 + tasks])
        self.task_variance_ = float(model.variances[0]) if tasks else 0.0
        self.residual_variance_ = model.residual_variance
        self.covariance_ = model.covariance

    def predict(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) predictions of (n, 2) pairs."""
        return self.contributions(X, pairs).sum(1)

    def contributions(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n, 3 + p) terms that sum to the prediction: the mean, two effects of models, one term a metric."""
        values, names = self._check(X, pairs)
        terms = np.zeros((len(values), 3 + values.shape[1]))
        terms[:, 0] = self.mean_
        if names is not None and len(self.tasks_):
            at = np.minimum(np.searchsorted(self.tasks_, names), len(self.tasks_) - 1)
            terms[:, 1:3] = np.where(self.tasks_[at] == names, self.effects_[at], 0.0)
        if self.metrics:
            terms[:, 3:] = self.scaler_.transform(values) * self.coef_
            unmeasured = self.measured_models(names, len(values)) == 0
            if unmeasured.any():
                terms[unmeasured, 0] = self.metric_model_.intercept_
                terms[unmeasured, 3:] = self.metric_model_.contributions(values[unmeasured])
        return terms

    def predict_sd(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) standard deviations of y about the predictions, by the model's own assumptions.

        All pairs of two unmeasured models have the same one, that of two unknown effects.
        """
        values, names = self._check(X, pairs)
        rows = [np.ones((len(values), 1)), self._incidence(names, len(values))]
        if self.metrics and self.metrics_enter_:
            rows.append(self.scaler_.transform(values) / np.sqrt(values.shape[1]))
        design = np.hstack(rows)
        known = ((design @ self.covariance_) * design).sum(1)
        unknown = (2 - self.measured_models(names, len(values))) * self.task_variance_
        return np.sqrt(np.maximum(known, 0) + unknown + self.residual_variance_)

    def measured_models(self, names: np.ndarray | None, n: int) -> np.ndarray:
        """Return (n,) numbers of models of each pair that have an effect: 0, 1 or 2."""
        return np.zeros(n, dtype=int) if names is None else np.isin(names, self.tasks_).sum(1)

    def _check(self, X: Any, pairs: Any) -> tuple[np.ndarray, np.ndarray | None]:
        check_is_fitted(self)
        names = names_to_predict(X, pairs, len(self.tasks_) > 0)
        finite = True if self.metrics else "allow-nan"
        return validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=finite), names

    def _incidence(self, names: np.ndarray | None, n: int) -> np.ndarray:
        """Return an (n, T) matrix: 1 where a model belongs to the pair, else 0."""
        if names is None:
            return np.zeros((n, len(self.tasks_)))
        return (names[:, :1] == self.tasks_).astype(np.float64) + (names[:, 1:] == self.tasks_)
