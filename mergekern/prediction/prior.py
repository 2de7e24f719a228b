"""PriorRegressor: what a merge will score, from the accuracies of its two models and of the base, without any merge.

The *normalised accuracy* of a merge is the mean, over its tasks, of the merged model's accuracy on a task divided by
the accuracy there of the single model that was fine-tuned for it. It is 1 where the merge loses nothing. Columns and
targets with these values are named normalized_accuracy, and `normalized_accuracy` computes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mergekern.errors import PredictionError
from mergekern.metrics import MODEL_SCORES
from mergekern.prediction.mixed import ExpectedRatio, fit_robust
from mergekern.prediction.pairs import UnnamedPairsWarning, find_pairs, names_to_predict, task_codes
from mergekern.prediction.planning import TASK_RATIO

Target = Literal["accuracy", "normalized_accuracy"]
OWN, BASE = "own_accuracy_mean", "base_accuracy_mean"
# A merge keeps most of what its models know, and where it loses, what the base knows remains. Both weights were chosen
# by hand on the study's 20 models (arXiv 2601.22285), and stay as they are on any zoo; weights fitted to 5 or 10 tasks
# did worse on every zoo tried. That the base's knowledge of a task predicts its merges: Rahamim et al.,
# arXiv 2601.06672.
OWN_WEIGHT, BASE_WEIGHT = 0.9, 0.1
# From so many measured merges on, they themselves say how far effects are shrunk, and which merges failed: residuals
# have the heavy tails of Student's t with DOF degrees of freedom.
FEWEST, EXPECTED, DOF = 8, ExpectedRatio(TASK_RATIO, log_sd=1.0), 4.0


def normalized_accuracy(merged: Iterable[float], own: Iterable[float]) -> float:
    """Return the normalised accuracy of a merge: the mean of merged[t] / own[t] over its tasks t.

    Args:
        merged: accuracies of the merged model on each task.
        own: accuracies on each task of the single model that was fine-tuned for it, above 0.

    >>> round(normalized_accuracy([0.72, 0.95], own=[0.8, 1.0]), 3)
    0.925
    """
    return float(np.mean(np.asarray(list(merged)) / np.asarray(list(own))))


class PriorRegressor(RegressorMixin, BaseEstimator):
    """Accuracy of a merge from model scores by a fixed rule, optionally corrected by measured merges.

    The rule for the accuracy is 0.9 · own_accuracy_mean + 0.1 · base_accuracy_mean, and for the normalised accuracy
    0.9 + 0.1 · base_accuracy_mean; these columns of `model_scores` are found by name. Nothing in it is fitted: `fit(X)`
    needs no y, and X may have no row. Where the column of the base is missing, the accuracy is predicted to be
    own_accuracy_mean.

    With `effects=True`, measured merges correct the rule. What they differ from it, as a ratio to own_accuracy_mean, is
    a mean plus an effect of each model, shrunk towards 0 the more, the fewer merges of the model were measured. The
    variance of effects is expected to be 10 residual variances, as in `plan_measurements`. From eight merges on the
    likelihood of the measured merges corrects that (restricted maximum likelihood with a log-normal prior), and merges
    that fit badly weigh less. Without a merge of either model only the mean is corrected.

    Args:
        target: what y is.
        effects: whether measured merges correct the rule.

    Attributes:
        tasks_: (T,) names of the models with measured merges, sorted; empty without `effects`.
        mean_: mean correction, in units of the ratio.
        effects_: (T,) effects, in units of the ratio.
        effects_ratio_: variance of effects in residual variances.
        residual_variance_: variance of the ratio about mean and effects; 0 where too few merges tell.

    >>> import pandas as pd
    >>> pairs = pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])
    >>> X = pd.DataFrame({"own_accuracy_mean": [0.9, 0.8], "base_accuracy_mean": [0.5, 0.6]}, index=pairs)
    >>> PriorRegressor().fit(X).predict(X).round(2).tolist()
    [0.86, 0.78]
    >>> PriorRegressor(effects=True).fit(X[:1], [0.77]).predict(X).round(2).tolist()
    [0.77, 0.7]
    """

    def __init__(self, target: Target = "accuracy", effects: bool = False) -> None:
        self.target = target
        self.effects = effects

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        # Columns without names cannot be model scores: all rows then have the mean of y as their prediction.
        tags.regressor_tags.poor_score = True
        return tags

    def fit(self, X: Any, y: Any = None, pairs: Any = None) -> PriorRegressor:
        """Check the columns of X, and with `effects` fit to (n,) targets of (n, 2) pairs.

        Raises:
            PredictionError: X lacks own_accuracy_mean, a model score is no share from 0 to 1, or an unknown target.
        """
        if self.target not in get_args(Target):
            raise PredictionError(f"the prior predicts {' or '.join(get_args(Target))}, not {self.target!r}")
        self.tasks_, self.effects_, self.covariance_ = np.array([], dtype=str), np.zeros(0), np.zeros((1, 1))
        self.mean_ = self.residual_variance_ = 0.0
        self.effects_ratio_ = TASK_RATIO
        measured = y is not None and np.size(np.asarray(y)) > 0
        self.has_scores_ = OWN in getattr(X, "columns", ())
        if not self.has_scores_:
            return self._fit_mean(X, y)
        self.columns_ = tuple(name for name in (OWN, BASE) if name in X.columns)
        if self.target == "normalized_accuracy" and BASE not in self.columns_:
            raise PredictionError(f"the prior of the normalised accuracy needs the column {BASE}; give base_accuracy")
        if measured:
            validate_data(self, X, y, y_numeric=True, ensure_all_finite="allow-nan")
        else:
            self.feature_names_in_, self.n_features_in_ = np.array(X.columns, dtype=object), X.shape[1]
        scores = self._scores(X)
        if self.effects and measured:
            names = find_pairs(X, pairs)
            names = find_pairs(y) if names is None else names
            target = np.asarray(y, dtype=np.float64)
            self._fit_effects((target - self._rule(scores).sum(1)) / self._unit(scores), names)
        return self

    def _fit_mean(self, X: Any, y: Any) -> PriorRegressor:
        if y is None:
            raise PredictionError(
                f"requires y to be passed, but the target y is None: X has no column {OWN} to predict from; join "
                "mergekern.model_scores(models, source)"
            )
        _, target = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        self.columns_ = ()
        self.mean_ = float(target.mean())
        warnings.warn(
            f"X has no column {OWN}, so that the mean of y is predicted; join mergekern.model_scores(models, source), "
            'and in a Pipeline keep the names of columns with set_output(transform="pandas")',
            UnnamedPairsWarning,
            stacklevel=3,
        )
        return self

    def _fit_effects(self, ratio: np.ndarray, names: np.ndarray | None) -> None:
        """Fit mean and effects of the difference from the rule: ridge, and REML from `FEWEST` merges on."""
        self.tasks_ = np.array([], dtype=str) if names is None else task_codes(names)[0]
        incidence = self._incidence(names, len(ratio))
        if len(ratio) >= FEWEST and len(self.tasks_):
            model = fit_robust(incidence, np.zeros(len(self.tasks_), dtype=int), ratio, DOF, expected=EXPECTED)
            self.mean_, self.effects_ = model.mean, model.coefficients
            self.effects_ratio_, self.residual_variance_ = float(model.ratios[0]), model.residual_variance
            self.covariance_ = model.covariance / (model.residual_variance or 1.0)
            return
        design = np.column_stack([np.ones(len(ratio)), incidence])
        penalty = np.diag([0.0, *np.full(len(self.tasks_), 1 / TASK_RATIO)])
        self.covariance_ = np.ascontiguousarray(np.linalg.inv(design.T @ design + penalty))
        solution = self.covariance_ @ design.T @ ratio
        self.mean_, self.effects_ = float(solution[0]), solution[1:]
        # What is left of the generalised sum of squares has n - 1 degrees of freedom.
        left = max(float(ratio @ (ratio - design @ solution)), 0.0)
        self.residual_variance_ = left / (len(ratio) - 1) if len(ratio) > 1 else 0.0

    def predict(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) predictions of (n, 2) pairs."""
        return self.contributions(X, pairs).sum(1)

    def contributions(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n, 3 + p) terms that sum to the prediction: the mean, two effects of models, one term a column."""
        check_is_fitted(self)
        names = names_to_predict(X, pairs, len(self.tasks_) > 0)
        if not self.has_scores_:
            values = validate_data(self, X, dtype=np.float64, reset=False)
            return np.hstack([np.full((len(values), 1), self.mean_), np.zeros((len(values), 2 + values.shape[1]))])
        scores = self._scores(X)
        rule, unit = self._rule(scores), self._unit(scores)
        terms = np.zeros((len(X), 3 + X.shape[1]))
        terms[:, 0] = self.mean_ * unit + rule[:, 0]
        if len(self.tasks_) and names is not None:
            at = np.minimum(np.searchsorted(self.tasks_, names), len(self.tasks_) - 1)
            terms[:, 1:3] = np.where(self.tasks_[at] == names, self.effects_[at], 0.0) * unit[:, None]
        for place, name in enumerate(self.columns_, 1):
            terms[:, 3 + list(X.columns).index(name)] = rule[:, place]
        return terms

    def predict_sd(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) standard deviations of y about the predictions, in units that few measured merges leave vague.

        All pairs of two unmeasured models have the same one but for their own accuracy. 0 where no merge was measured.
        """
        check_is_fitted(self)
        names = names_to_predict(X, pairs, len(self.tasks_) > 0)
        if not self.has_scores_ or names is None:
            return np.full(len(X), np.sqrt(self.residual_variance_))
        design = np.column_stack([np.ones(len(X)), self._incidence(names, len(X))])
        known = ((design @ self.covariance_) * design).sum(1)
        unknown = (2 - np.isin(names, self.tasks_).sum(1)) * self.effects_ratio_
        return np.sqrt((1 + known + unknown) * self.residual_variance_) * self._unit(self._scores(X))

    def _scores(self, X: Any) -> np.ndarray:
        """Return (n, columns) values of `columns_`."""
        lacking = [name for name in self.columns_ if name not in getattr(X, "columns", ())]
        if lacking:
            raise PredictionError(
                f"the prior was fitted with {', '.join(self.columns_)}, and X lacks {', '.join(lacking)}; join "
                "mergekern.model_scores(models, source)"
            )
        scores = X[list(self.columns_)].to_numpy(dtype=np.float64)
        outside = ~((scores >= 0) & (scores <= 1))
        if outside.any():
            place = int(np.argmax(outside.any(0)))
            raise PredictionError(
                f"{self.columns_[place]} must be shares from 0 to 1, and {scores[outside[:, place], place][0]} is "
                "among them; model scores are used as they are, neither scaled nor missing"
            )
        return scores

    def _rule(self, scores: np.ndarray) -> np.ndarray:
        """Return (n, 1 + columns) terms of the fixed rule: a constant, and one for each of `columns_`."""
        terms = np.zeros((len(scores), 1 + len(self.columns_)))
        if self.target == "normalized_accuracy":
            base = self.columns_.index(BASE)
            terms[:, 0] = OWN_WEIGHT
            terms[:, 1 + base] = BASE_WEIGHT * scores[:, base]
        elif BASE in self.columns_:
            terms[:, 1:] = scores * [OWN_WEIGHT, BASE_WEIGHT]
        else:
            terms[:, 1:] = scores
        return terms

    def _unit(self, scores: np.ndarray) -> np.ndarray:
        """Return (n,) units of a ratio: own accuracy, or 1 where the target is a ratio itself."""
        own = scores[:, self.columns_.index(OWN)]
        return np.maximum(own, 1e-9) if self.target == "accuracy" else np.ones(len(own))

    def _incidence(self, names: np.ndarray | None, n: int) -> np.ndarray:
        if names is None:
            return np.zeros((n, len(self.tasks_)))
        return (names[:, :1] == self.tasks_).astype(np.float64) + (names[:, 1:] == self.tasks_)


# Names of the columns that the prior can read.
PRIOR_COLUMNS = (OWN, BASE)
assert set(PRIOR_COLUMNS) <= set(MODEL_SCORES)
