"""The study of metrics alone: signs, missing scores and names in either order, on scores whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from metric_study import alone, as_markdown
from tests.support.measurements import make_table


@pytest.fixture(scope="module")
def zoo():
    table = make_table(tasks=6)
    frame = table.to_pandas()
    rows = []
    for (a, b), distance in frame["task_vector_l2_distance"].items():
        rows += [("ties", b, a, 1 - 0.1 * distance, 1.0 - distance), ("tsv", a, b, 0.1 * distance, np.nan)]
    return frame, pd.DataFrame(rows, columns=["method", "model_a", "model_b", "accuracy", "normalized_accuracy"])


def test_less_distance_is_more_mergeable_whichever_model_is_named_first(zoo):
    found = alone(*zoo, "accuracy")
    assert found.loc["task_vector_l2_distance"].round(9).to_dict() == {"ties": 1.0, "tsv": -1.0}
    cosine = np.corrcoef(zoo[0]["task_vector_cosine_similarity"], -zoo[0]["task_vector_l2_distance"])[0, 1]
    assert found.loc["task_vector_cosine_similarity", "ties"] == pytest.approx(cosine)


def test_table_has_the_best_metric_first_and_no_numbers_that_are_not_known(zoo):
    text = as_markdown(
        {("cnn", target): alone(*zoo, target)[["ties"]] for target in ("accuracy", "normalized_accuracy")}
    )
    head, _, first, *_ = text.splitlines()
    assert head == "| metric | cnn, raw | cnn, normalised | mean |"
    assert first == "| task_vector_l2_distance | 1.00 | 1.00 | 1.00 |"
    assert "nan" not in as_markdown({("cnn", "normalized_accuracy"): alone(*zoo, "normalized_accuracy")[["tsv"]]})
