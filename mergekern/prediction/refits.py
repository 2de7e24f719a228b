"""Refits: fits of one estimator to parts of the pairs, each part once however many folds train on it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from mergekern.prediction.additive import TaskEffectsRegressor
from mergekern.prediction.forest import ForestRegressor
from mergekern.prediction.linear import LinearMetricRegressor
from mergekern.prediction.pearson import PearsonRegressor


class Refits:
    """Fits of an estimator to parts of some pairs, with what each predicts for all of them.

    Zoos of few models have few ways to hold out models, and folds that are drawn at random often train on the same
    pairs.

    >>> from sklearn.linear_model import LinearRegression
    >>> X = pd.DataFrame({"x": [0.0, 1.0, 2.0]})
    >>> refits = Refits(LinearRegression(), X, np.array([0.0, 1.0, 5.0]), np.empty((3, 2), dtype=str))
    >>> refits.predictions(np.array([0, 1])).round(1).tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(self, estimator: Any, X: pd.DataFrame, y: np.ndarray, pairs: np.ndarray) -> None:
        self.estimator = estimator
        # scikit-learn checks a frame six times as long as an array; see `reads_columns`.
        self.X = X if reads_columns(estimator) else X.to_numpy(dtype=np.float64)
        self.y = y
        self.pairs = pairs
        self._fitted: dict[bytes, Any] = {}
        self._predictions: dict[bytes, np.ndarray] = {}
        self._sd: dict[bytes, np.ndarray] = {}

    def fitted(self, train: np.ndarray) -> Any:
        """Return a clone of the estimator that is fitted to the pairs of (k,) rows."""
        key = train.tobytes()
        if key not in self._fitted:
            self._fitted[key] = fit_estimator(
                clone(self.estimator), _rows(self.X, train), self.y[train], self.pairs[train]
            )
        return self._fitted[key]

    def predictions(self, train: np.ndarray) -> np.ndarray:
        """Return (n,) predictions for all pairs, by the fit to those of (k,) rows."""
        key = train.tobytes()
        if key not in self._predictions:
            self._predictions[key] = predict_pairs(self.fitted(train), self.X, self.pairs)
        return self._predictions[key]

    def sd(self, train: np.ndarray) -> np.ndarray:
        """Return (n,) standard deviations about `predictions`; 1 if the estimator predicts no standard deviations."""
        key = train.tobytes()
        if key not in self._sd:
            self._sd[key] = predicted_sd(self.fitted(train), self.X, self.pairs)
        return self._sd[key]


def reads_columns(estimator: Any) -> bool:
    """Tell whether an estimator may look for columns by their names, or for pairs in the index of X."""
    return not isinstance(estimator, (TaskEffectsRegressor, LinearMetricRegressor, ForestRegressor, PearsonRegressor))


def _rows(X: Any, rows: np.ndarray) -> Any:
    return X.iloc[rows] if isinstance(X, pd.DataFrame) else X[rows]


def fit_estimator(estimator: Any, X: pd.DataFrame | np.ndarray, y: np.ndarray, pairs: np.ndarray) -> Any:
    """Fit an estimator, with the names of the pairs where its `fit` (or that of a pipeline's last step) takes them."""
    if not _knows_pairs(estimator):
        return estimator.fit(X, y)
    if isinstance(estimator, Pipeline):
        return estimator.fit(X, y, **{f"{estimator.steps[-1][0]}__pairs": pairs})
    return estimator.fit(X, y, pairs=pairs)


def predict_pairs(estimator: Any, X: pd.DataFrame | np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return (n,) predictions of what `fit_estimator` fitted."""
    found = estimator.predict(X, pairs=pairs) if _knows_pairs(estimator) else estimator.predict(X)
    return np.asarray(found, dtype=np.float64)


def predicted_sd(estimator: Any, X: pd.DataFrame | np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return (n,) standard deviations about the predictions; 1 if the estimator predicts no standard deviations."""
    if not hasattr(estimator, "predict_sd"):
        return np.ones(len(X))
    sd = estimator.predict_sd(X, pairs=pairs)
    return np.where(sd > 0, sd, 1.0)


def _knows_pairs(estimator: Any) -> bool:
    """Tell whether `fit` takes the names of the pairs: the estimator's own, or that of a pipeline's last step."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    return "pairs" in inspect.signature(last.fit).parameters
