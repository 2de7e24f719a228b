"""best_merge and `mergekern best`: the merge found is the best or nearly so, for a third of the measurements."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

import mergekern
from mergekern import EvaluationError, OptionError, OutputError, best_merge, measure_merges
from mergekern.cli import main
from mergekern.evaluation import Perplexity
from mergekern.prediction import MergePredictor
from mergekern.prediction.search import LIKENESS, next_merges
from tests.support.digits import TURNS, accuracy

METHODS = ("weight_average", "task_arithmetic", "ties", "tsv", "isotropic")
POINT = 0.01


@pytest.fixture(scope="module")
def measured(digits_zoo):
    """All pairs by all methods, and all models."""
    return measure_merges(digits_zoo, evaluate=accuracy, methods=METHODS, device="cpu")


@pytest.fixture(scope="module")
def everything(measured):
    return measured.scores


def search(zoo, out, **options):
    how = {"evaluate": accuracy, "methods": METHODS, "budget": 25, "metrics": "stable_rank", "page": False}
    return best_merge(zoo, out=out, device="cpu", **(how | options))


@pytest.fixture(scope="module")
def found(digits_zoo, tmp_path_factory):
    return search(digits_zoo, tmp_path_factory.mktemp("best") / "found")


@pytest.mark.parametrize("target", ["accuracy", "normalized_accuracy"])
def test_within_a_point_of_the_best_for_a_third_of_the_measurements(digits_zoo, everything, found, target, tmp_path):
    if target != "accuracy":
        found = search(digits_zoo, tmp_path / "found", target=target)
    assert len(everything) == 15 * len(METHODS)
    assert len(found.scores) == len(everything) // 3
    assert found.score > everything[target].max() - POINT
    drawn = np.random.default_rng(0)
    by_chance = [drawn.choice(everything[target], len(found.scores), replace=False).max() for _ in range(200)]
    assert found.score >= np.mean(by_chance)
    row = everything.set_index(["method", "model_a", "model_b"]).loc[(found.method, *found.models)]
    assert row[target] == found.score


@pytest.mark.parametrize("methods", list(combinations(METHODS, 3)), ids="+".join)
def test_the_search_beats_chance_for_any_methods(digits_zoo, everything, measured, methods):
    metrics = mergekern.compute_all(digits_zoo, metrics=LIKENESS).to_pandas()
    known = mergekern.model_scores(sorted(TURNS), measured.models)
    pairs = (0.9 * known["own_accuracy_mean"] + 0.1 * known["base_accuracy_mean"]).to_dict()
    table = everything[everything["method"].isin(methods)]
    scores = {(row.method, row.model_a, row.model_b): row.accuracy for row in table.itertuples()}
    budget = len(scores) // 3
    tried: dict = {}
    while len(tried) < budget:
        for merge in next_merges(pairs, methods, tried, 4, metrics)[: budget - len(tried)]:
            tried[merge] = scores[merge]
    drawn = np.random.default_rng(0)
    by_chance = [drawn.choice(list(scores.values()), budget, replace=False).max() for _ in range(200)]
    assert max(tried.values()) >= np.mean(by_chance)


def test_the_folder_has_the_merge_and_what_was_measured(digits_zoo, found):
    pair = {name: digits_zoo / f"{name}.safetensors" for name in found.models}
    expected = mergekern.merge(pair, digits_zoo / "base.safetensors", found.method)
    merged = load_file(found.path)
    assert all((merged[name] == tensor).all() for name, tensor in expected.items())
    assert np.mean([float(accuracy(merged, name)) for name in pair]) == found.score
    folder = found.path.parents[2]
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "merged", "metrics.parquet", "models.csv", "scores.csv", "search.json", "statistics",
    ]  # fmt: skip
    assert len(pd.read_csv(folder / "scores.csv")) == 25
    assert (
        f"Merge {found.models[0]} and {found.models[1]} by {found.method}: accuracy {found.score:.4f}"
        in found.answer[0]
    )
    assert found.answer[-1].startswith("25 of 75 merges were measured")


class Stop(BaseException):
    pass


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_search_goes_on_to_the_same_bytes_and_a_larger_budget_from_a_smaller_one(digits_zoo, found, tmp_path):
    calls = []

    def count(state, task):
        calls.append(task)
        if len(calls) == stop:
            raise Stop
        return accuracy(state, task)

    count.__qualname__ = "accuracy"
    stop = 31
    with pytest.raises(Stop):
        search(digits_zoo, tmp_path, evaluate=count)
    stop = 0
    search(digits_zoo, tmp_path, evaluate=count, budget=14)
    measured = len(calls)
    search(digits_zoo, tmp_path, evaluate=count)
    assert len(calls) - measured == 2 * (25 - 14)
    expected, there = contents(found.path.parents[2]), contents(tmp_path)
    extra = {path for path in there.keys() - expected.keys() if path.parts[0] == "merged"}  # the best of 14
    assert {path: there[path] for path in there.keys() - extra} == expected


def test_another_search_in_the_folder_is_refused(digits_zoo, found, tmp_path):
    folder = found.path.parents[2]
    before = contents(folder)
    for options, said in [
        ({"methods": METHODS[:2]}, "other methods"),
        ({"target": "normalized_accuracy"}, "other target"),
        ({"options": {"ties": {"density": 0.5}}}, "other options"),
        ({"tasks": {"left": "down"}}, "other tasks"),
    ]:
        with pytest.raises(OutputError, match=said):
            search(digits_zoo, folder, **options)
    (folder / "search.json").rename(folder / "kept.json")
    for content in (b"{", b"[]", b"\xff", b'{"target": 3}'):
        (folder / "search.json").write_bytes(content)
        with pytest.raises(OutputError, match="has a search with other"):
            search(digits_zoo, folder)
    (folder / "kept.json").replace(folder / "search.json")
    fewer = {name: digits_zoo / f"{name}.safetensors" for name in ("left", "down", "right")}
    with pytest.raises((OutputError, mergekern.StatisticsError)):
        search(fewer, folder, base=digits_zoo / "base.safetensors")
    assert {path: there for path, there in contents(folder).items() if path.suffix == ".csv"} == {
        path: there for path, there in before.items() if path.suffix == ".csv"
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 4}, "a budget of 4 does not allow to try 5 methods"),
        ({"budget": 0}, "budget"),
        ({"methods": ["tie"]}, "did you mean 'ties'"),
        ({"target": "loss"}, "'accuracy' or 'normalized_accuracy', not 'loss'"),
        ({"evaluate": 3}, "is a function"),
    ],
    ids=str,
)
def test_wrong_arguments_write_nothing(digits_zoo, tmp_path, options, said):
    with pytest.raises((OptionError, EvaluationError), match=said):
        search(digits_zoo, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_merges_that_fail_cost_their_part_of_the_budget_and_are_not_the_answer(digits_zoo, tmp_path):
    def evaluate(state, task):
        calls.append(task)
        if len(calls) > 12 and task == "left":
            raise RuntimeError("out of memory")
        return accuracy(state, task)

    calls = []
    found = search(digits_zoo, tmp_path / "found", evaluate=evaluate, budget=10)
    rows = pd.read_csv(tmp_path / "found" / "scores.csv")
    assert len(rows) == 10
    assert len(calls) == 12 + 20
    failed = rows["accuracy"].isna()
    assert 0 < failed.sum() == len(found.failures)
    assert (failed == ((rows["model_a"] == "left") | (rows["model_b"] == "left"))).all()
    assert "left" not in found.models
    assert f"{failed.sum()} models or merges have no score" in found.answer[-2]
    with pytest.raises(EvaluationError, match="no merge could be measured: on left: RuntimeError: out of memory"):
        search(
            {name: digits_zoo / f"{name}.safetensors" for name in ("left", "down")}, tmp_path / "other",
            base=digits_zoo / "base.safetensors", methods=["ties"], budget=1,
            evaluate=lambda state, task: evaluate(state, task) if len(calls) > 1 else calls.clear(),
        )  # fmt: skip


def test_the_command_writes_a_page_that_starts_with_the_answer(digits_zoo, tmp_path):
    (tmp_path / "my_eval.py").write_text("from tests.support.digits import TURNS, accuracy\n")
    models = [digits_zoo / f"{name}.safetensors" for name in ("left", "mirrored", "crossed")]
    options = {
        "--base": digits_zoo / "base.safetensors", "--evaluate": f"{tmp_path / 'my_eval.py'}:accuracy", "--budget": 4,
        "--methods": "weight_average,tsv", "--metrics": "stable_rank", "--out": tmp_path / "found",
    }  # fmt: skip
    line = ["best", *models, *(part for option in options.items() for part in option)]
    result = CliRunner().invoke(main, list(map(str, line)))
    assert result.exit_code == 0, result.output
    answer = result.stdout.splitlines()[0]
    assert answer.startswith("Merge ")
    page = (tmp_path / "found" / "report.html").read_text()
    start = page.index("<main>")
    assert (
        page.index("The answer", start)
        < page.index(answer.replace("'", "&#39;"), start)
        < page.index('id="pairs"', start)
    )
    (made,) = (tmp_path / "found" / "merged").rglob("*.safetensors")
    assert f"lies beside this page as {made.relative_to(tmp_path / 'found')}" in page
    assert "to search on: 2 merges were not measured" in page
    assert MergePredictor.load(tmp_path / "found" / "predictor.json").kind == "prior+additive"
    assert "measured 8: " in result.stderr
    assert json.loads((tmp_path / "found" / "search.json").read_text())["methods"] == ["weight_average", "tsv"]


def test_scores_beyond_shares_are_searched_too(digits_zoo, tmp_path):
    found = search(digits_zoo, tmp_path, evaluate=lambda state, task: 100 * accuracy(state, task) - 200, budget=25)
    plain = search(digits_zoo, tmp_path / "plain")
    assert (found.method, found.models) == (plain.method, plain.models)


def test_a_merge_that_gains_nothing_is_said_to_gain_nothing(digits_zoo, tmp_path):
    search(digits_zoo, tmp_path / "found", evaluate=lambda model, task: 0.5, budget=5, page=True)
    page = (tmp_path / "found" / "report.html").read_text("utf-8")
    assert "no better than the base" in page
    assert "Just as good is" in page


def test_what_cannot_be_evaluated_is_found_before_metrics_are_computed(digits_zoo, tmp_path):
    with pytest.raises(EvaluationError, match="runs a module: give the function"):
        search(digits_zoo, tmp_path / "found", evaluate=Perplexity(["a b"]), target="inverse_perplexity")
    assert not [path for path in (tmp_path / "found").rglob("*") if path.name != ".lock"]
