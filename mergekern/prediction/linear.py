"""LinearMetricRegressor: ridge regression on clipped standardised metrics, its penalty chosen by leave-one-task-out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mergekern.errors import PredictionError
from mergekern.prediction.correlation import pearson_of_columns
from mergekern.prediction.pairs import names_to_fit, task_codes
from mergekern.prediction.splitters import LeaveOneTaskOut, LeaveTasksOut

# Below this number of pairs, a correlation is mostly chance.
PAIRS_OF_A_FOLD = 3
UNSEEN_FOLDS = 20
STRONG_PENALTIES = (1e4, 3e4, 1e5)


class ClippedScaler(TransformerMixin, BaseEstimator):
    """Scaler of columns to mean 0 and standard deviation 1 over the rows of `fit`, clipped to [-limit, limit].

    Metrics have heavy tails. Without the limit a few pairs would decide every fit, and pairs far outside of the
    training pairs would get impossible predictions. A constant column becomes 0.

    Args:
        limit: largest magnitude, in standard deviations.

    >>> ClippedScaler(limit=1.0).fit_transform(np.array([[0.0, 7.0], [0.0, 7.0], [3.0, 7.0]])).round(2).tolist()
    [[-0.71, 0.0], [-0.71, 0.0], [1.0, 0.0]]
    """

    def __init__(self, limit: float = 3.0) -> None:
        self.limit = limit

    def fit(self, X: Any, y: Any = None) -> ClippedScaler:
        """Take mean and standard deviation of each column of X, (n, p)."""
        values = validate_data(self, X, dtype=np.float64)
        self.mean_ = values.mean(0)
        deviation = values.std(0)
        # A constant column minus its mean leaves rounding, not a spread.
        varies = deviation > 1e-12 * np.abs(values).max(0)
        self.factor_ = np.where(varies, 1 / np.where(varies, deviation, 1), 0.0)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return (n, p) float64."""
        check_is_fitted(self)
        values = validate_data(self, X, dtype=np.float64, reset=False)
        return np.clip((values - self.mean_) * self.factor_, -self.limit, self.limit)


class LinearMetricRegressor(RegressorMixin, BaseEstimator):
    """Ridge regression on clipped standardised metrics, with the penalty that ranks the pairs of unseen tasks best.

    The penalty has the largest mean Pearson correlation over leave-one-task-out folds of the training pairs. With too
    few pairs for that, or without their names, it has the smallest squared error of leave-one-out.

    With `unseen=True` it has the smallest squared error on pairs within groups of held-out tasks, and stronger
    penalties are tried too. If metrics tell nothing about models that were never merged, predictions then stay close to
    the mean.

    Args:
        penalties: candidates for the penalty on the sum of squared coefficients; a default grid if None.
        unseen: whether the models of the pairs to predict have no measured merge.
        limit: largest magnitude of a standardised metric (`ClippedScaler`).

    Attributes:
        coef_: (p,) change of the prediction as each metric grows by one standard deviation.
        intercept_: mean of y, which is the prediction for a pair whose metrics are all at their mean.
        penalty_: the chosen penalty.
        scaler_: the fitted `ClippedScaler`.

    >>> X = np.random.default_rng(0).normal(size=(30, 3))
    >>> LinearMetricRegressor().fit(X, X @ [1.0, 0.0, -2.0]).coef_.round(1).tolist()
    [1.1, 0.0, -1.6]
    """

    def __init__(self, penalties: Any = None, unseen: bool = False, limit: float = 3.0) -> None:
        self.penalties = penalties
        self.unseen = unseen
        self.limit = limit

    def fit(self, X: Any, y: Any, pairs: Any = None) -> LinearMetricRegressor:
        """Fit to (n, p) metrics and (n,) targets of (n, 2) pairs."""
        names = names_to_fit(X, y, pairs, "the penalty is chosen by leaving out single pairs, not tasks")
        values, target = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        target = target.astype(np.float64)
        penalties = np.logspace(-1, 3.5, 19) if self.penalties is None else np.asarray(self.penalties, dtype=np.float64)
        if penalties.ndim != 1 or len(penalties) == 0 or not (penalties > 0).all():
            raise PredictionError(f"penalties must be positive numbers, not {self.penalties!r}")
        if self.unseen:
            penalties = np.append(penalties, STRONG_PENALTIES)
        self.scaler_ = ClippedScaler(self.limit)
        scaled = self.scaler_.fit_transform(values)
        score = _scores_of_unseen if self.unseen else _scores_by_task
        scores = None if names is None else score(scaled, target, names, penalties)
        if scores is None:
            scores = _scores_by_row(scaled, target, penalties)
        # The strongest of equally good penalties.
        best = len(scores) - 1 - int(np.argmax(scores[::-1]))
        self.penalty_ = float(penalties[best])
        self.coef_ = _ridge_paths(scaled, target, penalties[[best]])[:, 0]
        self.intercept_ = float(target.mean() - scaled.mean(0) @ self.coef_)
        return self

    def predict(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) predictions; the names of the pairs are ignored."""
        return self.contributions(X).sum(1) + self.intercept_

    def contributions(self, X: Any) -> np.ndarray:
        """Return (n, p) contributions: how far each metric moves the prediction of each pair from `intercept_`."""
        check_is_fitted(self)
        return self.scaler_.transform(validate_data(self, X, dtype=np.float64, reset=False)) * self.coef_


def _ridge_paths(X: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return (p, penalties) coefficients of ridge regression with an unpenalised intercept."""
    u, s, vt = np.linalg.svd(X - X.mean(0), full_matrices=False)
    shrunk = s[:, None] / (s[:, None] ** 2 + penalties)
    return vt.T @ (shrunk * (u.T @ (y - y.mean()))[:, None])


def _scores_by_task(X: np.ndarray, y: np.ndarray, pairs: np.ndarray, penalties: np.ndarray) -> np.ndarray | None:
    """Return (penalties,) mean correlations over leave-one-task-out folds; None if no fold has a correlation."""
    if len(task_codes(pairs)[0]) < PAIRS_OF_A_FOLD + 1:
        return None
    scores = []
    for _, train, test in LeaveOneTaskOut().folds(pairs):
        if min(len(train), len(test)) >= PAIRS_OF_A_FOLD:
            predictions = X[test] @ _ridge_paths(X[train], y[train], penalties)
            found = pearson_of_columns(predictions, y[test])
            if np.isfinite(found).all():
                scores.append(found)
    return np.mean(scores, axis=0) if scores else None


def _scores_of_unseen(X: np.ndarray, y: np.ndarray, pairs: np.ndarray, penalties: np.ndarray) -> np.ndarray | None:
    """Return (penalties,) negative mean squared errors within held-out groups of tasks; None with too few tasks."""
    tasks = len(task_codes(pairs)[0])
    if tasks < 2 * PAIRS_OF_A_FOLD:
        return None
    try:
        folds = list(LeaveTasksOut(tasks // 3, n_repeats=UNSEEN_FOLDS).folds(pairs))
    except PredictionError:  # all pairs share one model: no group of tasks has pairs both inside and outside
        return None
    errors = []
    for _, train, test in folds:
        slopes = _ridge_paths(X[train], y[train], penalties)
        predictions = y[train].mean() + (X[test] - X[train].mean(0)) @ slopes
        errors.append(((predictions - y[test, None]) ** 2).mean(0))
    return -np.mean(errors, axis=0)


def _scores_by_row(X: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return (penalties,) negative mean squared errors of leave-one-out, in closed form."""
    n = len(y)
    u, s, _ = np.linalg.svd(X - X.mean(0), full_matrices=False)
    kept = s[:, None] ** 2 / (s[:, None] ** 2 + penalties)
    residuals = (y - y.mean())[:, None] - u @ (kept * (u.T @ (y - y.mean()))[:, None])
    leverage = 1 / n + (u**2) @ kept
    return -((residuals / np.maximum(1 - leverage, 1e-9)) ** 2).mean(0)
