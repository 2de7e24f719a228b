"""cross_validate_pairs: by hand on one fold, what it drops, its baselines, biases, p-values and intervals."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from mergekern.errors import PredictionError
from mergekern.prediction import (
    IncompletePairsWarning,
    LeaveOneTaskOut,
    LeaveTasksOut,
    LeaveTwoTasksOut,
    MeasuredPairs,
    PearsonRegressor,
    cross_validate_pairs,
    plan_measurements,
)
from mergekern.prediction.additive import TaskEffectsRegressor
from mergekern.prediction.correlation import pearson_r, spearman_rho
from mergekern.prediction.permutation import RenamedMetrics
from tests.support.pairs import make_pairs

SPLITTERS = [LeaveOneTaskOut(), LeaveTwoTasksOut(), LeaveTasksOut(n_repeats=5), MeasuredPairs(12, n_repeats=5)]


def quick(estimator, X, y, pairs=None, splitter=None, **options):
    return cross_validate_pairs(estimator, X, y, pairs, splitter, **{"baselines": False, "n_resamples": 0} | options)


def test_a_fold_by_hand():
    X, y = make_pairs()
    pairs = np.array(X.index.tolist())
    found = cross_validate_pairs(LinearRegression(), X, y)
    out = (pairs == "task03").any(1)
    model = LinearRegression().fit(X[~out], y[~out])
    row = found.folds.loc[3]
    assert (row["held_out"], row["n_train"], row["n_val"]) == ("task03", 21, 7)
    assert row["train_r"] == pytest.approx(pearsonr(model.predict(X[~out]), y[~out])[0], abs=1e-12)
    assert row["val_r"] == pytest.approx(pearsonr(model.predict(X[out]), y[out])[0], abs=1e-12)
    assert row["val_rho"] == pytest.approx(spearmanr(model.predict(X[out]), y[out])[0], abs=1e-12)
    assert found.folds.columns.tolist() == ["held_out", "n_train", "n_val", "train_r", "val_r", "train_rho", "val_rho"]
    np.testing.assert_allclose(found.coefficients.loc[3], model.coef_)
    assert found.coefficients.columns.tolist() == X.columns.tolist()
    of_fold = found.predictions[found.predictions["fold"] == 3]
    np.testing.assert_allclose(of_fold["prediction"], model.predict(X[out]))
    np.testing.assert_allclose(of_fold["train_mean"], y[~out].mean())
    np.testing.assert_array_equal(of_fold[["model_a", "model_b"]].to_numpy(), pairs[out])
    summary = found.summary
    assert summary.index.tolist() == ["estimator", "additive", "constant"]
    assert summary.loc["estimator", "val_r_mean"] == pytest.approx(found.folds["val_r"].mean())
    assert summary.loc["estimator", "val_r_sd"] == pytest.approx(found.folds["val_r"].std(ddof=0))
    errors = found.predictions["y"] - found.predictions["prediction"]
    assert summary.loc["estimator", "rmse"] == pytest.approx(np.sqrt((errors**2).mean()))


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_neither_order_nor_direction_nor_units_matter(splitter):
    X, y = make_pairs()
    before = quick(PearsonRegressor(), X, y, splitter=splitter)
    order = np.random.default_rng(0).permutation(len(y))
    turned = [(b, a) if row % 2 else (a, b) for row, (a, b) in enumerate(X.index[order])]
    found = quick(
        PearsonRegressor(), X.to_numpy()[order] * [3, -1, 1e-4, 1e4] + 7, 5 - 2 * y.to_numpy()[order], turned, splitter
    )
    assert found.folds["held_out"].tolist() == before.folds["held_out"].tolist()
    for column in ("train_r", "val_r", "train_rho", "val_rho"):
        np.testing.assert_allclose(found.folds[column], before.folds[column], atol=1e-6)
    assert found.pooled_r == pytest.approx(before.pooled_r, abs=1e-6)
    assert found.pooled_r_centred == pytest.approx(before.pooled_r_centred, abs=1e-6)


def test_incomplete_pairs_are_named():
    X, y = make_pairs()
    X.iloc[2, 1] = np.nan
    X.iloc[5, [0, 3]] = np.inf
    y.iloc[7] = np.nan
    X["never"] = np.nan
    with pytest.warns(IncompletePairsWarning) as caught:
        found = quick(LinearRegression(), X, y)
    assert found.dropped == {
        ("task00", "task03"): "no value for metric1",
        ("task00", "task06"): "no value for metric0, metric3",
        ("task01", "task02"): "no value for the target",
    }
    assert found.dropped_metrics == ("never",)
    messages = [str(warning.message) for warning in caught]
    assert messages[0] == "metrics without any value left out: never"
    assert "3 of 28 pairs left out: task00 and task03 (no value for metric1); " in messages[1]
    assert found.folds.loc[0, "n_val"] == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = np.isfinite(y) & np.isfinite(X.drop(columns="never")).all(axis=1)
        pd.testing.assert_frame_equal(
            quick(LinearRegression(), X.loc[rows].drop(columns="never"), y[rows]).folds, found.folds
        )


def test_what_does_not_fit_is_refused():
    X, y = make_pairs()
    with pytest.raises(PredictionError, match=r"align_scores\(y, X\.index, models\)"):
        quick(LinearRegression(), X, y.iloc[::-1])
    with pytest.raises(PredictionError, match="one value for each of 28 pairs"):
        quick(LinearRegression(), X, y.to_numpy()[:-1])
    with pytest.raises(PredictionError, match="none of the 28 pairs has a value"):
        quick(LinearRegression(), X, y * np.nan)
    with pytest.raises(PredictionError, match="give pairs="):
        quick(LinearRegression(), X.to_numpy(), y)
    with pytest.raises(PredictionError, match="y must be numbers"):
        quick(LinearRegression(), X, ["good"] * len(X))
    with pytest.raises(PredictionError, match="metrics must be numbers"):
        quick(LinearRegression(), X.assign(metric0="high"), y)
    with pytest.raises(PredictionError, match="a name of its own; more than one is named same"):
        quick(LinearRegression(), X.set_axis(["same", "same", "a", "b"], axis=1), y)
    with pytest.raises(PredictionError, match="such as LeaveOneTaskOut"):
        quick(LinearRegression(), X, y, splitter=KFold(3))
    with pytest.raises(PredictionError, match="at least 0, not -1"):
        quick(LinearRegression(), X, y, n_permutations=-1)


def test_a_pair_listed_twice_is_refused_in_either_order():
    X, y = make_pairs()
    pairs = X.index.tolist()
    twice = [*pairs, pairs[3][::-1]]
    with pytest.raises(PredictionError, match="1 pairs are listed more than once, such as task00 and task04"):
        quick(LinearRegression(), X.to_numpy()[[*range(28), 3]], np.append(y, 0.5), twice)


class KnowsPairs(RegressorMixin, BaseEstimator):
    """An estimator that predicts the length of the first name, and fails without the right names."""

    def fit(self, X, y, pairs=None):
        assert len(pairs) == len(X) == len(y)
        self.fitted_ = True
        return self

    def predict(self, X, pairs=None):
        assert len(pairs) == len(X)
        return np.array([float(first[-1]) for first, _ in pairs])


@pytest.mark.parametrize(
    "wrap", [lambda e: e, lambda e: make_pipeline(MinMaxScaler(), e)], ids=["alone", "in a pipeline"]
)
def test_names_reach_estimators_that_ask_for_them(wrap):
    X, y = make_pairs()
    found = quick(wrap(KnowsPairs()), X, y)
    expected = found.predictions["model_a"].str[-1].astype(float)
    np.testing.assert_array_equal(found.predictions["prediction"], expected)
    assert found.coefficients is None


def test_coefficients_come_out_of_pipelines():
    X, y = make_pairs()
    found = quick(make_pipeline(MinMaxScaler(), Ridge()), X, y)
    assert found.coefficients.shape == (8, 4)


def test_the_constant_baseline_shows_the_bias_of_pooling():
    X, y = make_pairs()
    a, b = np.triu_indices(8, 1)
    y[:] = np.square(a) + np.square(b)
    for splitter, pooled in ((LeaveTwoTasksOut(), -0.9), (LeaveOneTaskOut(), -0.2)):
        constant = cross_validate_pairs(Ridge(), X, y, splitter=splitter, n_resamples=0).baselines["constant"]
        assert constant.pooled_r < pooled
        assert np.isnan(constant.pooled_r_centred)
        assert np.isnan(constant.folds["val_r"]).all()


@pytest.mark.parametrize(("splitter", "draws"), [(LeaveOneTaskOut(), 20), (LeaveTwoTasksOut(), 6)], ids=repr)
def test_centred_pooling_takes_most_of_the_bias_away(splitter, draws):
    """y depends on the tasks and X is noise, so a mean above 0 over many draws is bias."""
    pooled, centred = [], []
    a, b = np.triu_indices(12, 1)
    for seed in range(draws):
        random = np.random.default_rng(seed)
        X, y = make_pairs(12)
        effects = random.standard_normal(12)
        X[:], y[:] = random.standard_normal(X.shape), effects[a] + effects[b]
        found = quick(Ridge(10.0), X, y, splitter=splitter)
        pooled.append(found.pooled_r)
        centred.append(found.pooled_r_centred)
    assert np.mean(pooled) < -0.3
    assert abs(np.mean(centred)) < abs(np.mean(pooled)) / 3


def test_p_value_tells_signal_from_noise():
    X, y = make_pairs()
    assert quick(LinearRegression(), X, y, n_permutations=19).p_value == 1 / 20
    noise = pd.DataFrame(np.random.default_rng(1).standard_normal(X.shape), index=X.index)
    assert quick(LinearRegression(), noise, y, n_permutations=19).p_value > 0.1
    # Renaming the tasks only renames the effects.
    assert quick(TaskEffectsRegressor(), X, y, n_permutations=2).p_value == 1.0
    assert np.isnan(quick(LinearRegression(), X, y).p_value)


def test_p_value_with_missing_pairs():
    X, y = make_pairs()
    assert quick(LinearRegression(), X.iloc[::2], y.iloc[::2], n_permutations=19).p_value == 1 / 20


@pytest.mark.parametrize("measured", [18, 26])
def test_p_value_with_few_scores_uses_the_metrics_of_all_pairs(measured):
    """Renaming the scores would leave the pairs that happen to be measured under both names, a handful of them.

    The quadratic assignment procedure permutes rows and columns of a whole matrix for this reason (Krackhardt 1988; in
    R's sna: https://rdrr.io/cran/sna/man/qaptest.html).
    """
    X, y = make_pairs(16, noise=0.3)
    planned = plan_measurements(X.index.unique(0).union(X.index.unique(1)).tolist(), measured).index
    few = y.where(X.index.isin(planned))
    with pytest.warns(IncompletePairsWarning):
        found = quick(LinearRegression(), X, few, n_permutations=19, splitter=MeasuredPairs(measured // 2, n_repeats=4))
    assert found.p_value == 1 / 20
    noise = X.sample(frac=1, random_state=3).set_axis(X.index, axis=0)
    with pytest.warns(IncompletePairsWarning):
        found = quick(
            LinearRegression(), noise, few, n_permutations=19, splitter=MeasuredPairs(measured // 2, n_repeats=4)
        )
    assert found.p_value > 1 / 20


def test_metrics_that_were_not_given_are_drawn_like_the_others():
    X, _ = make_pairs(12)
    pairs = np.array(X.index.tolist())
    given = np.random.default_rng(0).permutation(len(X)) < 40
    draws = RenamedMetrics(X[given], pairs[given], pairs[given], np.random.default_rng(0))
    drawn = np.concatenate([draws.draw() for _ in range(50)])
    assert np.isfinite(drawn).all()
    np.testing.assert_allclose(drawn.std(0), X[given].std(), rtol=0.3)
    whole = RenamedMetrics(X, pairs, pairs[given], np.random.default_rng(0))
    assert set(map(tuple, whole.draw())) <= set(map(tuple, X.to_numpy()))


def test_intervals_hold_the_estimate_and_narrow_with_tasks():
    widths = []
    for tasks in (6, 14):
        X, y = make_pairs(tasks, noise=20.0)
        found = quick(LinearRegression(), X, y, n_resamples=200)
        again = quick(LinearRegression(), X, y, n_resamples=200)
        assert found.intervals == again.intervals
        for name, estimate in (("val_r", found.score), ("pooled_r", found.pooled_r)):
            low, high = found.intervals[name]
            assert low <= estimate <= high
        widths.append(np.subtract(*found.intervals["pooled_r_centred"][::-1]))
    assert widths[1] < widths[0]


def test_folds_of_one_pair_are_scored_together():
    X, y = make_pairs()
    found = quick(LinearRegression(), X, y, splitter=LeaveTwoTasksOut(), n_resamples=50)
    assert found.folds["val_r"].isna().all()
    assert found.score == found.pooled_r_centred > 0.9
    assert np.isnan(found.intervals["val_r"]).all()
    assert found.intervals["pooled_r"][0] > 0.5


def test_three_pairs_constant_columns_and_a_task_in_one_pair_only():
    X, y = make_pairs(3, metrics=2)
    X["constant"] = 1.0
    found = cross_validate_pairs(
        PearsonRegressor(penalty=None), X, y, splitter=MeasuredPairs(2, n_repeats=3), n_resamples=20
    )
    assert np.isfinite(found.predictions["prediction"]).all()
    X, y = make_pairs(5)
    X, y = X.iloc[[*range(6), 7]], y.iloc[[*range(6), 7]]
    found = cross_validate_pairs(PearsonRegressor(), X, y, n_resamples=20)
    assert found.folds.set_index("held_out").loc["task04", "n_val"] == 1
    assert found.folds["n_val"].sum() == 2 * len(y)


def test_correlations_of_hard_cases():
    steps = np.arange(5.0)
    assert np.isnan(pearson_r(steps, np.full(5, 0.1) + 1e-17))
    assert np.isnan(pearson_r(steps[:1], steps[:1]))
    assert spearman_rho(steps, np.exp(steps)) == pytest.approx(1)
    weights = np.array([1, 0, 2, 1, 0])
    values = np.array([3.0, 9.0, 1.0, 2.0, 5.0])
    repeated = np.repeat(np.arange(5), weights)
    assert pearson_r(steps, values, weights) == pytest.approx(pearsonr(steps[repeated], values[repeated])[0])
