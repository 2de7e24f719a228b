"""Budget curves: more measured merges predict the others better, beside baselines that need no fit."""

import numpy as np
import pandas as pd
import pytest

from mergekern.errors import PredictionError
from mergekern.prediction import budget_curve, make_predictor, model_scores
from mergekern.prediction.correlation import pearson_r


@pytest.fixture(scope="module")
def zoo():
    random = np.random.default_rng(0)
    names = [f"m{number}" for number in range(9)]
    models = pd.DataFrame({"model": names, "own_accuracy": random.uniform(0.7, 0.95, 9), "base_accuracy": 0.4})
    X = model_scores(names, models)
    lost = dict(zip(names, random.uniform(0, 0.1, 9), strict=True))
    y = X["own_accuracy_mean"] - np.array([lost[a] + lost[b] for a, b in X.index])
    return X, (y + 0.005 * random.standard_normal(len(y))).rename("accuracy")


def test_curves_rise_and_stand_beside_what_needs_no_fit(zoo):
    X, y = zoo
    found = budget_curve(X, y, budgets=[0, 5, 20, 35], n_repeats=4)
    assert found.loc["prior+additive"].index.tolist() == [0, 5, 20]  # 35 of 36 leave one pair
    assert found.loc["additive"].index.tolist() == [5, 20]
    prior = make_predictor("prior").fit(X).predict(X)
    assert found.loc[("prior+additive", 0), "r"] == pytest.approx(pearson_r(prior, y.to_numpy()))
    assert found.loc[("prior+additive", 0), "rmse"] == pytest.approx(np.sqrt(((prior - y) ** 2).mean()))
    own = X["own_accuracy_mean"].to_numpy()
    assert found.loc[("own accuracy, no fit", 0), "r"] == pytest.approx(pearson_r(own, y.to_numpy()))
    assert found.loc[("own accuracy, no fit", 0), "regret"] == pytest.approx(y.max() - y.to_numpy()[own.argmax()])
    assert found.loc[("random", 0), "regret"] == pytest.approx(y.max() - y.mean())
    for kind in ("prior+additive", "additive"):
        assert found.loc[(kind, 20), "r"] > found.loc[(kind, 5), "r"]
        assert found.loc[(kind, 20), "rmse"] < found.loc[("mean of the measured", 20), "rmse"]


def test_only_what_can_be_fitted_has_rows(zoo):
    X, y = zoo
    found = budget_curve(X[[]].assign(stable_rank=1.0), y, budgets=[0, 5], n_repeats=2)
    assert found.index.unique(0).tolist() == ["additive", "mean of the measured", "random"]
    assert ("additive", 0) not in found.index
    with pytest.raises(PredictionError, match="0 or more, not -1"):
        budget_curve(X, y, budgets=[-1])
    with pytest.raises(PredictionError, match="no predictor 'prio'"):
        budget_curve(X, y, kinds=["prio"])
