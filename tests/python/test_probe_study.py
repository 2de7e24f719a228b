"""The study of probes: its figures on made-up zoos whose answer is known, and its tables."""

import numpy as np
import pandas as pd
import pytest

from probe_study import TRIED, as_markdown, choice_costs, unseen_r, weights_of_others
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


@pytest.fixture(scope="module")
def found(zoo):
    return unseen_r(*zoo)


@pytest.fixture(scope="module")
def costs(zoo):
    return choice_costs(*zoo)


def test_probes_that_are_the_score_rank_perfectly_and_one_for_all_pairs_not_at_all(found):
    np.testing.assert_allclose(found.loc["probes, direct"], 1, atol=1e-3)
    np.testing.assert_array_equal(found.loc["own accuracy, no fit"], 0)
    assert (found.loc["probes, solo and base"].abs() < 0.5).all()


def test_a_method_that_is_always_better_costs_nothing(costs):
    assert costs.index.tolist() == [10, 20]
    np.testing.assert_allclose(costs, 0, atol=1e-12)


def test_tables(found, costs):
    text = as_markdown({"cnn": found}, {"cnn": costs})
    assert "| probes, direct | 1.00 |" in text
    assert "| 20 measured merges | 0.00; 0.00 |" in text
    assert "| 40 measured merges | - |" in text


def test_weights_are_those_of_the_other_zoos():
    rows = ["prior", *map(str, TRIED)]
    random = np.random.default_rng(0)
    unseen = {name: pd.DataFrame(random.uniform(0, 1, (len(rows), 2)), rows) for name in ("cnn", "mlp", "vit")}
    best = (unseen["cnn"] + unseen["mlp"]).iloc[1:].mean(axis=1).idxmax()
    expected = unseen["vit"].loc[best]
    alone = {"cnn": unseen["cnn"].copy()}
    weights_of_others(unseen)
    assert unseen["vit"].index.tolist() == ["prior", "probes+metrics, weights of the other zoos"]
    np.testing.assert_array_equal(unseen["vit"].iloc[1], expected)
    weights_of_others(alone)
    assert alone["cnn"].index.tolist() == ["prior"]
