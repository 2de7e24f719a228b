"""Variance components, fingerprints, single metrics, selection, ablation and warnings, on cases with known answers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, pearsonr, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from mergekern.errors import OptionError, PredictionError
from mergekern.prediction import (
    GreedySelector,
    LeaveTwoTasksOut,
    PearsonRegressor,
    RankNormalScaler,
    ablate_categories,
    backward_elimination,
    cross_validate_pairs,
    failure_signatures,
    fingerprints,
    forward_selection,
    individual_correlations,
    mlp_baseline,
    variance_components,
)
from tests.support.pairs import all_pairs, make_pairs


@parametrize_with_checks([RankNormalScaler(), GreedySelector(), GreedySelector("backward")])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_effects_alone_explain_all_and_interaction_the_rest():
    index = all_pairs(6)
    a, b = np.triu_indices(6, 1)
    effects = np.array([3.0, 1.0, -1.0, 0.5, -2.0, -1.5])
    additive = pd.Series(10 + effects[a] + effects[b], index=index)
    parts = variance_components(additive)
    assert parts.tasks == pytest.approx(1)
    np.testing.assert_allclose(parts.effects, effects, atol=1e-9)
    # +1 and -1 around a cycle of four sum to 0 for every task, so no task effect can explain them.
    pure = pd.Series(0.0, index=index)
    for first, second, sign in (("0", "1", 1), ("1", "2", -1), ("2", "3", 1), ("0", "3", -1)):
        pure[(f"task0{first}", f"task0{second}")] = sign
    assert variance_components(pure).interaction == pytest.approx(1)
    both = variance_components(additive + pure)
    np.testing.assert_allclose(both.residuals, pure, atol=1e-9)
    assert both.interaction == pytest.approx(4 / ((additive + pure).var(ddof=0) * 15))
    assert both.tasks == 1 - both.interaction


def test_effects_of_noise_are_adjusted_away():
    adjusted, plain = [], []
    for seed in range(40):
        parts = variance_components(np.random.default_rng(seed).standard_normal(45), all_pairs(10))
        adjusted.append(parts.adjusted_tasks)
        plain.append(parts.tasks)
    assert np.mean(plain) == pytest.approx(9 / 44, abs=0.05)
    assert abs(np.mean(adjusted)) < 0.05


def test_variance_of_few_pairs_gaps_and_constants():
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")]
    parts = variance_components([1.0, 2.0, 3.0, np.nan], pairs)
    assert parts.effects.index.tolist() == ["a", "b", "c"]
    assert np.isnan(parts.adjusted_tasks)
    with pytest.raises(PredictionError, match="no variance"):
        variance_components([1.0, 1.0, 1.0, np.nan], pairs)
    # The mean of seven times 0.1 is not 0.1.
    star = [("a", name) for name in "bcdefgh"]
    with pytest.raises(PredictionError, match="no variance"):
        variance_components([0.1] * 7, star)
    with pytest.raises(PredictionError, match="one value for each of 7 pairs"):
        variance_components(pd.DataFrame({"y": range(7)}), star)


@pytest.mark.parametrize("tasks", ["abcdefgh", "abcd"], ids=["many pairs", "a path and more"])
def test_effects_are_those_of_least_squares(tasks):
    random = np.random.default_rng(3)
    pairs = all_pairs(len(tasks)) if len(tasks) > 4 else [("a", "b"), ("b", "c"), ("c", "d"), ("a", "c"), ("e", "f")]
    y = 1e3 + random.standard_normal(len(pairs))
    parts = variance_components(y, pairs)
    names = parts.effects.index
    design = np.array([[(name in pair) for name in names] for pair in pairs], dtype=float)
    expected = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(parts.residuals, expected, atol=1e-10)
    assert parts.interaction == pytest.approx((expected**2).sum() / ((y - y.mean()) ** 2).sum())
    freedom = len(y) - np.linalg.matrix_rank(design)
    adjusted = 1 - parts.interaction * (len(y) - 1) / freedom if freedom else np.nan
    assert parts.adjusted_tasks == pytest.approx(adjusted, nan_ok=True)


def test_fingerprints_by_hand():
    coefs = pd.DataFrame(
        {"x": [5.0, -4.0, 3.0, 0.0], "y": [-5.0, -4.0, 0.1, 1.0], "z": [0.0, -2.0, 1.0, -0.5]}, index=list("abcd")
    )
    found = fingerprints(coefs, k=2)
    # The two largest: ab, ab, bc.
    assert found.overlaps.loc["x", "y"] == 1.0
    assert found.overlaps.loc["x", "z"] == found.overlaps.loc["z", "y"] == 0.5
    assert found.topk_overlap == pytest.approx(2 / 3)
    assert found.agreements.to_numpy().tolist() == [[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]]
    assert found.sign_agreement == pytest.approx(0.5)
    assert found.stable_metrics == ["b"]
    assert found.counts.loc["a"].tolist() == [2, 1, 1]


@pytest.mark.parametrize("frame", [pd.DataFrame({"x": [1.0, 2.0]}), pd.DataFrame({"x": [1.0], "y": [2.0]})])
def test_fingerprints_need_methods_and_metrics(frame):
    with pytest.raises(PredictionError, match="2 coefficients or more of two methods or more"):
        fingerprints(frame, k=2)


def test_fingerprints_are_of_numbers():
    values = np.array([[3.0, 1.0], [-2.0, 0.2], [0.1, -2.0]])
    assert fingerprints(values, k=2).topk_overlap == fingerprints(pd.DataFrame(values), k=2).topk_overlap
    with pytest.raises(PredictionError, match="coefficients are numbers"):
        fingerprints(pd.DataFrame({"metric": ["a", "b"], "tsv": [1.0, 2.0], "ties": [1.0, 2.0]}), k=1)


def test_single_metrics_of_arrays_and_of_pairs_that_do_not_fit():
    X, y = make_pairs()
    found = individual_correlations(X.to_numpy(), y.to_numpy(), X.index, n_permutations=9)
    expected = individual_correlations(X, y, n_permutations=9)
    np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())
    with pytest.raises(PredictionError, match="a different order"):
        individual_correlations(X, y.iloc[::-1])
    with pytest.raises(PredictionError, match="listed more than once"):
        individual_correlations(pd.concat([X, X.iloc[:1]]), np.append(y, 0.0))


def test_single_metrics_where_they_have_values():
    X, y = make_pairs()
    X.iloc[:3, 0] = np.nan
    X["constant"] = 0.1
    y.iloc[10] = np.nan
    found = individual_correlations(X, y, n_permutations=99)
    rows = X["metric0"].notna() & y.notna()
    assert found.loc["metric0", "n"] == rows.sum() == 24
    assert found.loc["metric0", "r"] == pytest.approx(pearsonr(X["metric0"][rows], y[rows])[0])
    assert found.loc["metric0", "rho"] == pytest.approx(spearmanr(X["metric0"][rows], y[rows])[0])
    assert found.loc["constant", ["r", "rho", "p_value", "p_adjusted"]].isna().all()
    assert (found["p_adjusted"].dropna() >= found["p_value"].dropna()).all()
    assert np.abs(found["r"].dropna()).is_monotonic_decreasing


def test_significance_is_of_tasks_not_of_pairs():
    """Task effects in X and y agree by chance; a test that takes pairs as independent finds them significant."""
    naive, by_tasks, adjusted = [], [], []
    for seed in range(1000, 1100):
        random = np.random.default_rng(seed)
        a, b = np.triu_indices(8, 1)
        of_tasks = random.standard_normal((8, 4))
        sums = of_tasks[a] + of_tasks[b]
        X = pd.DataFrame(sums[:, 1:], index=all_pairs(8))
        found = individual_correlations(X, sums[:, 0], n_permutations=39, random_state=seed)
        naive.append(pearsonr(X[0], sums[:, 0])[1] <= 0.05)
        by_tasks.append(found.loc[0, "p_value"] <= 0.05)
        adjusted.append(found["p_adjusted"].min() <= 0.05)
    assert np.mean(naive) > 0.3
    assert np.mean(by_tasks) < 0.15
    assert np.mean(adjusted) < 0.15


def test_selection_finds_what_matters():
    X, y = make_pairs(10, metrics=6, noise=0.5)
    forward, backward = forward_selection(X, y), backward_elimination(X, y, threshold=0.01)
    assert forward.metrics == backward.metrics == ["metric0", "metric1"]
    assert forward.history["metric"].tolist() in (["metric0", "metric1"], ["metric1", "metric0"])
    expected = LinearRegression().fit(X[["metric0", "metric1"]], y).predict(X[["metric0", "metric1"]])
    for selection in (forward, backward):
        assert selection.history["train_r"].iloc[-1] == pytest.approx(pearsonr(expected, y)[0])
    assert sorted(backward.history["metric"]) == ["metric2", "metric3", "metric4", "metric5"]
    assert (backward.history["change"] > -0.01).all()


def test_selection_needs_a_target_for_each_pair():
    X, y = make_pairs()
    with pytest.raises(PredictionError, match="one value for each of 28 pairs"):
        forward_selection(X, y.iloc[:-1])


def test_selection_of_copies_and_of_nothing():
    X, y = make_pairs()
    X["copy"] = -3 * X["metric0"] + 1
    assert "copy" not in forward_selection(X, y).metrics
    assert len(backward_elimination(X, y).metrics) < 5
    assert forward_selection(X, y, threshold=2.0).metrics == []
    assert len(backward_elimination(X, y, threshold=2.0).metrics) == 1
    assert GreedySelector(threshold=2.0).fit(X, y).get_support().tolist() == [True, False, False, False, False]
    with pytest.raises(PredictionError, match="complete_pairs"):
        forward_selection(X, y * np.nan)
    with pytest.raises(OptionError, match="forward"):
        GreedySelector("sideways").fit(X, y)


def test_each_fold_selects_for_itself():
    X, y = make_pairs(metrics=10, noise=10.0)
    found = cross_validate_pairs(
        make_pipeline(GreedySelector(), PearsonRegressor(penalty=None)), X, y, baselines=False, n_resamples=0
    )
    fold = found.predictions["fold"] == 2
    inside = ~(np.array(X.index.tolist()) == "task02").any(1)
    chosen = forward_selection(X[inside], y[inside]).metrics
    model = PearsonRegressor(penalty=None).fit(X.loc[inside, chosen], y[inside])
    np.testing.assert_allclose(found.predictions.loc[fold, "prediction"], model.predict(X.loc[~inside, chosen]))


def test_ablation_by_category():
    X, y = make_pairs()
    X.columns = ["stable_rank", "task_vector_dot_product", "subspace_overlap", "unknown"]
    table = ablate_categories(LinearRegression(), X, y)
    assert table.index.tolist() == ["all metrics", "effective rank", "task-vector geometry", "subspace overlap"]
    without = cross_validate_pairs(LinearRegression(), X.drop(columns="stable_rank"), y, baselines=False, n_resamples=0)
    alone = cross_validate_pairs(LinearRegression(), X[["stable_rank"]], y, baselines=False, n_resamples=0)
    assert table.loc["effective rank", "val_r"] == without.score
    assert table.loc["effective rank", "alone_val_r"] == alone.score
    assert table.loc["effective rank", "change"] == without.score - table.loc["all metrics", "val_r"] < -0.1
    assert abs(table.loc["subspace overlap", "change"]) < 0.05
    own = ablate_categories(LinearRegression(), X, y, splitter=LeaveTwoTasksOut(), categories={"unknown": "mine"})
    assert own.index.tolist() == ["all metrics", "mine"]
    assert own.notna().all(axis=None)
    whole = ablate_categories(LinearRegression(), X[["stable_rank"]], y)
    assert np.isnan(whole.loc["effective rank", "val_r"])
    assert whole.loc["effective rank", "alone_val_r"] == whole.loc["all metrics", "val_r"]
    with pytest.raises(PredictionError, match="none of the columns"):
        ablate_categories(LinearRegression(), X.rename(columns=str.upper), y)


def test_signatures_of_a_sound_and_an_unsound_predictor():
    X, y = make_pairs()
    sound = cross_validate_pairs(LinearRegression(), X[["metric0", "metric1"]], y, n_resamples=0, n_permutations=19)
    assert failure_signatures(sound) == []
    folds = sound.folds.assign(train_r=0.9, val_r=0.6)
    coefficients = sound.coefficients.assign(metric0=[1.0, -1.0] * 4)
    said = failure_signatures(dataclasses.replace(sound, folds=folds, coefficients=coefficients, p_value=0.2))
    assert said[0] == "training r exceeds validation r by 0.30 (0.90 against 0.60)"
    assert said[1] == "over the folds, the standard deviation is above the mean of 1 of 2 coefficients: metric0"
    assert said[2] == "the sign changes between folds of 1 of 2 coefficients: metric0"
    assert said[-1] == "tasks with their names permuted do as well (p = 0.200)"


def test_scores_of_ranks():
    X = np.array([[1.0, 5.0], [1e6, 5.0], [2.0, 7.0], [3.0, 5.0]])
    scaler = RankNormalScaler().fit(X)
    first = norm.ppf([1 / 8, 7 / 8, 3 / 8, 5 / 8])
    np.testing.assert_allclose(scaler.transform(X)[:, 0], first)
    np.testing.assert_allclose(scaler.transform(X)[:, 1], norm.ppf([3 / 8, 3 / 8, 7 / 8, 3 / 8]))
    np.testing.assert_allclose(scaler.transform([[-9.0, 6.0], [1.5, 1e9]])[:, 0], [first[0], (first[0] + first[2]) / 2])
    turned = RankNormalScaler().fit(-3 * X + 2).transform(-3 * X + 2)
    np.testing.assert_allclose(turned, -scaler.transform(X), atol=1e-12)


def test_the_network_is_deterministic_and_in_units_of_the_target():
    X, y = make_pairs(12)
    first, again = (mlp_baseline().fit(X, y).predict(X) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert 0.5 < first.mean() < 1.1
