"""RankNormalScaler: metrics by their ranks in the training pairs, so that no pair is far from the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data


class RankNormalScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Normal scores of ranks: the i-th smallest of n training values becomes Φ⁻¹((i - 1/2) / n).

    Equal values get the score of their mean rank. Values between two training values are interpolated, and values
    beyond all of them get the score of the nearest. Unlike scikit-learn's QuantileTransformer with normal output, whose
    smallest and largest values become ±5.2 whatever n is, the scores of 171 values end at ±2.8. For min-max scaling, as
    in the study, take scikit-learn's `MinMaxScaler((-1, 1))`; either belongs in a Pipeline, so that the scaler of a
    fold sees its training pairs only.

    Attributes:
        values_, scores_: for each metric, its distinct training values and their scores.

    >>> RankNormalScaler().fit([[1.0], [10.0], [1000.0]]).transform([[1.0], [10.0], [1e9]]).round(2).ravel().tolist()
    [-0.97, 0.0, 0.97]
    """

    def fit(self, X: Any, y: Any = None) -> RankNormalScaler:
        """Keep the distinct values of each column of (n, metrics) X and their scores."""
        X = validate_data(self, X, dtype=np.float64)
        self.values_: list[np.ndarray] = []
        self.scores_: list[np.ndarray] = []
        for column in X.T:
            values, first = np.unique(column, return_index=True)
            self.values_.append(values)
            self.scores_.append(ndtri((rankdata(column)[first] - 0.5) / len(column)))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the (n, metrics) scores."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        columns = zip(X.T, self.values_, self.scores_, strict=True)
        return np.stack([np.interp(column, values, scores) for column, values, scores in columns], axis=1)
