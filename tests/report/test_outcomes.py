import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mergekern import OptionError
from mergekern.cli import main
from mergekern.errors import PredictionError
from mergekern.prediction import (
    MergePredictor,
    cross_validate_pairs,
    fingerprints,
    make_predictor,
    model_scores,
    read_scores,
    variance_components,
)
from mergekern.report.contents import gather
from mergekern.report.figures import draw
from mergekern.report.page import number, percent, render
from tests.report.parsed import Page
from tests.support.report_tables import HOSTILE, make_scores, make_table, write_scores

METRICS = ["task_vector_cosine_similarity", "effective_rank", "subspace_overlap", "stable_rank", "spectral_gap"]


@pytest.fixture(scope="module")
def table():
    return make_table(8, 0, metrics=METRICS, names=[HOSTILE, *"bcdefgh"])


@pytest.fixture(scope="module")
def scores(table):
    return make_scores(table)


@pytest.fixture(scope="module")
def predictor(table, scores):
    return MergePredictor.fit(table, scores["tsv"], "tsv", "linear")


@pytest.fixture(scope="module")
def contents(table, scores, predictor):
    return gather(table, scores=scores, predictors=[predictor])


@pytest.fixture(scope="module")
def page(contents):
    return Page(render(contents, "t"))


def columns(page):
    return {column["title"]: column for column in page.document["outcomes"]["columns"]}


def test_measured_and_predicted_columns_are_the_files(page, table, scores, predictor):
    found = columns(page)
    assert list(found) == ["tsv, predicted", "ties, measured", "tsv, measured"]
    for method, series in scores.items():
        np.testing.assert_array_equal(page.arrays[found[f"{method}, measured"]["values"]], series.to_numpy())
    expected = predictor.predict(table).loc[table.to_pandas().index]
    predicted = found["tsv, predicted"]
    for name, column in (("values", "prediction"), ("low", "low"), ("high", "high")):
        np.testing.assert_array_equal(page.arrays[predicted[name]], expected[column].to_numpy())
    assert "80%" in predicted["about"]
    (words,) = page.document["outcomes"]["remarks"]
    assert words["drivers"] == expected["drivers"].tolist()
    assert words["remarks"] == expected["remarks"].tolist()


def test_held_out_pairs_are_those_of_cross_validation(page, table, scores):
    frame = table.to_pandas()
    for entry in page.document["outcomes"]["accuracy"]:
        measured = scores[entry["method"]].dropna()
        kind = "linear" if entry["method"] == "tsv" else "additive+metrics"
        result = cross_validate_pairs(make_predictor(kind), frame.loc[measured.index], measured, n_resamples=0)
        expected = result.predictions
        assert len(expected) == 2 * len(measured)
        pairs = frame.index[page.arrays[entry["pairs"]]]
        assert list(pairs) == list(zip(expected["model_a"], expected["model_b"], strict=True))
        np.testing.assert_array_equal(page.arrays[entry["measured"]], measured.loc[pairs].to_numpy())
        np.testing.assert_allclose(page.arrays[entry["predicted"]], expected["prediction"], rtol=1e-9)
        without = [table.models[index] for index in page.arrays[entry["without"]]]
        assert all(model in pair for model, pair in zip(without, pairs, strict=True))
        assert without == [result.folds["held_out"][fold] for fold in expected["fold"]]


def test_coefficients_effects_and_shares(page, contents, table, scores):
    outcomes = page.document["outcomes"]
    means = {}
    for entry, effects in zip(outcomes["coefficients"], outcomes["effects"], strict=True):
        measured = scores[entry["method"]].dropna()
        sparse = make_predictor("sparse", {"solver": "exact"})
        folds = cross_validate_pairs(
            sparse, table.to_pandas().loc[measured.index], measured, n_resamples=0
        ).coefficients
        means[entry["method"]] = folds.mean()
        np.testing.assert_allclose(page.arrays[entry["values"]], folds.mean(), atol=1e-12)
        np.testing.assert_allclose(page.arrays[entry["spread"]], folds.std(ddof=0), atol=1e-12)
        parts = variance_components(measured)
        np.testing.assert_allclose(page.arrays[effects["values"]], parts.effects.loc[list(table.models)], rtol=1e-9)
        row = [entry["method"], f"{percent(parts.tasks)} ({percent(parts.adjusted_tasks)})", percent(parts.interaction)]
        assert row in [cells[:3] for cells in page.rows]
    assert contents.outcomes.fingerprints.sign_agreement == fingerprints(pd.DataFrame(means)).sign_agreement


def test_the_table_of_correlations(page, contents):
    for outcome in contents.outcomes.methods:
        cells = next(row for row in page.rows if row[:1] == [outcome.method] and outcome.kind in row)
        scores = [outcome.validation.score, outcome.metrics_alone.score, outcome.validation.baselines["additive"].score]
        assert cells[3:6] == [number(score) for score in scores]
        assert cells[1] == str(outcome.measured.notna().sum())
        assert all(doubt in cells[6] for doubt in outcome.warnings)


def test_without_a_predictor_the_default_takes_what_suits_the_table(table, scores):
    known = {name: {"own_accuracy": 0.9 - 0.01 * row, "base_accuracy": 0.5} for row, name in enumerate(table.models)}
    joined = table.join(model_scores(table.models, known))
    measured = 0.5 * scores["tsv"].rank(pct=True).rename("accuracy")
    (outcome,) = gather(joined, scores={"tsv": measured}).outcomes.methods
    assert outcome.kind == "prior+additive"
    assert not outcome.warnings or outcome.validation is not None
    X = joined.to_pandas()[["own_accuracy_mean", "base_accuracy_mean"]][measured.notna()]
    estimator = make_predictor("prior+additive", target="accuracy")
    assert outcome.validation.score == pytest.approx(
        cross_validate_pairs(estimator, X, measured.dropna(), n_resamples=0).score
    )
    budget = outcome.budget.loc["prior+additive"]
    assert budget.index.tolist() == [merges for merges in (0, 5, 10, 20, 40) if merges <= measured.count() - 3]
    page = Page(render(gather(joined, scores={"tsv": measured}), "t"))
    (curve,) = page.document["outcomes"]["budgets"]
    assert curve["merges"] == budget.index.tolist()
    for name in ("r", "rmse", "regret"):
        np.testing.assert_array_equal(page.arrays[curve[name]], budget[name])
    np.testing.assert_array_equal(page.arrays[curve["random"]], outcome.budget.loc["random", "regret"])
    assert [*map(str, ("tsv", "prior+additive", 5)), *map(number, budget.loc[5])] in page.rows
    # Metrics alone are metrics: model scores are none.
    assert set(outcome.metrics_alone.coefficients) == set(METRICS)


def test_a_predictor_alone_brings_its_own_scores(table, predictor):
    found = gather(table, predictors=[predictor]).outcomes
    assert [outcome.method for outcome in found.methods] == ["tsv"]
    pd.testing.assert_series_equal(found.methods[0].measured.dropna(), predictor.measured, check_names=False)
    assert found.fingerprints is None


def test_few_scores_are_shown_without_validation(table, scores):
    few = {"ties": scores["ties"].dropna().iloc[:1]}
    (outcome,) = gather(table, scores=few).outcomes.methods
    assert outcome.validation is None
    assert outcome.warnings
    page = Page(render(gather(table, scores=few), "t"))
    assert page.document["outcomes"]["accuracy"] == []
    assert outcome.warnings[0] in "".join(page.text)
    assert list(draw(gather(table, scores=few))) == ["pairs", "heatmap", "correlations"]


def test_incomplete_pairs_are_counted(scores):
    table = make_table(8, 0, metrics=METRICS, names=[HOSTILE, *"bcdefgh"], missing=[("stable_rank", [(0, 1), (2, 3)])])
    (outcome, _) = gather(table, scores=scores).outcomes.methods
    dropped = set(outcome.validation.dropped)
    assert dropped == {(HOSTILE, "b"), ("c", "d")} & set(scores["ties"].dropna().index)
    assert f"{len(dropped)} of the measured pairs lack a metric" in "".join(
        Page(render(gather(table, scores=scores), "t")).text
    )


def test_figures_of_outcomes(contents, table):
    figures = draw(contents)
    assert list(figures) == ["pairs", "heatmap", "correlations", "accuracy", "budgets", "coefficients", "effects"]
    for axes, name in zip(figures["budgets"].axes, ("r", "regret"), strict=True):
        for outcome, line in zip(contents.outcomes.methods, axes.lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), outcome.budget.loc["additive", name])
    for outcome, line in zip(contents.outcomes.methods, figures["accuracy"].axes[0].lines, strict=False):
        np.testing.assert_array_equal(line.get_xdata(), outcome.held_out["prediction"])
        np.testing.assert_array_equal(line.get_ydata(), outcome.held_out["y"])
    labels = [label.get_text() for label in figures["effects"].axes[0].get_yticklabels()]
    assert sorted(labels) == sorted(table.models)


def test_wrong_scores_and_predictors_are_refused(table, scores, predictor):
    with pytest.raises(OptionError, match="two predictors of tsv"):
        gather(table, predictors=[predictor, predictor])
    with pytest.raises(OptionError, match="accuracy and loss"):
        gather(table, scores={"ties": scores["ties"].rename("loss"), "tsv": scores["tsv"]})
    with pytest.raises(PredictionError, match="not in the table"):
        gather(make_table(5, 0), scores=scores)
    with pytest.raises(PredictionError, match="lacks"):
        gather(make_table(8, 0, metrics=METRICS[:2], names=table.models), predictors=[predictor])


def test_the_command_reads_scores_and_predictors(tmp_path, monkeypatch, table, scores, predictor):
    monkeypatch.chdir(tmp_path)
    table.save("table.parquet")
    write_scores(scores, "scores.csv")
    predictor.save("tsv.json")
    result = CliRunner().invoke(main, ["report", "table.parquet", "--scores", "scores.csv", "--predictor", "tsv.json"])
    assert result.output == "wrote report.html\n"
    page = Page((tmp_path / "report.html").read_text())
    found = columns(page)
    assert list(found) == ["tsv, predicted", "ties, measured", "tsv, measured"]
    in_file = read_scores("scores.csv", "ties").reindex(table.to_pandas().index)
    np.testing.assert_array_equal(page.arrays[found["ties, measured"]["values"]], in_file.to_numpy())
    result = CliRunner().invoke(main, ["report", "table.parquet", "--scores", "scores.csv", "--target", "acuracy"])
    assert "did you mean 'accuracy'" in result.output
    assert result.exit_code == 1
