"""The answer with which a page starts."""

import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mergekern import MetricTable
from mergekern.cli import main
from mergekern.prediction import MergePredictor, model_scores, next_measurements, read_scores, recommend
from mergekern.report import conclusions
from mergekern.report.answer import Answer, Step
from mergekern.report.conclusions import best_merges, conclude, merge_step
from mergekern.report.contents import gather
from mergekern.report.page import render
from mergekern.report.words import number
from tests.report.parsed import Page
from tests.support.measurements import PUBLISHED
from tests.support.report_tables import HOSTILE, make_scores, make_table

METRICS = ["task_vector_cosine_similarity", "stable_rank", "subspace_overlap"]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def table():
    return make_table(8, 0, metrics=METRICS, names=[HOSTILE, *"bcdefgh"])


@pytest.fixture(scope="module")
def scores(table):
    return make_scores(table, unmeasured=12)


@pytest.fixture(scope="module")
def predictors(table, scores):
    tsv = MergePredictor.fit(table, scores["tsv"], "tsv", "additive")
    return [replace(tsv, method="ties", measured=scores["ties"].dropna()), tsv]


@pytest.fixture(scope="module")
def contents(table, scores, predictors):
    return gather(table, scores=scores, predictors=predictors)


@pytest.fixture(scope="module")
def of_scores(contents):
    """The same without predictors."""
    methods = [replace(outcome, predicted=None, level=None) for outcome in contents.outcomes.methods]
    return replace(contents, outcomes=replace(contents.outcomes, methods=methods, recommended=None))


def test_metrics_alone_give_an_order_and_what_it_is_worth(table):
    answer = conclude(gather(table))
    (a, b), row = next(table.ranked(METRICS[0]).iterrows())
    assert answer.pair == (a, b)
    assert answer.rows[0] == [a, b, number(row[METRICS[0]])]
    assert f"{a} and {b} look the most mergeable" in answer.sentences[0]
    assert "not a forecast" in answer.sentences[1]
    assert [step.command.split()[1] for step in answer.steps] == ["best", "merge-all"]
    lowest = conclude(gather(table, "stable_rank"))
    assert "is the lowest" in lowest.sentences[0]
    assert lowest.pair == table.ranked("stable_rank").index[0]


def test_what_the_order_is_worth_is_what_the_documentation_says():
    text = (DOCS / "what-to-expect.md").read_text()
    rows = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if line.count("|") > 5
    }
    assert float(rows["10 tasks known, pairs of the other 10 predicted: `linear`"]) == conclusions.METRICS_R
    assert f"(mean {conclusions.MODEL_SCORES_R})" in text
    assert f"r = {conclusions.MERGES_R}" in text


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the study's files are not there (MERGEKERN_PUBLISHED)")
def test_what_the_default_metric_is_worth_is_measured():
    values = MetricTable.load(PUBLISHED / "metrics_vit_b16.csv").to_pandas()[conclusions.RANKED_BY]
    path = PUBLISHED / "accuracy_vit_b16.csv"
    methods = ("weight_avg", "arithmetic", "tsv", "isotropic")
    found = [values.corr(read_scores(path, method, "accuracy").reindex(values.index)) for method in methods]
    assert tuple(np.round([min(found), max(found)], 2)) == conclusions.RANKED_BY_R


def test_what_the_default_metric_is_worth_on_zoos_is_what_the_documentation_says():
    lines = (DOCS / "metrics.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| metric | mlp, raw"))
    row = next(line for line in lines[lines.index(head) :] if line.startswith(f"| {conclusions.RANKED_BY} |"))
    said = dict(zip(map(str.strip, head.split("|")), map(str.strip, row.split("|")), strict=True))
    # The table has the sign that authors expect: less distance, better merges.
    found = [-float(r) for name, r in said.items() if name.endswith(", raw") and name != "the study, raw"]
    assert (min(found), max(found)) == conclusions.RANKED_BY_ZOOS_R
    rows = lines[lines.index(head) + 2 : lines.index("<!-- metrics alone: end -->") - 1]
    means = [float(line.split("|")[-2]) for line in rows]
    assert float(said["mean"]) == max(means)


def test_model_scores_predict_without_a_merge(table):
    known = {name: {"own_accuracy": 0.9 - 0.01 * row, "base_accuracy": 0.5} for row, name in enumerate(table.models)}
    answer = conclude(gather(table.join(model_scores(table.models, known))))
    assert answer.pair == (HOSTILE, "b")
    assert answer.rows[0][2] == number(0.9 * 0.895 + 0.1 * 0.5)
    assert "predicted from the accuracies of models and base" in answer.sentences[0]


def test_the_best_merges_are_measured_where_measured_and_recommended_where_not(contents, table, scores, predictors):
    best = best_merges(contents.outcomes)
    measured = pd.DataFrame(scores).max(axis=1)
    advised = recommend(predictors, table)["score"]
    for pair, row in best.iterrows():
        both = [value for value in (measured[pair], advised[pair]) if np.isfinite(value)]
        assert row["score"] == pytest.approx(max(both))
        if row["measured"]:
            assert row["score"] == scores[row["method"]][pair]
    assert (best["score"].diff().dropna() <= 0).all()
    answer = conclude(contents)
    assert answer.pair == best.index[0]
    assert answer.rows[0][3] == number(best["score"].iloc[0])
    assert answer.sentences[0].startswith(
        f"Merge {best.index[0][0]} and {best.index[0][1]} by {answer.method}: accuracy "
    )


def test_methods_stand_beside_each_other_on_the_same_pairs(of_scores, scores):
    answer = conclude(of_scores)
    common = pd.DataFrame(scores).dropna()
    rows = {row[0]: row for row in answer.methods.rows}
    for method in scores:
        assert rows[method][2] == number(common[method].mean())
        assert int(rows[method][3]) == (common.idxmax(axis=1) == method).sum()
    assert [row[0] for row in answer.methods.rows] == list(common.mean().sort_values(ascending=False).index)
    assert answer.steps[-1].command.startswith("mergekern fit TABLE --scores SCORES --method ")


def test_the_next_measurement_is_the_one_that_is_expected_to_help_most(contents):
    advised = contents.outcomes.recommended
    left = next_measurements(advised, 0.8)
    assert left["worth_measuring"].iloc[0]
    (a, b), method = left.index[0], left["method"].iloc[0]
    step = conclude(contents).steps[-1]
    assert step.text.startswith(f"Measure next: {a} and {b} by {method}; the best score is expected to rise by ")
    assert step.command == "mergekern recommend TABLE --predictor ties.json --predictor tsv.json --next 5"

    def last_step(**columns):
        outcomes = replace(contents.outcomes, recommended=advised.assign(**columns))
        return conclude(replace(contents, outcomes=outcomes)).steps[-1].text

    assert last_step(measured=True).startswith("Nothing is left to measure")
    score = advised["score"].where(advised["measured"], 0.1)
    assert last_step(score=score, low=score - 0.01, high=score + 0.01).startswith("Stop measuring")


def test_intervals_of_accuracies_end_at_0_and_1(contents):
    advised = contents.outcomes.recommended.assign(score=0.99, low=-0.2, high=1.3, measured=False)
    beyond = replace(contents, outcomes=replace(contents.outcomes, recommended=advised))
    best = best_merges(beyond.outcomes)
    predicted = best[~best["measured"].astype(bool)]
    assert set(predicted["low"]) == {0.0}
    assert set(predicted["high"]) == {1.0}
    answer = conclude(beyond)
    assert answer.headers[4] == "80% interval"
    assert {row[4] for row in answer.rows} <= {"measured", "0 to 1.000"}
    assert "predicted (80% interval 0 to 1.000)" in " ".join(answer.sentences)
    for bar in answer.bars:
        assert 0 <= bar.start <= bar.at <= bar.start + bar.width + 0.01 <= 100.02
    shown = 100 * advised[["score", "low", "high"]]
    in_percent = [replace(o, measured=100 * o.measured) for o in beyond.outcomes.methods]
    outcomes = replace(beyond.outcomes, methods=in_percent, recommended=advised.assign(**shown))
    assert best_merges(outcomes)["high"].max() == 100


def test_a_method_of_another_program_is_not_commanded(of_scores):
    theirs = [replace(outcome, method="their_merge") for outcome in of_scores.outcomes.methods[:1]]
    answer = conclude(replace(of_scores, outcomes=replace(of_scores.outcomes, methods=theirs)))
    assert answer.steps[0] == Step(
        "Make this merge by the program that has the method their_merge; mergekern has none of this name."
    )


def test_the_command_merges(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("zoo")
    for value, name in enumerate(("base", "a model", "$b")):
        save_file({"w": torch.full((2, 2), float(value))}, f"zoo/{name}.safetensors")
    command = merge_step("Merge", "a model", "$b", "weight_average").command.replace("ZOO", "zoo")
    result = CliRunner().invoke(main, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    found = [path.relative_to("merged").as_posix() for path in Path("merged").rglob("*.safetensors")]
    assert found == ["weight_average/$b+a model.safetensors"]  # in the order of the zoo
    assert merge_step("Merge", "c++", "b", "weight_average").command == ""


def test_commands_are_those_of_the_command_line(tmp_path, monkeypatch, table, of_scores, contents):
    monkeypatch.chdir(tmp_path)
    Path("my_eval.py").write_text("def accuracy(model, task):\n    return 0.5\n")
    for each in (gather(table), of_scores, contents):
        commands = [step.command for step in conclude(each).steps if step.command]
        assert commands
        for line in commands:
            program, command, *arguments = shlex.split(line)
            assert program == "mergekern"
            main.commands[command].make_context(command, arguments)


def test_an_answer_that_is_given_is_completed(contents):
    page = Page(render(contents, "t", Answer(["Merge <b> and c."], ["model"], [["b"]], "One")))
    text = "".join(page.text)
    assert text.index("Merge <b> and c.") < text.index("What to do next")
    assert conclude(contents).sentences[0] not in text
    assert "Methods; mean" in text


def test_a_table_without_values_says_so():
    table = make_table(3, 0, metrics=["stable_rank"], missing=[("stable_rank", [(0, 1), (0, 2), (1, 2)])])
    assert "No pair has a value of stable rank" in conclude(gather(table)).sentences[0]
    render(gather(table), "t")
