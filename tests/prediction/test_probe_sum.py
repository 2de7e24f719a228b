"""Sums of probes with fixed weights: by hand, by the names of columns, before and after merges are measured."""

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from mergekern.errors import PredictionError
from mergekern.prediction import MergePredictor, ProbeSumRegressor, UnnamedPairsWarning, make_predictor
from tests.support.measurements import make_scores, make_table


@pytest.fixture
def X():
    random = np.random.default_rng(0)
    index = make_table(tasks=6).to_pandas().index
    names = ("stable_rank", "solo_loss_mean[tsv]", "solo_loss_mean[ties]", "direct_loss_mean[ties]",
             "direct_accuracy_mean[ties]", "base_loss_mean")  # fmt: skip
    return pd.DataFrame(random.uniform(0, 1, (15, 6)), index, names)


def standard(values):
    return (values - values.mean()) / values.std(ddof=0)


@parametrize_with_checks([ProbeSumRegressor(), ProbeSumRegressor(metrics=True)])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_sums_by_hand(X):
    """No column is beyond 3 standard deviations here."""
    solo = make_predictor("probes", {"method": "tsv"}).fit(X)
    expected = -standard(X["solo_loss_mean[tsv]"]) - 0.5 * standard(X["base_loss_mean"])
    np.testing.assert_allclose(solo.predict(X), expected, rtol=1e-12)
    direct = ProbeSumRegressor("ties").fit(X)
    expected = standard(X["direct_accuracy_mean[ties]"]) - standard(X["direct_loss_mean[ties]"])
    np.testing.assert_allclose(direct.predict(X), expected, rtol=1e-12)
    np.testing.assert_allclose(direct.contributions(X).sum(1) + direct.intercept_, expected, rtol=1e-12)
    with pytest.raises(PredictionError, match="probes by ties, tsv; say which"):
        ProbeSumRegressor().fit(X)
    with pytest.raises(PredictionError, match=r"no column of probes, such as solo_loss_mean\[dare\]"):
        ProbeSumRegressor("dare").fit(X[["stable_rank"]])
    with pytest.warns(UnnamedPairsWarning, match="the mean of y is predicted"):
        assert ProbeSumRegressor().fit(X.to_numpy(), np.full(15, 0.5)).predict(X.to_numpy()) == pytest.approx(0.5)


def test_measured_merges_give_level_and_slope_and_never_turn_the_order_around(X):
    sums = ProbeSumRegressor("ties").fit(X).predict(X)
    fitted = ProbeSumRegressor("ties").fit(X, 0.8 + 0.03 * sums)
    np.testing.assert_allclose(fitted.predict(X), 0.8 + 0.03 * sums, rtol=1e-12)
    contrary = ProbeSumRegressor("ties").fit(X, 0.8 - 0.03 * sums)
    assert contrary.slope_ == pytest.approx(0.05 * 0.03)
    np.testing.assert_array_equal(np.argsort(contrary.predict(X)), np.argsort(sums))


def test_a_fitted_predictor_reads_the_probes_of_its_method(tmp_path):
    table = make_table(tasks=6)
    scores = make_scores(table)
    random = np.random.default_rng(1)
    probes = pd.DataFrame(
        {f"solo_loss_mean[{method}]": random.uniform(0, 1, 15) for method in ("tsv", "ties")}, scores.index
    )
    probed = table.join(probes)
    found = MergePredictor.fit(probed, scores, "ties", "probes")
    assert found.metrics == ("solo_loss_mean[ties]",)
    found.save(tmp_path / "probes.json")
    predicted = MergePredictor.load(tmp_path / "probes.json").predict(probed)
    assert predicted.index[0] == probes["solo_loss_mean[ties]"].idxmin()
    with pytest.raises(PredictionError, match=r"no probes by dare: join mergekern\.merge_probes"):
        MergePredictor.fit(probed, scores, "dare", "probes")


def test_metrics_stand_beside_solo_probes_with_fixed_signs(X):
    X = X.assign(
        task_vector_cosine_similarity=np.linspace(-1, 1, 15), task_vector_l2_distance=np.arange(15.0) ** 2,
        **{"solo_accuracy_mean[tsv]": np.linspace(1, 0, 15) ** 2},
    )  # fmt: skip
    found = make_predictor("probes+metrics", {"method": "tsv"}).fit(X)
    expected = (
        standard(X["solo_accuracy_mean[tsv]"]) - standard(X["solo_loss_mean[tsv]"])
        - 0.5 * standard(X["base_loss_mean"]) + 0.5 * standard(X["task_vector_cosine_similarity"])
        - 0.5 * standard(X["task_vector_l2_distance"])
    )  # fmt: skip
    np.testing.assert_allclose(found.predict(X), expected, rtol=1e-12)
    assert found.correction_ is None
    # Merges of five models cannot hold out groups of models.
    few = X[["task5" not in pair for pair in X.index]]
    assert make_predictor("probes+metrics", {"method": "tsv"}).fit(few, np.arange(10.0)).correction_ is None
    np.testing.assert_array_equal(make_predictor("probes", {"method": "tsv"}).fit(X).columns_, ["solo_loss_mean[tsv]",
                                  "base_loss_mean"])  # fmt: skip


def test_measured_merges_correct_the_sum_for_models_without_any(tmp_path):
    """A metric that the sum does not read decides, and merges of ten models say so of two others."""
    table = make_table(tasks=12, metrics=8)
    frame = table.to_pandas()
    random = np.random.default_rng(1)
    names = ("solo_loss_mean[ties]", "solo_loss_mean[tsv]", "direct_loss_mean[tsv]")
    table = table.join(pd.DataFrame({name: random.uniform(0, 1, len(frame)) for name in names}, frame.index))
    scores = (0.6 + 0.05 * standard(frame["stable_rank"]) + 0.01 * standard(table.to_pandas()[names[0]])).rename("loss")
    known = scores[[not {"task0", "task1", "task2"} & set(pair) for pair in scores.index]]
    found = MergePredictor.fit(table, known, "ties", "probes+metrics")
    plain = MergePredictor.fit(table, known, "ties", "probes")
    assert found.metrics == (*frame.columns, "solo_loss_mean[ties]")
    left = scores.index.difference(known.index)
    r = [np.corrcoef(each.predict(table).loc[left, "prediction"], scores[left])[0, 1] for each in (found, plain)]
    assert r[0] > 0.8 > r[1]
    found.save(tmp_path / "probes.json")
    loaded = MergePredictor.load(tmp_path / "probes.json")
    pd.testing.assert_frame_equal(loaded.predict(table), found.predict(table), check_exact=True)
    terms = found.explain(table)
    prediction = found.predict(table)["prediction"].reindex(terms.index)
    np.testing.assert_allclose(terms.sum(axis=1), prediction, rtol=1e-9)
