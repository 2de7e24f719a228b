"""cross_validate_pairs: how well an estimator predicts held-out pairs, beside two baselines that use no metric."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sklearn.dummy import DummyRegressor
from sklearn.pipeline import Pipeline

from mergekern.errors import PredictionError
from mergekern.prediction.additive import TaskEffectsRegressor
from mergekern.prediction.correlation import pearson_r, spearman_rho
from mergekern.prediction.pairs import CompletePairs, as_frame, complete_pairs, need_pairs, task_codes
from mergekern.prediction.permutation import RenamedMetrics
from mergekern.prediction.refits import Refits
from mergekern.prediction.splitters import LeaveOneTaskOut, PairSplitter

FOLD_COLUMNS = ["held_out", "n_train", "n_val", "train_r", "val_r", "train_rho", "val_rho"]


@dataclass(frozen=True)
class PairValidation:
    """The result of `cross_validate_pairs`: how well an estimator predicts held-out pairs.

    Attributes:
        folds: a row for each fold: held_out (a name, or a tuple of names; "draw k" where pairs are drawn and not
            tasks), n_train, n_val, and Pearson's r and Spearman's rho on the training and the validation pairs; NaN
            where there is none: fewer than two pairs, constant predictions.
        predictions: a row for each fold and validation pair: fold, model_a, model_b, y, prediction, train_mean (of y
            in the fold's training pairs).
        coefficients: (folds, metrics), where the estimator has `coef_`; otherwise None.
        dropped: the reason for each pair that was left out, by its two names.
        dropped_metrics: metrics without a value for any pair, which are left out.
        p_value: share of task permutations with a score at least as high; the identity counts as one of them. NaN for
            `n_permutations=0`.
        intervals: 95 % bootstrap intervals over tasks, (low, high), of "val_r", "pooled_r" and "pooled_r_centred".
        baselines: validations of "additive" (task effects alone) and "constant" (the mean of the training pairs).
    """

    folds: pd.DataFrame
    predictions: pd.DataFrame
    coefficients: pd.DataFrame | None
    dropped: dict[tuple[str, str], str]
    dropped_metrics: tuple[str, ...]
    p_value: float = float("nan")
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    baselines: dict[str, PairValidation] = field(default_factory=dict)

    @property
    def pooled_r(self) -> float:
        """Pearson's r over the validation pairs of all folds together, in [-1, 1].

        Biased downwards where folds are small: the mean of a fold's training pairs is low exactly where its validation
        pairs are high. The constant baseline, which predicts nothing but that mean, gets -1 (leave-one-pair-out) or
        close to it. Compare with that, or read `pooled_r_centred`.
        """
        return pearson_r(self.predictions["prediction"].to_numpy(), self.predictions["y"].to_numpy())

    @property
    def pooled_r_centred(self) -> float:
        """`pooled_r` after subtracting the mean of each fold's training pairs from its predictions, in [-1, 1].

        This removes the leave-out bias: a regressor with an intercept falls back on that mean. y stays as measured. The
        constant baseline predicts nothing beyond the mean and gets NaN. A smaller bias remains, because a pair left out
        also bends the coefficients away from itself: ridge on ten metrics of pure noise, over 187 pairs of 20 tasks,
        gets -0.02 on average, where `pooled_r` is -0.22 (leave-one-task-out) and -0.40 (leave-two-tasks-out). With
        fewer pairs it grows. An estimator whose intercept is not the mean of its training pairs, such as a robust one,
        keeps the bias of the difference.
        """
        beyond = (self.predictions["prediction"] - self.predictions["train_mean"]).to_numpy()
        return pearson_r(beyond, self.predictions["y"].to_numpy())

    @property
    def r_within_folds(self) -> float:
        """Pearson's r over the validation pairs of all folds, each fold measured from its own means, in [-1, 1].

        It tells how well pairs of one fold are ranked, without the leave-out bias of `pooled_r`, and without the chance
        of a mean over the r of small folds, each of which counts as much as a large one. NaN for folds of one pair.
        """
        fold = self.predictions["fold"].to_numpy()
        sizes = np.bincount(fold)
        both = (self.predictions[column].to_numpy() for column in ("prediction", "y"))
        return pearson_r(*(values - (np.bincount(fold, values) / sizes)[fold] for values in both))

    @property
    def score(self) -> float:
        """The mean val_r of the folds; `pooled_r_centred` where no fold has one, each being of a single pair."""
        mean = float(self.folds["val_r"].mean())
        return self.pooled_r_centred if (self.folds["n_val"] < 2).all() else mean

    @property
    def summary(self) -> pd.DataFrame:
        """Means and standard deviations over the folds, pooled correlations and errors; a row for each baseline.

        `folds_with_r` counts the folds in the mean of val_r; a fold of one pair has none. `rmse` is over the validation
        pairs of all folds, in the units of y.
        """
        rows = {"estimator": self, **self.baselines}
        return pd.DataFrame({name: _summary(validation) for name, validation in rows.items()}).T


def _summary(validation: PairValidation) -> dict[str, float]:
    out: dict[str, float] = {}
    for column in FOLD_COLUMNS[3:]:
        values = validation.folds[column].to_numpy(dtype=np.float64)
        values = values[~np.isnan(values)]
        mean, sd = (values.mean(), values.std()) if len(values) else (np.nan, np.nan)
        out |= {f"{column}_mean": float(mean), f"{column}_sd": float(sd)}
    errors = (validation.predictions["prediction"] - validation.predictions["y"]).to_numpy()
    out |= {"pooled_r": validation.pooled_r, "pooled_r_centred": validation.pooled_r_centred}
    out |= {"r_within_folds": validation.r_within_folds}
    out |= {"rmse": float(np.sqrt((errors**2).mean())), "folds": len(validation.folds)}
    return out | {"folds_with_r": int(validation.folds["val_r"].notna().sum())}


def cross_validate_pairs(
    estimator: Any,
    X: Any,
    y: Any,
    pairs: Any = None,
    splitter: PairSplitter | None = None,
    *,
    n_permutations: int = 0,
    n_resamples: int = 1000,
    baselines: bool = True,
    random_state: int = 0,
) -> PairValidation:
    """Fit an estimator on the training pairs of each fold and compare its predictions with the validation pairs.

    Pairs with a missing value take no part, and are named in `.dropped` and in a warning. The baselines leave them out
    too, so that all are judged on the same pairs. The estimator gets X as a frame with the pairs as its index; one
    whose `fit` takes `pairs` (or a Pipeline whose last step's does) also gets the names, in `fit` and in `predict`.

    Args:
        estimator: a scikit-learn regressor; cloned for each fold.
        X: (n, metrics) values, for example `MetricTable.to_pandas()`.
        y: (n,) targets, for example the accuracy of the merged models.
        pairs: (n, 2) names; the index of X if None.
        splitter: `LeaveOneTaskOut()` if None.
        n_permutations: permutations of the names of the tasks for the p-value; 0 for none. The metrics of (a, b)
            become those of (π(a), π(b)), everything is fitted again, and `score` is compared. Pairs share tasks and are
            not exchangeable one by one, so that permuting pairs would find significance in anything. The p-value tells
            whether the metrics know which task is which: an estimator of task effects alone gets 1, since all names
            are alike to it. Where few pairs have a score, give X of all pairs, with NaN as y of the others: pairs
            whose metrics are not given get those of a model of effects (`prediction.permutation`), which is as good
            as that model.
        n_resamples: draws of the tasks, with replacement, for the bootstrap intervals; 0 for none. A pair counts as
            often as both its tasks were drawn, a fold by the mean of its pairs. Nothing is fitted again.
        baselines: whether to validate the additive and the constant baseline on the same folds.
        random_state: seed of the permutations and of the bootstrap.

    Raises:
        PredictionError: names, shapes or pairs do not allow it.

    >>> from sklearn.linear_model import LinearRegression
    >>> pairs = [(a, b) for a in "abcdef" for b in "abcdef" if a < b]
    >>> size = {name: float(number) ** 2 for number, name in enumerate("abcdef")}
    >>> X = np.array([[size[a] * size[b], size[a] + size[b]] for a, b in pairs])
    >>> result = cross_validate_pairs(LinearRegression(), X, X @ [0.1, 1.0], pairs)
    >>> result.summary.loc[["estimator", "additive"], ["folds", "val_r_mean", "pooled_r"]].round(1)
               folds  val_r_mean  pooled_r
    estimator    6.0         1.0       1.0
    additive     6.0         1.0       0.4
    """
    data = complete_pairs(X, y, pairs)
    splitter = LeaveOneTaskOut() if splitter is None else splitter
    if not isinstance(splitter, PairSplitter):
        raise PredictionError(f"a splitter over pairs is needed, such as LeaveOneTaskOut(), not {splitter!r}")
    if n_permutations < 0 or n_resamples < 0:
        raise PredictionError(f"n_permutations and n_resamples are at least 0, not {n_permutations} and {n_resamples}")
    beside = {"additive": TaskEffectsRegressor(), "constant": DummyRegressor()} if baselines else {}
    # They read no metric.
    bare = dataclasses.replace(data, X=data.X.iloc[:, :0].assign(no_metric=0.0))
    validation = _validate(estimator, data, splitter)
    return dataclasses.replace(
        validation,
        p_value=_p_value(
            validation, estimator, data, as_frame(X), need_pairs(X, pairs), splitter, n_permutations, random_state
        ),
        intervals=_intervals(validation, n_resamples, random_state),
        baselines={
            name: validation if _alike(baseline, estimator) else _validate(baseline, bare, splitter)
            for name, baseline in beside.items()
        },
    )


def _validate(estimator: Any, data: CompletePairs, splitter: PairSplitter) -> PairValidation:
    rows, held_out, predictions, coefficients = [], [], [], []
    splits = list(splitter.folds(data.pairs))
    refits = Refits(estimator, data.X, data.y, data.pairs)
    for number, (names, train, test) in enumerate(splits):
        found = refits.predictions(train)
        both = ((found[train], data.y[train]), (found[test], data.y[test]))
        rows.append([len(train), len(test), *(r(*side) for r in (pearson_r, spearman_rho) for side in both)])
        held_out.append(names[0] if len(names) == 1 else names or f"draw {number}")
        predictions.append(found[test])
        coefficients.append(_coefficients(refits.fitted(train), data.X.shape[1]))
    folds = pd.DataFrame(rows, columns=FOLD_COLUMNS[1:])
    folds.insert(0, FOLD_COLUMNS[0], held_out)
    sizes, validated = folds["n_val"], np.concatenate([fold.test for fold in splits])
    of_pairs = {
        "fold": np.repeat(np.arange(len(splits)), sizes),
        "model_a": data.pairs[validated, 0],
        "model_b": data.pairs[validated, 1],
        "y": data.y[validated],
        "prediction": np.concatenate(predictions),
        "train_mean": np.repeat([data.y[fold.train].mean() for fold in splits], sizes),
    }
    return PairValidation(
        folds=folds,
        predictions=pd.DataFrame(of_pairs),
        coefficients=None if coefficients[0] is None else pd.DataFrame(coefficients, columns=data.X.columns),
        dropped=data.dropped,
        dropped_metrics=data.dropped_metrics,
    )


def _alike(one: Any, other: Any) -> bool:
    """Tell whether two unfitted estimators are the same predictor with the same parameters."""
    return type(one) is type(other) and one.get_params() == other.get_params()


def _coefficients(estimator: Any, metrics: int) -> np.ndarray | None:
    """Return the coefficients, one a metric, of an estimator or of a pipeline's last step."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    found = getattr(last, "coef_", None)
    return None if found is None or np.shape(found) != (metrics,) else np.asarray(found, dtype=np.float64)


def _p_value(
    validation: PairValidation,
    estimator: Any,
    data: CompletePairs,
    X: pd.DataFrame,
    pairs: np.ndarray,
    splitter: PairSplitter,
    n_permutations: int,
    random_state: int,
) -> float:
    """Return (1 + permutations that do as well) / (1 + n_permutations); see `cross_validate_pairs`."""
    if n_permutations == 0:
        return float("nan")
    random = np.random.default_rng([random_state, 0])
    renamed = RenamedMetrics(X[list(data.X)], pairs, data.pairs, random)
    found = validation.score
    as_good = 0
    for _ in range(n_permutations):
        permuted = dataclasses.replace(data, X=pd.DataFrame(renamed.draw(), data.X.index, data.X.columns))
        # Without this margin, rounding would decide where nothing changes under permutation.
        as_good += not _validate(estimator, permuted, splitter).score < found - 1e-9
    return (1 + as_good) / (1 + n_permutations)


def _intervals(validation: PairValidation, n_resamples: int, random_state: int) -> dict[str, tuple[float, float]]:
    """Return percentile intervals over tasks drawn with replacement; see `cross_validate_pairs`."""
    if n_resamples == 0:
        return {}
    table = validation.predictions
    names, codes = task_codes(table[["model_a", "model_b"]].to_numpy())
    fold, y, prediction = (table[column].to_numpy() for column in ("fold", "y", "prediction"))
    centred = prediction - table["train_mean"].to_numpy()
    rows = [np.flatnonzero(fold == number) for number in range(len(validation.folds))]
    rows = [part for part, r in zip(rows, validation.folds["val_r"], strict=True) if np.isfinite(r)]
    random = np.random.default_rng([random_state, 1])
    draws: dict[str, list[float]] = {"val_r": [], "pooled_r": [], "pooled_r_centred": []}
    for _ in range(n_resamples):
        times = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        weights = times[codes].prod(1).astype(float)
        of_folds = np.array([pearson_r(prediction[part], y[part], weights[part]) for part in rows])
        shares = np.array([weights[part].mean() for part in rows]) * np.isfinite(of_folds)
        draws["val_r"].append(shares @ np.nan_to_num(of_folds) / shares.sum() if shares.any() else float("nan"))
        draws["pooled_r"].append(pearson_r(prediction, y, weights))
        draws["pooled_r_centred"].append(pearson_r(centred, y, weights))
    return {name: _percentiles(np.array(values)) for name, values in draws.items()}


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
