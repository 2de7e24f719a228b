"""The study of budgets: figures and regrets beside what needs no fit, on scores whose answer is known."""

import numpy as np
import pandas as pd
import pytest

import budget_study
from budget_study import as_markdown, of_methods, of_target
from mergekern.prediction import model_scores


@pytest.fixture(scope="module")
def zoo():
    """Return a table of 9 models, and scores by two methods that are effects of the models."""
    random = np.random.default_rng(0)
    names = list("abcdefghi")
    models = pd.DataFrame({"model": names, "own_accuracy": random.uniform(0.8, 1, 9), "base_accuracy": 0.5})
    X = model_scores(names, models)
    effect = dict(zip(names, random.uniform(0, 0.2, 9), strict=True))
    y = pd.Series([0.9 - effect[a] - effect[b] for a, b in X.index], X.index) + 0.002 * random.standard_normal(36)
    table = X.assign(task_vector_l2_distance=-y, task_vector_cosine_similarity=random.uniform(-1, 1, 36))
    return table, {"tsv": y, "ties": y - 0.1}


@pytest.fixture(scope="module")
def found(zoo):
    return of_target(*zoo, "accuracy"), of_methods(*zoo)


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(budget_study, "DRAWS", 2)
        patched.setattr(budget_study, "BUDGETS", (0, 20))
        yield


def test_what_is_the_score_ranks_perfectly_and_costs_nothing(found):
    figures, _ = found
    for m in (0, 20):
        np.testing.assert_allclose(figures.loc[("L2 distance", m), ["r", "pair", "partner"]].tolist(), [1, 0, 0])
        assert figures.loc[("oracle", m)].tolist() == [1, 0, 0, 0]
        assert figures.loc[("random", m), "pair"] > 5
    assert ("additive", 0) not in figures.index
    assert figures.loc[("additive", 20), "r"] > 0.95
    assert figures.loc[("prior+additive", 20), "rmse"] < 0.2 * figures.loc[("prior+additive", 0), "rmse"]


def test_a_method_that_is_always_better_is_chosen(found):
    costs = found[1][20]
    assert costs["`recommend`"] == costs["always the best measured"] == costs["oracle"] == 0
    assert costs["random method"] == pytest.approx(5)


def test_tables(found):
    text = as_markdown("cnn", {"accuracy": found[0]}, found[1])
    assert text.startswith("| cnn: accuracy | m = 0 | m = 20 |\n|---|---|---|\n")
    assert "| L2 distance | 1.00 · - · 0.00 · 0.00 |" in text
    assert "| additive | - | " in text
    assert "| random method | 5.00 |" in text
