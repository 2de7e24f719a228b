"""measure_merges and `mergekern measure`: right numbers, written as they come, resumed to the same bytes."""

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import mergekern
from mergekern import EvaluationError, OptionError, measure_merges
from mergekern.cli import main
from mergekern.evaluation.pace import Pace
from mergekern.prediction import read_methods, read_scores
from tests.support.digits import TURNS, Network, accuracy

PAIRS = [("left", "upright"), ("crossed", "down")]
METHODS = ["ties", "tsv"]
EVALUATOR = "from tests.support.digits import Network, accuracy\n"


def run(*arguments):
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def measured(digits_zoo):
    return measure_merges(digits_zoo, evaluate=accuracy, methods=METHODS, pairs=PAIRS)


def test_scores_are_those_of_the_merges_that_merge_makes(digits_zoo, measured):
    alone = {name: float(accuracy(load_file(digits_zoo / f"{name}.safetensors"), name)) for name in TURNS}
    base = load_file(digits_zoo / "base.safetensors")
    of_models = measured.models.set_index("model")
    assert of_models["own_accuracy"].to_dict() == alone
    assert of_models["base_accuracy"].to_dict() == {name: float(accuracy(base, name)) for name in TURNS}
    assert len(measured.scores) == 4
    for row in measured.scores.itertuples():
        pair = [row.model_a, row.model_b]
        merged = mergekern.merge([digits_zoo / f"{name}.safetensors" for name in pair], digits_zoo / "base.safetensors",
                                 row.method)  # fmt: skip
        found = [float(accuracy(merged, name)) for name in pair]
        assert [row.accuracy_a, row.accuracy_b] == found
        assert row.accuracy == np.mean(found)
        ratios = [score / alone[name] for score, name in zip(found, pair, strict=True)]
        assert row.normalized_accuracy == pytest.approx(np.mean(ratios), rel=1e-15)


def test_the_files_are_what_fit_and_model_scores_read(digits_zoo, measured, tmp_path):
    (tmp_path / "my_eval.py").write_text(EVALUATOR)
    scores = tmp_path / "scores.csv"
    result = run("measure", scores, "--zoo", digits_zoo, "--evaluate", f"{tmp_path / 'my_eval.py'}:accuracy",
                 "--methods", "ties,tsv", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "measuring 1/37 the base" in result.stderr
    assert "measured 37" in result.stderr
    assert read_methods(scores) == METHODS
    found = read_scores(scores, "tsv")
    assert len(found) == 15
    assert found["crossed", "down"] == measured.scores["accuracy"][3]
    known = mergekern.model_scores(TURNS, tmp_path / "models.csv")
    assert known["own_accuracy_mean"].notna().all()
    assert known["base_accuracy_min"].notna().all()


class Stop(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 3, 9, 12])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(digits_zoo, tmp_path, after):
    def evaluate(state, task, stop=False):
        calls.append(task)
        if stop and len(calls) > after:
            raise Stop
        if task == "down":
            raise RuntimeError("the disk of\nthis task is gone")
        return accuracy(state, task)

    def measure(folder, **options):
        folder.mkdir(exist_ok=True)
        return measure_merges(digits_zoo, methods=METHODS, pairs=PAIRS, scores=folder / "scores.csv", **options)

    calls = []
    whole = measure(tmp_path / "whole", evaluate=evaluate)
    number = len(calls)
    calls.clear()
    with pytest.raises(Stop):
        measure(tmp_path / "stopped", evaluate=lambda state, task: evaluate(state, task, stop=True))
    calls.clear()
    again = measure(tmp_path / "stopped", evaluate=evaluate)
    # What was measured is not measured again; what failed is.
    assert len(calls) <= number - max(after - 6, 0)
    for name in ("scores.csv", "models.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again.failures == whole.failures
    assert set(whole.failures) == {"model down", "the base for down", "ties of crossed+down", "tsv of crossed+down"}
    row = whole.scores.iloc[1]
    assert row["remarks"] == "on down: RuntimeError: the disk of this task is gone"
    assert np.isnan(row["accuracy"])
    assert row["accuracy_a"] > 0.5
    assert whole.scores["accuracy"].notna().tolist() == [True, False, True, False]
    calls.clear()
    before = (tmp_path / "whole" / "scores.csv").read_bytes()
    measure(tmp_path / "whole", evaluate=evaluate)
    assert set(calls) == {"crossed", "down"}  # nothing but what failed
    assert (tmp_path / "whole" / "scores.csv").read_bytes() == before


def test_a_plan_is_filled_in_and_the_rest_of_the_file_stays(digits_zoo, tmp_path):
    scores = tmp_path / "plan.csv"
    scores.write_text(
        "who,method,model_a,model_b,accuracy\r\n'=me,ties,upright,left,\r\nyou,tsv,other,zoo,0.5\r\nyou,tsv,down,left,0.25\r\n"
    )
    found = measure_merges(digits_zoo, evaluate=accuracy, scores=scores)
    rows = scores.read_text().splitlines()
    assert rows[0] == "who,method,model_a,model_b,accuracy,normalized_accuracy,accuracy_a,accuracy_b,remarks"
    assert rows[1].startswith("'=me,ties,upright,left,0.7")
    assert rows[2:] == ["you,tsv,other,zoo,0.5,,,,", "you,tsv,down,left,0.25,,,,"]
    assert b"\r\n" in scores.read_bytes()
    merged = measure_merges(digits_zoo, evaluate=accuracy, methods="ties", pairs=[("left", "upright")]).scores
    assert found.scores["accuracy"][0] == merged["accuracy"][0]
    assert found.scores["accuracy_a"][0] == merged["accuracy_b"][0]


def test_pairs_from_a_recommendation_are_merged_by_their_methods(digits_zoo, tmp_path):
    pairs = tmp_path / "recommended.csv"
    pairs.write_text("model_a,model_b,method,score\nleft,down,tsv,0.9\nup-down,left,,\n")
    with pytest.raises(EvaluationError, match="by which methods"):
        measure_merges(digits_zoo, evaluate=accuracy, pairs=pairs)
    pairs.write_text("model_a,model_b,method,score\nleft,down,tsv,0.9\nupright,left,ties,0.7\n")
    found = measure_merges(digits_zoo, evaluate=accuracy, pairs=pairs, scores=tmp_path / "scores.csv").scores
    assert found[["method", "model_a", "model_b"]].to_numpy().tolist() == [
        ["tsv", "left", "down"], ["ties", "upright", "left"],
    ]  # fmt: skip
    result = run("merge-all", digits_zoo, "--methods", "ties", "--pairs", pairs, "--out", tmp_path / "merged")
    assert "wrote 2 merged checkpoints" in result.output
    assert (tmp_path / "merged" / "ties" / "left+upright.safetensors").is_file()


def test_tasks_of_models_and_tasks_for_all(digits_zoo):
    asked = []

    def evaluate(state, task):
        asked.append(task)
        return {"x": 0.2, "y": 0.6, "left": 0.5, "down": 1.0}[task]

    pairs = [("left", "down")]
    select = {name: digits_zoo / f"{name}.safetensors" for name in ("left", "down")}
    base = digits_zoo / "base.safetensors"
    found = measure_merges(select, base, evaluate=evaluate, methods="ties", pairs=pairs, tasks={"left": ["x", "y"]})
    assert asked == ["x", "y", "down", "x", "y", "down", "x", "y", "down"]
    assert found.scores["accuracy"][0] == pytest.approx((0.4 + 1.0) / 2)
    asked.clear()
    found = measure_merges(select, base, evaluate=evaluate, methods="ties", pairs=pairs, tasks=["x", "y"])
    assert asked == ["x", "y"] * 4
    assert found.scores["accuracy"][0] == pytest.approx(0.4)
    with pytest.raises(EvaluationError, match="did you mean 'left'"):
        measure_merges(select, base, evaluate=evaluate, methods="ties", tasks={"lefft": "x"})


def test_random_numbers_begin_anew_for_each_model_and_nothing_around_changes(digits_zoo):
    drawn = []

    def evaluate(state, task):
        drawn.append(torch.rand(2).tolist())
        return 0.5

    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    measure_merges(digits_zoo, evaluate=evaluate, methods="ties", pairs=PAIRS)
    assert torch.equal(torch.rand(3), expected)
    assert len({tuple(values) for values in drawn}) == 1


def test_a_module_gets_the_weights_and_is_in_evaluation_mode(digits_zoo, measured):
    def evaluate(model, task):
        assert isinstance(model, Network)
        assert not model.training
        return accuracy(model, task)

    found = measure_merges(digits_zoo, evaluate=evaluate, methods=METHODS, pairs=PAIRS, model=Network)
    pd.testing.assert_frame_equal(found.scores, measured.scores)
    with pytest.raises(mergekern.MismatchError, match="do not fit the Linear"):
        measure_merges(digits_zoo, evaluate=evaluate, methods="ties", model=torch.nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("returned", "said"),
    [(float("nan"), "returned nan"), ("0.9", "'0.9', a str, not a number"), (None, "NoneType"), (True, "bool"),
     (torch.ones(2), "not a number"), (np.inf, "returned inf")],
    ids=str,
)  # fmt: skip
def test_an_evaluator_that_never_returns_a_number_is_an_error_and_writes_nothing(digits_zoo, tmp_path, returned, said):
    with pytest.raises(EvaluationError, match=f"fails on the base and on every model: on upright: .*{said}"):
        measure_merges(digits_zoo, evaluate=lambda *_: returned, methods="ties", scores=tmp_path / "scores.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"evaluate": "accuracy of some kind"}, "is a function"),
        ({"methods": None}, "by which methods"),
        ({"methods": "tie"}, "did you mean 'ties'"),
        ({"pairs": [("left", "rigth")]}, "did you mean 'right'"),
        ({"pairs": [("left", "left")]}, "two models"),
        ({"pairs": ["left"]}, "two models"),
        ({"options": {"ties": {"densty": 1}}}, "did you mean 'density'"),
        ({"model": 3}, "is an nn.Module"),
    ],
    ids=str,
)
def test_wrong_arguments(digits_zoo, tmp_path, options, said):
    with pytest.raises((EvaluationError, OptionError), match=said):
        measure_merges(
            digits_zoo, **({"evaluate": accuracy, "methods": "ties", "scores": tmp_path / "scores.csv"} | options)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("method,model_a,model_b\nties,left\n", "row 2: 2 values for the 3 columns"),
        ("method,model_a,model_b,accuracy\nties,left,down,\nties,down,left,\n", "a row twice"),
        ("method,model_a,model_b,accuracy\n,left,down,\n", "has no method"),
        ("method,model_a,model_b,accuracy\nties,left,down,high\n", "row 2: 'high' in the column accuracy is no number"),
        ("a,a\n", "one name"),
        ("\xff", "cannot be read"),
    ],
)
def test_files_that_are_no_scores(digits_zoo, tmp_path, content, said):
    (tmp_path / "scores.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(EvaluationError, match=said):
        measure_merges(digits_zoo, evaluate=accuracy, scores=tmp_path / "scores.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_the_command_ends_with_1_where_something_failed_and_says_what_is_wrong(digits_zoo, tmp_path):
    (tmp_path / "my_eval.py").write_text(
        EVALUATOR + "def partly(state, task):\n    return accuracy(state, task) if task != 'down' else float('nan')\n"
    )
    common = ["--zoo", digits_zoo, "--methods", "ties", "--evaluate"]
    scores = tmp_path / "scores.csv"
    result = run("measure", scores, *common, f"{tmp_path / 'my_eval.py'}:partly")
    assert result.exit_code == 1
    assert "7 could not be measured, of which 2 are not shown" in result.stderr
    assert "ties of crossed+down: on down: the evaluator returned nan" in result.stderr
    assert read_scores(scores, "ties").notna().sum() == 10
    result = run("measure", scores, *common, f"{tmp_path / 'my_eval.py'}:another")
    assert "has no function 'another'" in result.stderr
    result = run("measure", scores, "--zoo", digits_zoo)
    assert "Missing option '--evaluate'" in result.stderr
    (tmp_path / "zoo").mkdir()
    for name in ("left", "down"):
        (tmp_path / "zoo" / f"{name}.safetensors").write_bytes((digits_zoo / f"{name}.safetensors").read_bytes())
    result = run("measure", scores, "--zoo", tmp_path / "zoo", "--evaluate", f"{tmp_path / 'my_eval.py'}:accuracy")
    assert "no base checkpoint" in result.stderr


def test_the_estimate_times_making_and_evaluating_each_at_its_pace():
    pace = Pace(to_make=10, to_evaluate=11)
    assert pace.now("x").seconds_left is None
    pace._made, pace._making_seconds = 5, 10.0
    pace._evaluated, pace._evaluating_seconds = 2, 6.0
    now = pace.now("x")
    assert (now.done, now.total) == (2, 11)
    assert now.seconds_left == pytest.approx(9 * 3 + 5 * 2)
