"""The prior: model scores from lists of models, the fixed rule, corrections by measured merges, and the commands."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import mergekern
from mergekern.cli import main
from mergekern.errors import OptionError, PredictionError
from mergekern.prediction import (
    AutoRegressor,
    LeaveOneTaskOut,
    LeaveTasksOut,
    MeasuredPairs,
    MergePredictor,
    PriorRegressor,
    UnnamedPairsWarning,
    available_kind,
    make_predictor,
    model_scores,
    normalized_accuracy,
)
from mergekern.prediction.correlation import pearson_r
from mergekern.prediction.refits import fit_estimator, predict_pairs
from mergekern.tables.metric_table import MetricTable
from tests.support.measurements import METHODS, PUBLISHED, make_table, needs_published, write_scores

KNOWN = {
    "boats": {"own_accuracy": 0.84, "base_accuracy": 0.52},
    "clocks": {"own_accuracy": 0.98, "base_accuracy": 0.31},
    "dogs": {"own_accuracy": 0.91, "base_accuracy": 0.88},
    "eels": {"own_accuracy": 0.75, "base_accuracy": 0.60},
}


def listed(tmp_path, text):
    path = tmp_path / "models.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def X():
    return model_scores(KNOWN, KNOWN)


def test_model_scores_by_hand(X):
    assert X.index.names == ["model_a", "model_b"]
    assert list(X) == [name for name in mergekern.MODEL_SCORES if "accuracy" in name]
    assert X.loc[("boats", "clocks")].round(3).tolist() == [0.91, 0.84, 0.415, 0.31]
    assert X.index.tolist() == MetricTable(KNOWN, {"stable_rank": np.ones((4, 4))}).to_pandas().index.tolist()


def test_model_scores_from_files_frames_and_mappings_are_the_same(tmp_path, X):
    frame = pd.DataFrame(KNOWN).T.rename_axis("model")
    path = tmp_path / "models.csv"
    frame.iloc[::-1].assign(note="ignored").to_csv(path)
    for source in (path, str(path), frame, frame.reset_index()):
        pd.testing.assert_frame_equal(mergekern.model_scores(list(KNOWN), source), X)


def test_what_is_not_known_is_an_empty_cell(tmp_path):
    path = listed(tmp_path, "\ufeffmodel,own_accuracy,base_accuracy\nsea,0.9,\nsky,0.8,0.4\nextra,1,1\n")
    found = model_scores(["sea", "sky"], path).iloc[0]
    assert found["own_accuracy_mean"] == pytest.approx(0.85)
    assert np.isnan(found["base_accuracy_mean"])
    assert np.isnan(found["base_accuracy_min"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,own_accuracy\nsea,0.9\n", r"no row of sky.*did you mean|no row of sky"),
        ("model,own_acuracy\nsea,0.9\nsky,0.5\n", "no column 'own_accuracy' .did you mean 'own_acuracy'"),
        ("name,own_accuracy\nsea,0.9\n", "no column 'model'"),
        ("model,own_accuracy\nsea,0.9\nsky,0.8\nsea,0.7\n", "sea is listed twice"),
        ("model,own_accuracy\nsea,91\nsky,0.8\n", "own_accuracy of sea is '91', not a share from 0 to 1"),
        ("model,own_accuracy,base_accuracy\nsea,0.9,good\nsky,0.8,0\n", "base_accuracy of sea is 'good'"),
        ("", "models cannot be read"),
    ],
)
def test_lists_that_cannot_be_read_right_are_refused(tmp_path, text, message):
    with pytest.raises(PredictionError, match=message):
        model_scores(["sea", "sky"], listed(tmp_path, text))


def test_model_scores_are_a_category_of_their_own_and_join_tables(tmp_path, X):
    table = MetricTable(KNOWN, {"stable_rank": np.ones((4, 4))})
    joined = table.join(X)
    assert joined.metrics == ("stable_rank", *X)
    assert not mergekern.MODEL_SCORES.keys() & mergekern.CATALOGUE.keys()
    pd.testing.assert_frame_equal(joined.to_pandas()[list(X)], X)
    for suffix in ("csv", "json", "parquet"):
        joined.save(tmp_path / f"table.{suffix}")
        assert MetricTable.load(tmp_path / f"table.{suffix}").metrics == joined.metrics
    with pytest.raises(OptionError, match="no metrics cannot be joined: luck"):
        table.join(X.assign(luck=1.0))
    with pytest.raises(OptionError, match=r"mergekern\.model_scores"):
        mergekern.metrics.select("model scores")


def test_the_rule_is_fixed_and_fits_nothing(X):
    wrong = np.linspace(0, 1, 6)
    for fitted in (PriorRegressor().fit(X), PriorRegressor().fit(X, wrong), PriorRegressor().fit(X.iloc[:0])):
        expected = 0.9 * X["own_accuracy_mean"] + 0.1 * X["base_accuracy_mean"]
        np.testing.assert_allclose(fitted.predict(X), expected, rtol=1e-12)
    normalised = make_predictor("prior", target="normalized_accuracy").fit(X).predict(X)
    np.testing.assert_allclose(normalised, 0.9 + 0.1 * X["base_accuracy_mean"], rtol=1e-12)
    own = PriorRegressor().fit(X[["own_accuracy_mean"]])
    np.testing.assert_array_equal(own.predict(X[["own_accuracy_mean"]]), X["own_accuracy_mean"])
    # Columns are found by name, wherever they are.
    np.testing.assert_array_equal(
        PriorRegressor().fit(X[X.columns[::-1]]).predict(X[X.columns[::-1]]), fitted.predict(X)
    )


def test_one_merge_moves_the_level_and_more_merges_the_models(X):
    y = PriorRegressor().fit(X).predict(X) - 0.1 * X["own_accuracy_mean"]
    one = make_predictor("prior+additive").fit(X.iloc[[0]], y.iloc[[0]])
    np.testing.assert_allclose(one.predict(X), y, rtol=1e-9)
    names = np.array(X.index.tolist())
    bad = y - 0.2 * X["own_accuracy_mean"] * (names == "eels").any(1)
    five = make_predictor("prior+additive").fit(X.iloc[:5], bad.iloc[:5])
    assert five.tasks_.tolist() == sorted(KNOWN)
    assert five.effects_[3] - five.effects_[:3].mean() == pytest.approx(-0.2, abs=0.04)
    assert five.predict(X)[5] == pytest.approx(bad.iloc[5], abs=0.03)
    # A model that was never merged keeps the prior's rank, at the corrected level.
    new = X.rename(index={"eels": "new"})
    assert five.predict_sd(new)[5] > five.predict_sd(X)[5]
    np.testing.assert_allclose(five.contributions(X).sum(1), five.predict(X), rtol=1e-12)


def test_effects_shrink_to_the_prior_as_ridge_does(X):
    y = np.array([0.8, 0.82, 0.7, 0.9, 0.76, 0.75])
    found = make_predictor("prior+additive", target="normalized_accuracy").fit(X, y)
    pairs = np.array(X.index.tolist())
    design = (pairs[:, :1] == found.tasks_).astype(float) + (pairs[:, 1:] == found.tasks_)
    inverse = np.linalg.inv(np.eye(6) + 10.0 * design @ design.T)
    left = y - 0.9 - 0.1 * X["base_accuracy_mean"].to_numpy()
    mean = (inverse @ left).sum() / inverse.sum()
    assert found.mean_ == pytest.approx(mean)
    np.testing.assert_allclose(found.effects_, 10.0 * design.T @ inverse @ (left - mean), rtol=1e-8)
    assert found.residual_variance_ == pytest.approx((left - mean) @ inverse @ (left - mean) / 5)


def many(failed=()):
    """Return model scores of 8 models, the normalised accuracies of 28 merges, and effects of their models."""
    random = np.random.default_rng(3)
    names = list("abcdefgh")
    frame = pd.DataFrame({"model": names, "own_accuracy": 0.9, "base_accuracy": random.uniform(0.2, 0.8, 8)})
    X = model_scores(names, frame)
    effects = pd.Series(0.05 * random.standard_normal(8), names)
    y = 0.8 + 0.1 * X["base_accuracy_mean"] + [effects[a] + effects[b] for a, b in X.index]
    return X, y + 0.005 * random.standard_normal(28) - [0.5 * (pair in failed) for pair in X.index], effects


def test_measured_merges_say_how_far_effects_shrink():
    """The ratio is the mode of restricted likelihood times a log-normal density, here from dense matrices."""
    X, y, _ = many()
    found = make_predictor("prior+additive", target="normalized_accuracy").fit(X, y)
    left = (y - 0.9 - 0.1 * X["base_accuracy_mean"]).to_numpy()
    pairs = np.array(X.index.tolist())
    design = (pairs[:, :1] == found.tasks_).astype(float) + (pairs[:, 1:] == found.tasks_)
    ones = np.ones(28)

    def deviance(log_ratio):
        """With Gaussian residuals, which those of no failed merge are nearly."""
        V = np.eye(28) + np.exp(log_ratio) * design @ design.T
        inverse = np.linalg.inv(V)
        centred = left - (ones @ inverse @ left) / (ones @ inverse @ ones)
        likelihood = 27 * np.log(centred @ inverse @ centred) + np.linalg.slogdet(V)[1]
        return likelihood + np.log(ones @ inverse @ ones) + (log_ratio - np.log(10)) ** 2

    grid = np.linspace(0, 8, 801)
    assert np.log(found.effects_ratio_) == pytest.approx(grid[np.argmin([deviance(at) for at in grid])], abs=0.2)
    assert found.effects_ratio_ > 20
    # Seven merges leave it as it is expected.
    assert make_predictor("prior+additive", target="normalized_accuracy").fit(X[:7], y[:7]).effects_ratio_ == 10.0


def test_a_failed_merge_spoils_no_effects():
    X, y, effects = many(failed=[("a", "b")])
    found = make_predictor("prior+additive", target="normalized_accuracy").fit(X, y)
    np.testing.assert_allclose(found.effects_, effects - effects.mean(), atol=0.02)
    others = [pair != ("a", "b") for pair in X.index]
    np.testing.assert_allclose(found.predict(X)[others], y[others], atol=0.03)


@parametrize_with_checks([make_predictor(kind) for kind in ("prior", "prior+additive", "auto")])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_columns_that_are_no_shares_or_are_missing_are_refused(X):
    with pytest.raises(PredictionError, match="own_accuracy_mean must be shares"):
        PriorRegressor().fit((X - X.mean()) / X.std())
    with pytest.raises(PredictionError, match="lacks base_accuracy_mean; join"):
        PriorRegressor().fit(X).predict(X[["own_accuracy_mean"]])
    with pytest.raises(PredictionError, match="accuracy or normalized_accuracy, not 'loss'"):
        make_predictor("prior", target="loss").fit(X)
    with pytest.raises(PredictionError, match="no column own_accuracy_mean to predict from"):
        PriorRegressor().fit(X[["base_accuracy_mean"]])
    with pytest.warns(UnnamedPairsWarning, match="the mean of y is predicted"):
        PriorRegressor().fit(X.to_numpy(), np.full(6, 0.5))
    with pytest.raises(PredictionError, match="no option 'target'"):
        make_predictor("linear", target="accuracy")


def test_auto_takes_what_is_there_and_says_which(X):
    assert available_kind(X, 0) == "prior"
    assert available_kind(X, 3, "normalized_accuracy") == "prior+additive"
    assert available_kind(X, 3, "loss") == "additive+metrics"
    assert available_kind(["stable_rank"], 3) == "additive+metrics"
    with pytest.raises(PredictionError, match="nothing is known of accuracy: list the models"):
        available_kind(["stable_rank"], 0)
    assert clone(AutoRegressor()).fit(X).kind_ == "prior"
    other = pd.DataFrame({"stable_rank": np.arange(6.0)}, index=X.index)
    fitted = AutoRegressor().fit(other, np.arange(6.0))
    assert fitted.kind_ == "additive+metrics"
    assert len(fitted.predict_sd(other)) == len(fitted.contributions(other)) == 6


def test_normalised_accuracy_is_the_mean_of_ratios():
    assert normalized_accuracy([0.4, 0.9], own=[0.8, 1.0]) == pytest.approx(0.7)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    table = make_table(tasks=7)
    random = np.random.default_rng(1)
    names = list(table.models)
    frame = pd.DataFrame({"model": names, "own_accuracy": random.uniform(0.8, 1, 7), "base_accuracy": 0.5})
    frame.to_csv(folder / "models.csv", index=False)
    table.save(folder / "table.parquet")
    scores = 0.8 * model_scores(names, frame)["own_accuracy_mean"].iloc[:9] + 0.01 * random.standard_normal(9)
    write_scores(folder / "scores.csv", scores)
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_predictions_without_any_merge_on_the_command_line(files):
    table, models, out = files / "table.parquet", files / "models.csv", files / "ranked.csv"
    said = run("predict", table, "--models", models, "--out", out)
    assert "predicted by prior from 0 measured pairs" in said
    ranked = pd.read_csv(out, index_col=["model_a", "model_b"])
    frame = model_scores(MetricTable.load(table).models, models)
    expected = 0.9 * frame["own_accuracy_mean"] + 0.1 * frame["base_accuracy_mean"]
    assert ranked["prediction"].iloc[0] == pytest.approx(expected.max())
    assert ranked["low"].isna().all()
    assert "fixed rule" in ranked["remarks"].iloc[0]
    assert "prior: accuracy of tsv from 0 pairs" in run(
        "fit", table, "--models", models, "--method", "tsv", "--out", files / "prior.json"
    )
    run("predict", table, "--models", models, "--predictor", files / "prior.json", "--out", files / "again.csv")
    pd.testing.assert_frame_equal(pd.read_csv(files / "again.csv", index_col=[0, 1]), ranked)
    assert "--models" in run("predict", table, "--predictor", files / "prior.json", code=1)
    assert "--predictor or --models" in run("predict", table, code=2)
    assert "--scores or --models" in run("fit", table, "--method", "tsv", "--out", files / "none.json", code=2)


def test_fit_with_models_and_scores_says_which_predictor_it_chose(files):
    out = files / "tsv.json"
    said = run("fit", files / "table.parquet", "--scores", files / "scores.csv", "--models", files / "models.csv",
               "--method", "tsv", "--out", out)  # fmt: skip
    assert "prior+additive: accuracy of tsv from 9 pairs" in said
    assert "regret" in said
    # The case of a user comes first: both models measured elsewhere, beside what needs no fit.
    rows = ["both measured: predictor", "own accuracy, no fit", "random", "oracle", "partner known: predictor"]
    places = [said.index(row, said.index("regret")) for row in rows]
    assert places == sorted(places)
    assert MergePredictor.load(out).metrics == ("own_accuracy_mean", "base_accuracy_mean")
    plain = run("fit", files / "table.parquet", "--scores", files / "scores.csv", "--method", "tsv", "--out",
                files / "plain.json")  # fmt: skip
    assert "additive+metrics: accuracy of tsv from 9 pairs" in plain


def test_saved_and_loaded_predicts_the_same(files, tmp_path):
    table = MetricTable.load(files / "table.parquet")
    table = table.join(model_scores(table.models, files / "models.csv"))
    scores = pd.Series(np.linspace(0.6, 0.9, 21), table.to_pandas().index, name="accuracy")[:8]
    fitted = MergePredictor.fit(table, scores, "tsv")
    fitted.save(tmp_path / "p.json")
    loaded = MergePredictor.load(tmp_path / "p.json")
    pd.testing.assert_frame_equal(loaded.predict(table), fitted.predict(table), check_exact=True)


def study(method, target):
    """Return the study's model scores and one target, of the pairs that have it."""
    y = pd.read_csv(PUBLISHED / "accuracy_vit_b16.csv").set_index(["method", "model_a", "model_b"])[target][method]
    models = pd.read_csv(PUBLISHED / "models_vit_b16.csv")
    known = model_scores(models["model"], models)
    known.index = pd.MultiIndex.from_tuples([tuple(sorted(pair)) for pair in known.index])
    y.index = pd.MultiIndex.from_tuples([tuple(sorted(pair)) for pair in y.index], names=["model_a", "model_b"])
    return known.reindex(y.dropna().index), y.dropna()


def mean_r(kind, splitter, target="accuracy"):
    out = []
    for method in METHODS:
        X, y = study(method, target)
        pairs = np.array(X.index.tolist())
        found = []
        for _, train, test in splitter.folds(pairs):
            fitted = fit_estimator(make_predictor(kind, target=target), X.iloc[train], y.iloc[train], pairs[train])
            found.append(pearson_r(predict_pairs(fitted, X.iloc[test], pairs[test]), y.iloc[test].to_numpy()))
        out.append(np.mean(found))
    return np.array(out)


needs_models = pytest.mark.skipif(not (PUBLISHED / "models_vit_b16.csv").is_file(), reason="the study's models")


@needs_published
@needs_models
def test_the_study_is_predicted_without_a_merge_of_either_model():
    raw = mean_r("prior", LeaveTasksOut(n_repeats=40))
    assert raw.mean() >= 0.72
    assert raw.min() >= 0.40
    assert mean_r("prior", LeaveTasksOut(n_repeats=40), "normalized_accuracy").mean() >= 0.30


@needs_published
@needs_models
def test_the_study_is_predicted_better_with_each_measured_merge():
    found = [mean_r("auto", MeasuredPairs(m, n_repeats=10)).mean() for m in (5, 10, 20, 40)]
    assert found[0] >= 0.65
    assert (np.diff(found) > 0).all()
    assert found[2] >= 0.93
    assert found[-1] >= 0.975
    assert mean_r("auto", LeaveOneTaskOut()).mean() >= 0.95
