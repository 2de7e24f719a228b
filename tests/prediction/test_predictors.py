"""All predictors: conventions, symmetries, clear rules for unusual data, and how well they predict."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mergekern.errors import PredictionError
from mergekern.prediction import (
    PREDICTORS,
    ClippedScaler,
    LeaveOneTaskOut,
    LeaveTasksOut,
    MeasuredPairs,
    UnnamedPairsWarning,
    cross_validate_pairs,
    make_predictor,
    read_scores,
)
from mergekern.prediction.predictors import contributions
from mergekern.prediction.refits import fit_estimator, predict_pairs
from mergekern.prediction.scores import align_scores
from tests.support.measurements import METHODS, PUBLISHED, make_scores, make_table, needs_published, published_table

# The study's fits have tests of their own.
KINDS = ("linear", "forest", "additive", "additive+metrics")
FAST = {"forest": {"n_estimators": 20}}


def build(kind):
    return make_predictor(kind, FAST.get(kind, {}))


@pytest.fixture(scope="module")
def data():
    table = make_table(tasks=9)
    scores = make_scores(table, metric_share=0.02)
    return table.to_pandas(), scores.to_numpy(), np.array(scores.index.tolist())


def predictions(kind, X, y, pairs, new_X=None, new_pairs=None):
    fitted = fit_estimator(build(kind), X, y, pairs)
    return predict_pairs(fitted, X if new_X is None else new_X, pairs if new_pairs is None else new_pairs)


@parametrize_with_checks([ClippedScaler(), *map(build, KINDS)])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_the_target_change_nothing_else(kind, data):
    X, y, pairs = data
    plain = predictions(kind, X, y, pairs)
    for slope, offset in ((100.0, -3.0), (-0.5, 10.0)):
        np.testing.assert_allclose(predictions(kind, X, slope * y + offset, pairs), slope * plain + offset, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_a_metric_change_nothing(kind, data):
    X, y, pairs = data
    slopes = np.array([1e3, -1.0, 1e-4, -7.0, 1.0])
    changed = X * slopes + np.array([0.0, 5.0, -1.0, 1e2, 1e-3])
    np.testing.assert_allclose(predictions(kind, changed, y, pairs), predictions(kind, X, y, pairs), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_pairs_and_within_a_pair_changes_nothing(kind, data):
    X, y, pairs = data
    order = np.random.default_rng(1).permutation(len(y))
    swapped = pairs[order].copy()
    swapped[::2] = swapped[::2, ::-1]
    plain = predictions(kind, X, y, pairs)
    moved = predictions(kind, X.iloc[order], y[order], swapped)
    np.testing.assert_allclose(moved, plain[order], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_of_a_frame_names_the_pairs(kind, data):
    X, y, pairs = data
    of_index = clone(build(kind)).fit(X, y).predict(X)
    np.testing.assert_array_equal(of_index, build(kind).fit(X.to_numpy(), y, pairs).predict(X.to_numpy(), pairs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_metric_changes_nothing_of_linear_kinds_and_spoils_none(kind, data):
    X, y, pairs = data
    constant = X.assign(constant=0.1 + 0.2)
    found = predictions(kind, constant, y, pairs)
    assert np.isfinite(found).all()
    if kind in ("additive", "linear"):
        np.testing.assert_allclose(found, predictions(kind, X, y, pairs), rtol=1e-9)


def test_copies_of_a_metric_share_its_coefficient(data):
    X, y, pairs = data
    twice = X.assign(copy=X.iloc[:, 0])
    coefficients = make_predictor("linear").fit(twice, y, pairs).coef_
    assert coefficients[0] == pytest.approx(coefficients[-1], rel=1e-9)
    assert abs(coefficients[0]) > 1e-4


@pytest.mark.parametrize("kind", ["linear", "forest", "additive+metrics"])
def test_a_missing_metric_is_refused(kind, data):
    X, y, pairs = data
    holed = X.copy()
    holed.iloc[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        build(kind).fit(holed, y, pairs)


def test_effects_need_no_metric(data):
    X, y, pairs = data
    nothing = X * np.nan
    np.testing.assert_array_equal(predictions("additive", nothing, y, pairs), predictions("additive", X, y, pairs))


@pytest.mark.parametrize("kind", KINDS)
def test_three_pairs_are_enough_for_a_cautious_prediction(kind, data):
    X, y, pairs = data
    rows = [0, 1, 8]
    assert {name for pair in pairs[rows] for name in pair} == {"task0", "task1", "task2"}
    found = predictions(kind, X.iloc[rows], y[rows], pairs[rows], X, pairs)
    spread = np.ptp(y[rows])
    assert (found > y[rows].min() - 2 * spread).all()
    assert (found < y[rows].max() + 2 * spread).all()


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_may_all_share_one_model(kind, data):
    X, y, pairs = data
    star = (pairs == "task4").any(1)
    found = predictions(kind, X[star], y[star], pairs[star], X, pairs)
    assert np.isfinite(found).all()
    assert np.ptp(found) < 3 * np.ptp(y)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_target_is_predicted(kind, data):
    X, y, pairs = data
    np.testing.assert_allclose(predictions(kind, X, np.full(len(y), 0.7), pairs), 0.7, rtol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "sparse", *KINDS])
def test_contributions_add_up_to_the_prediction(kind, data):
    X, y, pairs = data
    options = {"solver": "exact"} if kind in ("dense", "sparse") else FAST.get(kind, {})
    fitted = fit_estimator(make_predictor(kind, options), X.iloc[5:], y[5:], pairs[5:])
    terms = contributions(fitted, X, pairs)
    assert list(terms.columns) == ["mean", "model_a", "model_b", *X.columns]
    np.testing.assert_allclose(terms.sum(axis=1), predict_pairs(fitted, X, pairs), rtol=1e-12)


def test_the_linear_kind_clips_what_is_far_outside(data):
    X, y, pairs = data
    fitted = make_predictor("linear").fit(X, y, pairs)
    far = X.iloc[[0]] + 1e6 * X.std()
    farther = X.iloc[[0]] + 1e9 * X.std()
    np.testing.assert_array_equal(fitted.predict(far), fitted.predict(farther))


def test_unknown_predictors_and_options_are_named():
    with pytest.raises(PredictionError, match="did you mean 'forest'"):
        make_predictor("forrest")
    with pytest.raises(PredictionError, match=r"no option 'alhpa' .did you mean 'alpha'"):
        make_predictor("sparse", {"alhpa": 1.0})
    with pytest.raises(PredictionError, match="level must be in"):
        make_predictor("additive", {"level": 2.0}).fit([[0.0], [1.0]], [0.0, 1.0])
    with pytest.raises(PredictionError, match="penalties must be positive"):
        make_predictor("linear", {"penalties": [-1.0]}).fit([[0.0], [1.0]], [0.0, 1.0])


def test_every_predictor_has_a_description():
    assert all(kind.description for kind in PREDICTORS.values())


def published(method):
    table = published_table()
    frame = table.to_pandas()
    y = align_scores(read_scores(PUBLISHED / "accuracy_vit_b16.csv", method), frame.index, table.models)
    complete = frame.notna().all(axis=1) & y.notna()
    return frame[complete], y[complete].to_numpy()


def mean_r(kind, method, splitter, **options):
    X, y = published(method)
    found = cross_validate_pairs(make_predictor(kind, options), X, y, splitter=splitter, baselines=False, n_resamples=0)
    return found.folds["val_r"].mean()


@pytest.mark.parametrize("kind", ["linear", "additive", "additive+metrics"])
def test_in_a_pipeline_names_are_kept_asked_for_or_missed_aloud(kind, data):
    """A step that returns an array takes the index away, as scikit-learn's do unless set_output asks for frames.

    https://scikit-learn.org/stable/auto_examples/miscellaneous/plot_set_output.html
    """
    X, y, pairs = data
    plain = build(kind).fit(X, y, pairs)
    framed = make_pipeline(StandardScaler(), build(kind)).set_output(transform="pandas").fit(X, y)
    np.testing.assert_allclose(framed.predict(X), plain.predict(X, pairs), rtol=1e-9)
    # The index of y names the pairs to fit to; nothing names those to predict.
    piped = make_pipeline(StandardScaler(), build(kind)).fit(X, pd.Series(y, X.index))
    np.testing.assert_allclose(piped.predict(X, pairs=pairs), plain.predict(X, pairs), rtol=1e-9)
    if kind != "linear":
        with pytest.raises(PredictionError, match="which models each row is a pair of is not known"):
            piped.predict(X)
    with pytest.warns(UnnamedPairsWarning, match="the models of the pairs are not known"):
        make_pipeline(StandardScaler(), build(kind)).fit(X, y)


@needs_published
def test_linear_predicts_the_study_better_than_its_own_fits():
    found = [mean_r("linear", method, LeaveOneTaskOut()) for method in METHODS]
    assert np.mean(found) >= 0.57


@needs_published
def test_the_forest_predicts_the_study_better_than_the_linear_kind():
    assert mean_r("forest", "tsv", LeaveOneTaskOut(), n_estimators=50) >= 0.78


@needs_published
def test_effects_and_metrics_predict_the_study_from_forty_pairs():
    splitter = MeasuredPairs(40, n_repeats=5)
    found = {kind: [mean_r(kind, method, splitter) for method in METHODS] for kind in ("additive", "additive+metrics")}
    assert np.mean(found["additive+metrics"]) >= 0.95
    assert (np.array(found["additive+metrics"]) >= np.array(found["additive"]) - 1e-12).all()


@needs_published
def test_effects_say_nothing_of_unmeasured_models_and_metrics_do():
    X, y = published("tsv")
    pairs = np.array(X.index.tolist())
    train, test = next(LeaveTasksOut(n_repeats=1).split(X, y))
    found = fit_estimator(make_predictor("additive+metrics"), X.iloc[train], y[train], pairs[train])
    alone = fit_estimator(make_predictor("linear", {"unseen": True}), X.iloc[train], y[train], pairs[train])
    effects = fit_estimator(make_predictor("additive"), X.iloc[train], y[train], pairs[train])
    assert pd.Series(predict_pairs(effects, X.iloc[test], pairs[test])).nunique() == 1
    np.testing.assert_allclose(predict_pairs(found, X.iloc[test], pairs[test]), alone.predict(X.iloc[test]), rtol=1e-9)
