"""Decisions: which method, pair, partner and group, what to measure next; and what they cost beside simple rules."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mergekern.errors import PredictionError
from mergekern.prediction import (
    MergePredictor,
    best_group,
    best_method,
    best_pair,
    best_partners,
    make_predictor,
    next_measurements,
    recommend,
)
from mergekern.prediction.figures import choice_regrets, random_regrets
from mergekern.prediction.method_choice import _threshold, method_regrets, method_rule
from mergekern.tables.metric_table import MetricTable
from tests.prediction.test_prior import needs_models, study
from tests.support.measurements import METHODS, make_scores, make_table, needs_published


@pytest.fixture(scope="module")
def table():
    return make_table(tasks=9)


def predictors(table, **scores):
    return [
        MergePredictor.fit(table, values.rename("accuracy"), method, "additive") for method, values in scores.items()
    ]


@pytest.fixture
def recommended():
    index = pd.MultiIndex.from_tuples(list(combinations("abcde", 2)), names=["model_a", "model_b"])
    score = pd.Series([0.9, 0.5, 0.6, 0.4, 0.5, 0.7, 0.3, 0.8, 0.6, 0.7], index)
    frame = pd.DataFrame({"score": score, "low": score - 0.1, "high": score + 0.1, "measured": False, "method": "tsv"})
    frame.loc[("c", "d"), "measured"] = True
    return frame.sort_values("score", ascending=False)


def test_the_best_overall_is_taken_though_another_is_predicted_to_be_better_by_chance(table):
    random = np.random.default_rng(0)
    scores = make_scores(table, noise=0.02)
    other = scores - 0.002 + pd.Series(0.03 * random.standard_normal(len(scores)), scores.index)
    chosen = scores.sample(16, random_state=1).index
    fitted = predictors(table, ties=other[chosen], tsv=scores[chosen])
    found = recommend(fitted, table)
    rule = method_rule(fitted, [0.0, 0.0])
    left = found[~found["measured"]]
    assert rule.compared == 16
    assert rule.threshold == np.inf
    assert left["method"].nunique() == 1
    measured = found[found["measured"]]
    best = pd.concat([other[chosen], scores[chosen]], axis=1).max(axis=1)
    # A measured pair has the method that was measured to be best, and its score.
    pd.testing.assert_series_equal(measured["score"].sort_index(), best.sort_index(), check_names=False)


def test_another_method_is_taken_where_that_pays_on_held_out_pairs(table):
    scores = make_scores(table, noise=0.004)
    odd = pd.Series([("task0" in pair) + ("task1" in pair) for pair in scores.index], scores.index)
    other = scores - 0.03 + 0.15 * odd
    fitted = predictors(table, tsv=scores.iloc[:30], ties=other.iloc[:30])
    rule = method_rule(fitted, [0.0, 0.0])
    assert 0 <= rule.threshold < 0.2
    assert 0.8 < rule.share <= 1
    found = recommend(fitted, table)
    left = found[~found["measured"]]
    expected = np.where([other[pair] > scores[pair] for pair in left.index], "ties", "tsv")
    assert (left["method"] == expected).mean() > 0.9


def test_a_threshold_must_pay_by_more_than_chance():
    random = np.random.default_rng(0)
    leads = random.standard_normal(40)
    assert _threshold(leads, random.standard_normal(40) - 0.5) == (np.inf, 0.0)
    threshold, share = _threshold(leads, 0.5 * leads)
    assert 0 <= threshold < 1
    assert share == pytest.approx(0.5)


def test_promises_are_drawn_to_the_mean_where_held_out_pairs_fell_short(table):
    noise = pd.Series(np.random.default_rng(4).standard_normal(36), table.to_pandas().index, name="accuracy")
    fitted = MergePredictor.fit(table, (0.8 + 0.02 * noise).iloc[:14], "tsv", "forest", options={"n_estimators": 50})
    plain, promised = fitted.predict(table), recommend([fitted], table)
    left = plain["measured"].isna()
    spread = promised.loc[plain[left].index, "score"].std() / plain.loc[left, "prediction"].std()
    assert spread < 0.9
    # The order stays.
    assert promised[~promised["measured"]].index[0] == plain[left].index[0]


def test_intervals_reach_beyond_what_is_promised_near_the_limit_of_an_accuracy(table):
    """Predictions above 1 are drawn to the mean first, and cut off then."""
    scores = make_scores(table, noise=0.0)
    noise = pd.Series(np.random.default_rng(5).standard_normal(len(scores)), scores.index)
    scores = 1.1 - 0.5 * (scores.max() - scores) / np.ptp(scores) + 0.05 * noise
    measured = scores.clip(0, 1).sample(22, random_state=0)
    fitted = [predictors(table, tsv=measured)[0], predictors(table, ties=measured * 0.95)[0]]
    found = recommend(fitted, table)
    left = found[~found["measured"]]
    assert (fitted[0].uncut(table)["prediction"] > 1).any()
    assert left["high"].max() == 1.0
    assert (left["low"] < left["score"]).all()
    assert (left["high"] > left["score"])[left["score"] < 1].all()
    assert left["score"].between(0, 1).all()
    done = found[found["measured"]]
    assert (done["low"] == done["score"]).all()
    assert (done["high"] == done["score"]).all()


def test_promises_beyond_the_limit_of_an_accuracy_are_cut_off(table):
    scores = make_scores(table, noise=0.0)
    scores = 1.1 - 0.5 * (scores.max() - scores) / np.ptp(scores)
    fitted = predictors(table, tsv=scores[scores < 1])
    assert (fitted[0].uncut(table)["prediction"] > 1.02).any()
    assert recommend(fitted, table)["score"].max() == 1.0


def test_questions_by_hand(recommended):
    assert best_pair(recommended).name == ("a", "b")
    assert best_partners(recommended, "c").index[0] == ("c", "d")
    assert best_method(recommended, "e", "d") == "tsv"
    assert best_group(recommended, 2) == ["a", "b"]
    scores = recommended["score"]
    worth = {group: np.mean([scores[pair] for pair in combinations(group, 2)]) for group in combinations("abcde", 3)}
    assert tuple(best_group(recommended, 3)) == max(worth, key=worth.get)
    with pytest.raises(PredictionError, match="of 2 to 5 models, not 6"):
        best_group(recommended, 6)
    with pytest.raises(PredictionError, match="no model 'f'"):
        best_partners(recommended, "f")
    with pytest.raises(PredictionError, match="no pair of 'a' and 'a'"):
        best_method(recommended, "a", "a")
    with pytest.raises(PredictionError, match="no 5 models have a score"):
        best_group(recommended.assign(score=recommended["score"].where(recommended["score"] > 0.35)), 5)


def test_large_groups_are_found_by_exchange(recommended, monkeypatch):
    exact = best_group(recommended, 3)
    monkeypatch.setattr("mergekern.prediction.decisions.MOST_GROUPS", 0)
    assert best_group(recommended, 3) == exact


def test_what_to_measure_next_and_when_to_stop(recommended):
    found = next_measurements(recommended)
    assert found.index[0] == ("a", "b")
    assert ("c", "d") not in found.index
    # By simulation: the mean of max(0, y - 0.8) with y ~ N(0.9, 0.1 / 1.2816).
    draws = np.maximum(np.random.default_rng(0).normal(0.9, 0.1 / 1.2816, 200_000) - 0.8, 0).mean()
    assert found["expected_improvement"].iloc[0] == pytest.approx(draws, abs=1e-3)
    assert found["worth_measuring"].iloc[0]
    done = recommended.assign(measured=recommended["score"] > 0.85, low=recommended["score"], high=recommended["score"])
    assert not next_measurements(done)["worth_measuring"].any()
    unknown = recommended.assign(low=np.nan, high=np.nan)
    assert next_measurements(unknown)["worth_measuring"].all()


def test_regrets_by_hand():
    pairs = pd.DataFrame(
        {"fold": [0, 0, 0, 1], "model_a": list("aabd"), "model_b": list("bcce"), "y": [0.9, 0.7, 0.5, 0.1]}
    )
    found = choice_regrets(pairs, np.array([1.0, 2.0, 3.0, 0.0]))
    assert found["best pair"] == pytest.approx(0.4)
    assert found["best partner"] == pytest.approx((0.2 + 0.4 + 0.2) / 3)
    assert random_regrets(pairs)["best pair"] == pytest.approx(0.2)
    assert choice_regrets(pairs, pairs["y"].to_numpy()) == {"best pair": 0.0, "best partner": 0.0}


def test_regrets_of_methods_stand_beside_simple_ways_to_choose(table):
    scores = make_scores(table, noise=0.004)
    odd = pd.Series([("task0" in pair) + ("task1" in pair) for pair in scores.index], scores.index)
    other = scores - 0.03 + 0.15 * odd
    found = method_regrets(predictors(table, tsv=scores.iloc[:30], ties=other.iloc[:30]))
    both = pd.concat([scores, other], axis=1).iloc[:30]
    most = both.max(axis=1)
    assert found["oracle"] == 0
    assert found["random method"] == pytest.approx((most - both.mean(axis=1)).mean())
    assert found["always the best method"] == pytest.approx((most - both[both.mean().idxmax()]).mean())
    assert found["recommended"] < 0.5 * found["always the best method"]
    assert 0 <= found["largest prediction"] < found["always the best method"]
    assert method_regrets(predictors(table, tsv=scores.iloc[:30])) == {}
    assert method_regrets(predictors(table, tsv=scores.iloc[:9], ties=other.iloc[:9])) == {}


@needs_published
@needs_models
@pytest.mark.parametrize("m", [10, 20, 40])
def test_recommending_costs_no_more_than_the_best_measured_method_on_the_study(m):
    """The rule on its own, with predictions and held-out predictions as MergePredictor makes them."""
    data = {method: study(method, "accuracy") for method in METHODS}
    complete = sorted(set.intersection(*(set(y.index) for _, y in data.values())))
    X = data["tsv"][0].loc[complete]
    Y = pd.DataFrame({method: y.loc[complete] for method, (_, y) in data.items()}).to_numpy()
    models = sorted({name for pair in complete for name in pair})
    table = MetricTable(models, {"stable_rank": np.ones((20, 20))})
    excess = []
    for seed in range(4):
        rows = np.random.default_rng([m, seed]).permutation(len(complete))[:m]
        fitted = [_light(table, X, Y[:, k], rows, method) for k, method in enumerate(METHODS)]
        index = X.index.difference(X.index[rows])
        found = recommend(fitted, X.loc[index])
        scores = pd.DataFrame(Y, X.index, METHODS).loc[found.index]
        chosen = scores.to_numpy()[np.arange(len(found)), [METHODS.index(name) for name in found["method"]]]
        always = scores[METHODS[int(Y[rows].mean(0).argmax())]]
        excess.append(100 * (always - chosen).mean())
    assert np.mean(excess) <= 0.02


def _light(table, X, y, rows, method):
    """Return a predictor without conformal intervals and validation, which take most of the time of a fit."""
    from mergekern.prediction import ConformalIntervals, PairFolds

    columns = ["own_accuracy_mean", "base_accuracy_mean"]
    train, target = X.iloc[rows][columns], y[rows]
    held_out = pd.Series(np.nan, train.index)
    for inside, outside in PairFolds().split(train):
        part = make_predictor("prior+additive").fit(train.iloc[inside], target[inside])
        held_out.iloc[outside] = part.predict(train.iloc[outside])
    return MergePredictor(
        kind="prior+additive", method=method, target="accuracy", metrics=tuple(columns),
        estimator=make_predictor("prior+additive").fit(train, target), ranges={},
        measured=pd.Series(target, train.index),
        intervals=ConformalIntervals(0.8, {0: None, 1: None, 2: None}, {0: 0, 1: 0, 2: 0}),
        validation={"both unseen": {}}, held_out=held_out, dropped={}, provenance={},
    )  # fmt: skip
