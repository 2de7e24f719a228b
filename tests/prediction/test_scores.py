"""Scores: read in the study's format, aligned with a table; an error names the wrong line."""

import numpy as np
import pandas as pd
import pytest

from mergekern.errors import PredictionError
from mergekern.prediction import align_scores, read_scores
from tests.support.measurements import make_table

HEADER = "method,model_a,model_b,accuracy,normalized_accuracy\n"


def write(tmp_path, text):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    return path


def test_scores_of_one_method_and_target(tmp_path):
    path = write(tmp_path, HEADER + "tsv,task1,task0,0.9,0.95\nties,task0,task1,0.5,\ntsv,task0,task2,,0.7\n")
    scores = read_scores(path, "tsv")
    assert scores.name == "accuracy"
    assert scores.index.tolist() == [("task1", "task0"), ("task0", "task2")]
    np.testing.assert_array_equal(scores.to_numpy(), [0.9, np.nan])
    assert read_scores(path, "tsv", "normalized_accuracy").tolist() == [0.95, 0.7]
    table = make_table(tasks=3)
    aligned = align_scores(scores, table.to_pandas().index, table.models)
    np.testing.assert_array_equal(aligned.to_numpy(), [0.9, np.nan, np.nan])


def test_numbers_are_read_to_the_last_bit_and_models_may_be_called_na(tmp_path):
    path = write(tmp_path, HEADER + f"tsv,NA,nan,{0.1 + 0.2!r},\n")
    scores = read_scores(path, "tsv")
    assert scores.index.tolist() == [("NA", "nan")]
    assert scores.iloc[0] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "tsv,a,b,0.9,\ntsv,b,a,0.8,\n", "line 3: b and a merged by tsv are also in line 2"),
        (HEADER + "tsv,a,a,0.9,\n", "line 2: a pair is of two models, not 'a' with itself"),
        (HEADER + "tsv,a,b,high,\n", "line 2: 'high' is not a score"),
        (HEADER + "tsv,a,b,inf,\n", "line 2: 'inf' is not a score"),
        (HEADER + "tsv,a,b\n", "line 2: not as many values as the header has columns .5."),
        (HEADER + "tsv,a,b,1,2,3\n", "line 2: not as many values"),
        (HEADER + "tvs,a,b,0.9,\n", "no scores of method 'tsv' .did you mean 'tvs'.*it has tvs"),
        (HEADER, "it has no rows at all"),
        ("method,model_a,model_b,acuracy\ntsv,a,b,1\n", "no column 'accuracy' .did you mean 'acuracy'"),
        ("", "no column 'method' or 'model_a'"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    with pytest.raises(PredictionError, match=message):
        read_scores(write(tmp_path, text), "tsv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PredictionError, match=r"nowhere\.csv: scores cannot be read"):
        read_scores(tmp_path / "nowhere.csv", "tsv")


def test_unknown_models_and_pairs_scored_twice_are_refused():
    table = make_table(tasks=3)
    index = table.to_pandas().index
    with pytest.raises(PredictionError, match=r"not in the table: taks1 .did you mean 'task1'"):
        align_scores(pd.Series([0.5], index=pd.MultiIndex.from_tuples([("taks1", "task0")])), index, table.models)
    twice = pd.MultiIndex.from_tuples([("task1", "task0"), ("task0", "task1")])
    with pytest.raises(PredictionError, match="two scores of the pair task0 and task1"):
        align_scores(pd.Series([0.5, 0.5], index=twice), index, table.models)
