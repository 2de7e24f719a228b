"""The study of probes: its figures on made-up zoos whose answer is known, and its tables."""

import numpy as np
import pandas as pd
import pytest

from probe_study import as_markdown, choice_costs, unseen_r
from tests.support.measurements import make_scores, make_table


@pytest.fixture(scope="module")
def zoo():
    table = make_table(tasks=8)
    scores = {method: make_scores(table).rename(method) + shift for method, shift in (("ties", -0.05), ("tsv", 0.0))}
    same = {"own_accuracy_mean": 0.9, "base_accuracy_mean": 0.5, "base_loss_mean": 1.0}
    known = pd.DataFrame(same, scores["tsv"].index)
    for method, y in scores.items():
        known[f"solo_loss_mean[{method}]"] = np.random.default_rng(0).uniform(0, 1, len(y))
        known[f"direct_loss_mean[{method}]"] = -y
        known[f"direct_accuracy_mean[{method}]"] = y
    return table.to_pandas().join(known), scores


def test_probes_that_are_the_score_rank_perfectly_and_one_for_all_pairs_not_at_all(zoo):
    found = unseen_r(*zoo)
    np.testing.assert_allclose(found.loc["probes, direct"], 1, atol=1e-3)
    np.testing.assert_array_equal(found.loc["own accuracy, no fit"], 0)
    assert (found.loc["probes, solo and base"].abs() < 0.5).all()


def test_a_method_that_is_always_better_costs_nothing(zoo):
    costs = choice_costs(*zoo)
    assert costs.index.tolist() == [10, 20]
    np.testing.assert_allclose(costs, 0, atol=1e-12)


def test_tables(zoo):
    text = as_markdown({"cnn": unseen_r(*zoo)}, {"cnn": choice_costs(*zoo)})
    assert "| probes, direct | 1.00 |" in text
    assert "| 20 measured merges | 0.00; 0.00 |" in text
    assert "| 40 measured merges | - |" in text
