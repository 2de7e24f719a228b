"""Conformal intervals cover as often as they state, whether both, one or none of a pair's models are known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mergekern.errors import PredictionError
from mergekern.prediction import LeaveOneTaskOut, LeaveTasksOut, MeasuredPairs, conformal_intervals, make_predictor
from mergekern.prediction.error_scale import fit_error_scale
from mergekern.prediction.refits import fit_estimator, predict_pairs, predicted_sd
from tests.support.measurements import make_scores, make_table


def coverage(estimator, splitter, tables=4, folds=2):
    """Return the share of held-out pairs inside their intervals, over tables of 12 models."""
    inside = []
    for seed in range(tables):
        table = make_table(tasks=12, seed=seed)
        X, y = table.to_pandas(), make_scores(table, seed=seed).to_numpy()
        pairs = np.array(X.index.tolist())
        for number, (train, test) in enumerate(splitter.split(X, y)):
            if number == folds:
                break
            intervals = conformal_intervals(estimator, X.iloc[train], y[train], pairs[train])
            fitted = fit_estimator(estimator, X.iloc[train], y[train], pairs[train])
            measured = np.isin(pairs[test], np.unique(pairs[train])).sum(1)
            found = predict_pairs(fitted, X.iloc[test], pairs[test])
            low, high = intervals.around(found, predicted_sd(fitted, X.iloc[test], pairs[test]), measured)
            inside.extend((low <= y[test]) & (y[test] <= high))
    return np.mean(inside)


@pytest.mark.parametrize(
    "estimator", [make_predictor("additive", {"dof": 1e6}), LinearRegression()], ids=["sd", "no sd"]
)
@pytest.mark.parametrize(
    "splitter", [MeasuredPairs(30), LeaveOneTaskOut(), LeaveTasksOut(4)], ids=["both", "one", "neither"]
)
def test_coverage_is_what_is_promised(estimator, splitter):
    # All errors of a fold come from the same few unknown effects, so 8 folds are few.
    assert 0.68 <= coverage(estimator, splitter) <= 0.92


def test_folds_do_not_depend_on_the_order_of_rows():
    table = make_table(tasks=6)
    X, y = table.to_pandas(), make_scores(table).to_numpy()
    pairs = np.array(X.index.tolist())
    order = np.random.default_rng(0).permutation(len(y))
    plain = conformal_intervals(make_predictor("additive"), X, y, pairs)
    moved = conformal_intervals(make_predictor("additive"), X.iloc[order], y[order], pairs[order][:, ::-1])
    assert plain.held_out == moved.held_out
    np.testing.assert_allclose([*plain.widths.values()], [*moved.widths.values()], rtol=1e-6)


def test_a_higher_level_is_wider_and_an_impossible_one_is_refused():
    table = make_table(tasks=8)
    X, y = table.to_pandas(), make_scores(table).to_numpy()
    pairs = np.array(X.index.tolist())
    widths = [
        conformal_intervals(make_predictor("linear"), X, y, pairs, level=level).widths for level in (0.5, 0.8, 0.95)
    ]
    assert all(widths[0][count] < widths[1][count] < widths[2][count] for count in range(3))
    with pytest.raises(PredictionError, match="between 0 and 1"):
        conformal_intervals(make_predictor("linear"), X, y, pairs, level=80)


def test_too_few_pairs_have_no_interval_rather_than_a_made_up_one():
    X = pd.DataFrame(
        {"stable_rank": [1.0, 2.0, 3.0]}, index=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c"), ("b", "c")])
    )
    intervals = conformal_intervals(
        make_predictor("additive"), X, np.array([0.5, 0.6, 0.7]), np.array(X.index.tolist())
    )
    assert intervals.widths[0] is None
    low, high = intervals.around(np.array([0.5]), np.array([1.0]), np.array([0]))
    assert np.isnan([low, high]).all()


def test_the_slope_of_errors_is_found_and_drawn_to_0_where_few_errors_tell():
    random = np.random.default_rng(0)
    predictions = random.normal(0.8, 0.1, 400)
    z = (predictions - predictions.mean()) / predictions.std()
    errors = np.abs(random.standard_normal(400)) * np.exp(-0.4 * z)
    many, few = fit_error_scale(predictions, errors), fit_error_scale(predictions[:12], errors[:12])
    assert many.slope == pytest.approx(-0.4, abs=0.05)
    assert abs(few.slope) < 0.3
    assert fit_error_scale(predictions, 100 * errors).slope == pytest.approx(many.slope)
    # Beyond what was seen, errors stop growing.
    assert many.at(np.array([-5.0])) == many.at(np.array([predictions.mean() - 2.5 * predictions.std()]))
    for flat in (fit_error_scale(predictions[:4], errors[:4]), fit_error_scale(np.full(9, 0.5), errors[:9])):
        assert flat.slope == 0
    assert fit_error_scale(predictions, np.zeros(400)).slope == 0
