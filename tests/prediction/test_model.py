"""A fitted predictor: its predictions, explanations and files, and the commands that make and use one."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mergekern.cli import main
from mergekern.cli.prediction import KINDS
from mergekern.errors import PredictionError
from mergekern.prediction import PREDICTORS, MergePredictor, make_predictor, model_scores, read_scores, recommend
from mergekern.tables.metric_table import MetricTable
from tests.support.measurements import make_scores, make_table, write_scores

# The others get the intervals of "linear", since validating each takes seconds.
VALIDATED = ("additive", "linear", "additive+metrics")
OPTIONS = {"dense": {"solver": "exact"}, "sparse": {"solver": "exact"}, "forest": {"n_estimators": 10}}


@pytest.fixture(scope="module")
def table():
    return make_table(tasks=8)


@pytest.fixture(scope="module")
def scores(table):
    """Scores of the pairs among six of the eight models."""
    every = make_scores(table, metric_share=0.02)
    return every[[("task6" not in pair) and ("task7" not in pair) for pair in every.index]]


def accuracies(table, seed=0):
    """Return made-up accuracies of the models, and of the base on their tasks."""
    random = np.random.default_rng(seed)
    own, base = random.uniform(0.8, 1.0, len(table.models)), random.uniform(0.1, 0.7, len(table.models))
    return pd.DataFrame({"own_accuracy": own, "base_accuracy": base}, index=list(table.models))


def probes(table):
    """Return made-up losses of merge probes by tsv, and of the base."""
    index = table.to_pandas().index
    losses = np.random.default_rng(1).uniform(0, 1, (len(index), 2))
    return pd.DataFrame(losses, index, ["solo_loss_mean[tsv]", "base_loss_mean"])


@pytest.fixture(scope="module")
def fitted(table, scores):
    found = {kind: MergePredictor.fit(table, scores, "tsv", kind) for kind in VALIDATED}
    X = table.to_pandas().loc[found["linear"].measured.index]
    for kind in PREDICTORS:
        if kind not in VALIDATED:
            estimator = make_predictor(kind, OPTIONS.get(kind, {})).fit(X, found["linear"].measured.to_numpy())
            found[kind] = dataclasses.replace(found["linear"], kind=kind, estimator=estimator)
    return found


@pytest.mark.parametrize("kind", PREDICTORS)
def test_saved_and_loaded_predicts_the_same_to_the_last_bit(kind, fitted, table, tmp_path):
    path = tmp_path / "model.json"
    fitted[kind].save(path)
    loaded = MergePredictor.load(path)
    pd.testing.assert_frame_equal(loaded.predict(table), fitted[kind].predict(table), check_exact=True)
    pd.testing.assert_frame_equal(loaded.explain(table), fitted[kind].explain(table), check_exact=True)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize("kind", PREDICTORS)
def test_predictions_are_ranked_explained_and_inside_their_intervals(kind, fitted, table):
    found = fitted[kind].predict(table)
    assert len(found) == 28
    assert found["prediction"].is_monotonic_decreasing
    terms = fitted[kind].explain(table).reindex(found.index)
    np.testing.assert_allclose(terms.sum(axis=1), found["prediction"], rtol=1e-12)
    assert (found["low"] <= found["prediction"]).all()
    assert (found["prediction"] <= found["high"]).all()
    assert found["measured"].notna().sum() == 15
    assert found["measured_models"].value_counts().to_dict() == {2: 15, 1: 12, 0: 1}


def test_no_accuracy_is_predicted_beyond_its_limits(table, scores, tmp_path):
    """Symmetric intervals overshoot near 1 (en.wikipedia.org/wiki/Binomial_proportion_confidence_interval)."""
    near = (scores - scores.max() + 0.999).rename("accuracy")
    fitted = MergePredictor.fit(table, near, "tsv", "additive")
    for predictor in (fitted, dataclasses.replace(fitted)):
        found = predictor.predict(table)
        assert found[["prediction", "high"]].max().max() == 1.0
        assert (found["low"] <= found["prediction"]).all()
        assert (found["prediction"] <= found["high"]).all()
    fitted.save(tmp_path / "near.json")
    pd.testing.assert_frame_equal(MergePredictor.load(tmp_path / "near.json").predict(table), found, check_exact=True)
    percent = MergePredictor.fit(table, 100 * near, "tsv", "additive").predict(table)
    np.testing.assert_allclose(percent["high"].max(), 100.0)
    other = MergePredictor.fit(table, near.rename("normalized_accuracy"), "tsv", "additive").predict(table)
    assert other["high"].max() > 1.0


def test_what_is_not_known_is_said(fitted, table):
    found = fitted["additive"].predict(table)
    unknown = found.loc[("task6", "task7")]
    assert unknown["remarks"].startswith("no merge of either model has been measured")
    assert found.loc[("task0", "task6"), "remarks"] == "no merge of one of the models has been measured"
    assert found.loc[("task0", "task1"), "remarks"] == ""
    wide = (found["high"] - found["low"]).groupby(found["measured_models"]).mean()
    assert wide[0] > wide[1] > wide[2]


def test_expected_r_is_that_of_the_validation(fitted, table):
    predictor = fitted["additive+metrics"]
    r = predictor.expected_r("both unseen")
    assert -1 <= r <= 1
    assert predictor.validation["partner known"]["folds"] == 6
    said = predictor.predict(table).loc[("task6", "task7"), "remarks"].split("; ")[0].split("expected r ")[1]
    assert float(said) == round(r, 1)


def test_an_expected_r_of_nothing_has_no_sign(fitted, table):
    found = dataclasses.replace(fitted["additive"], validation={"both unseen": {"val_r_mean": -0.02}}).predict(table)
    assert found.loc[("task6", "task7"), "remarks"] == "no merge of either model has been measured: expected r 0.0"


def test_drivers_are_the_largest_terms(fitted, table):
    predictor = fitted["additive"]
    first = predictor.predict(table).iloc[0]
    pair = first.name
    effects = dict(zip(predictor.estimator.tasks_, predictor.estimator.effects_, strict=True))
    larger, smaller = sorted(pair, key=lambda name: -abs(effects[name]))
    assert first["drivers"] == f"{larger} {effects[larger]:+.3g}, {smaller} {effects[smaller]:+.3g}"


def test_pairs_without_a_metric_are_left_out_by_name(scores, table):
    values = {name: table.matrix(name) for name in table.metrics}
    values["stable_rank" if "stable_rank" in values else table.metrics[0]][0, 1] = np.nan
    name = "stable_rank" if "stable_rank" in values else table.metrics[0]
    values[name][1, 0] = np.nan
    values[table.metrics[-1]][:] = np.nan
    holed = MetricTable(table.models, values)
    predictor = MergePredictor.fit(holed, scores, "tsv", "linear")
    assert predictor.dropped == {("task0", "task1"): f"no value for {name}"}
    assert predictor.provenance["metrics_without_values"] == [table.metrics[-1]]
    last = predictor.predict(holed).iloc[-1]
    assert last.name == ("task0", "task1")
    assert np.isnan(last["prediction"])
    assert last["remarks"] == f"not predicted: no value for {name}"
    # Task effects need no metric.
    assert MergePredictor.fit(holed, scores, "tsv", "additive").dropped == {}


def test_values_outside_of_the_training_pairs_are_named(fitted, table):
    values = {name: table.matrix(name) for name in table.metrics}
    values[table.metrics[2]][0, 1] = values[table.metrics[2]][1, 0] = 1e3
    found = fitted["linear"].predict(MetricTable(table.models, values))
    assert found.loc[("task0", "task1"), "remarks"] == f"outside of the training pairs in {table.metrics[2]}"


def test_a_table_without_the_metrics_is_refused(fitted, table):
    less = MetricTable(table.models, {name: table.matrix(name) for name in table.metrics[1:]})
    with pytest.raises(PredictionError, match=f"lacks 1 of the 5 metrics.*{table.metrics[0]}"):
        fitted["forest"].predict(less)
    assert len(fitted["additive"].predict(less)) == 28


@pytest.mark.parametrize("call", ["predict", "explain"])
def test_a_frame_without_the_names_of_the_models_is_refused(fitted, table, call):
    """The check is not an assertion, which `python -O` would drop."""
    with pytest.raises(PredictionError, match="does not name the two models"):
        getattr(fitted["linear"], call)(table.to_pandas().reset_index(drop=True))


def test_too_few_scores_are_refused_and_three_suffice(table, scores):
    with pytest.raises(PredictionError, match="2 scores of tsv are too few"):
        MergePredictor.fit(table, scores.iloc[:2], "tsv")
    few = MergePredictor.fit(table, scores.iloc[[0, 1, 5]], "tsv")
    found = few.predict(table)
    assert found["prediction"].notna().all()
    assert "how well that can be predicted is not known" in found[found["measured_models"] == 0]["remarks"].iloc[0]
    assert "why_not" in few.validation["both unseen"]


@pytest.mark.parametrize("kind", PREDICTORS)
def test_every_predictor_can_be_fitted_to_three_pairs_of_three_models(kind, table, scores):
    table = table.join(model_scores(table.models, accuracies(table))) if PREDICTORS[kind].uses_model_scores else table
    table = table.join(probes(table)) if PREDICTORS[kind].uses_probes else table
    three = scores[[set(pair) <= {"task0", "task1", "task2"} for pair in scores.index]]
    assert MergePredictor.fit(table, three, "tsv", kind).predict(table)["prediction"].notna().all()


def test_recommend_of_one_method_has_no_runner_up_and_of_no_value_no_method(fitted, table):
    values = {name: table.matrix(name) for name in table.metrics}
    values[table.metrics[0]][6, 7] = values[table.metrics[0]][7, 6] = np.nan
    found = recommend([fitted["linear"]], MetricTable(table.models, values))
    assert found["runner_up"].isna().all()
    assert not found["clear"].any()
    last = found.iloc[-1]
    assert last.name == ("task6", "task7")
    assert pd.isna(last["method"])
    assert last["remarks"] == "not predicted by any method"
    assert found["measured"].dtype == found["clear"].dtype == bool
    assert found["measured"].sum() == 15


def test_recommend_prefers_what_was_measured_to_be_better(table, scores):
    predictors = [
        MergePredictor.fit(table, scores, "tsv", "additive"),
        MergePredictor.fit(table, (scores - 0.3).iloc[1:], "ties", "additive"),
        MergePredictor.fit(table, (scores + 1.0).iloc[:3], "dare", "additive"),
    ]
    found = recommend(predictors, table)
    assert found["score"].is_monotonic_decreasing
    assert set(found["method"]) == {"dare"}
    row = recommend(predictors[:2], table).loc[("task2", "task3")]
    assert (row["method"], row["runner_up"], row["measured"], row["clear"]) == ("tsv", "ties", True, True)
    assert row["lead"] == pytest.approx(0.3)
    with pytest.raises(PredictionError, match="one predictor for each method"):
        recommend([predictors[0], predictors[0]], table)
    other = MergePredictor.fit(table, scores.rename("loss"), "isotropic", "additive")
    with pytest.raises(PredictionError, match="different targets cannot be compared: accuracy, loss"):
        recommend([predictors[0], other], table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="pickle"), "not a predictor written by mergekern fit"),
        (lambda d: d.update(format_version=99), "written in format 99, this version reads format 1"),
        (lambda d: d.pop("estimator"), "damaged predictor .estimator: field required"),
        (lambda d: d["estimator"].update({"class": "Popen"}), "no estimator 'Popen' is known"),
        (lambda d: d["estimator"]["fitted"].update({"__class__": 1}), "damaged predictor"),
        (lambda d: d["estimator"]["fitted"]["coef_"].update(dtype="object"), "no array of 'object'"),
        (lambda d: d["intervals"].pop("level"), "damaged predictor"),
        (lambda d: d.update(measured=[["a"]]), "damaged predictor"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(fitted, tmp_path, change, message):
    path = tmp_path / "model.json"
    fitted["linear"].save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(PredictionError, match=message):
        MergePredictor.load(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b'{"format": "mergekern predictor"'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(PredictionError, match=r"model\.json: not a"):
        MergePredictor.load(path)


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory, table, scores):
    folder = tmp_path_factory.mktemp("prediction")
    table.save(folder / "metrics.parquet")
    write_scores(folder / "scores.csv", scores)
    run("fit", folder / "metrics.parquet", "--scores", folder / "scores.csv", "--method", "tsv", "--kind",
        "additive", "--out", folder / "tsv.json")  # fmt: skip
    return folder


def test_fit_and_predict(files, table, scores):
    out = files / "ranked.csv"
    result = run("predict", files / "metrics.parquet", "--predictor", files / "tsv.json", "--rows", 3, "--out", out)
    expected = MergePredictor.fit(table, scores, "tsv", "additive").predict(table)
    ranked = pd.read_csv(out, index_col=["model_a", "model_b"])
    assert ranked.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(ranked["prediction"], expected["prediction"], rtol=1e-12)
    assert "25 more pairs" in result.stdout
    assert "no merge of either model has been measured" in result.stdout
    assert result.stdout.splitlines()[1].split()[1:3] == list(expected.index[0])


def test_fit_says_how_well_it_predicts(files):
    result = run("fit", files / "metrics.parquet", "--scores", files / "scores.csv", "--method", "tsv", "--kind",
                 "linear", "--out", files / "linear.json")  # fmt: skip
    assert "linear: accuracy of tsv from 15 pairs" in result.stdout
    assert "partner known" in result.stdout
    assert "both unseen" in result.stdout
    assert f"wrote {files / 'linear.json'}" in result.stdout


def test_recommend_on_the_command_line(files):
    result = run("recommend", files / "metrics.parquet", "--predictor", files / "tsv.json", "--rows", 0)
    assert "tsv: best for 28 pairs" in result.stdout
    result = run("recommend", files / "metrics.parquet", "--predictor", files / "tsv.json", "--partner-of", "task6",
                 "--group", 3, "--next", 2)  # fmt: skip
    assert "tsv: best for 7 pairs" in result.stdout
    assert "best 3 models together: task" in result.stdout
    assert result.stdout.count("measure next: ") == 2


def test_plan_on_the_command_line(files, table):
    out = files / "plan.csv"
    result = run("plan-measurements", files / "metrics.parquet", "-k", 3, "--scores", files / "scores.csv", "--method",
                 "tsv", "--method", "ties", "--out", out)  # fmt: skip
    planned = [line for line in result.stdout.splitlines() if "+" in line]
    assert len(planned) == 3
    assert all("task6" in pair or "task7" in pair for pair in planned)
    rows = pd.read_csv(out)
    assert rows.columns.tolist() == ["method", "model_a", "model_b", "accuracy"]
    assert rows["method"].tolist() == ["tsv"] * 3 + ["ties"] * 3
    # The scores are empty until they are measured.
    assert read_scores(out, "ties").isna().all()
    few = run("plan-measurements", files / "metrics.parquet", "-k", 1, "--models", "task2,task3")
    assert "task2+task3" in few.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{table}", "--scores", "{scores}", "--method", "tvs", "--out", "m.json"], "did you mean 'tsv'"),
        (["fit", "{table}", "--scores", "{scores}", "--method", "tsv", "--out", "m.pkl"], "written as .json"),
        (["fit", "{table}", "--scores", "{scores}", "--method", "tsv", "--out", "no/where/m.json"], "no folder"),
        (["predict", "{table}", "--predictor", "{scores}"], "not a readable predictor"),
        (["predict", "{table}", "--predictor", "{scores}", "--rows", "-1"], "'--rows'.*-1 is not in the range"),
        (["plan-measurements", "{table}", "-k", "999"], "k must be from 1 to 28"),
        (
            ["plan-measurements", "{table}", "-k", "1", "--models", "task1,tsk2"],
            "no model 'tsk2' .did you mean 'task2'",
        ),
        (["plan-measurements", "{table}", "-k", "1", "--scores", "{scores}"], "--scores needs --method"),
    ],
)
def test_mistakes_are_one_clear_message(files, arguments, message):
    names = {"table": files / "metrics.parquet", "scores": files / "scores.csv"}
    result = CliRunner().invoke(main, [argument.format(**names) for argument in arguments])
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    assert pd.Series([" ".join(result.output.split())]).str.contains(message).all(), result.output


def test_the_command_line_offers_every_predictor():
    assert tuple(PREDICTORS) == KINDS
