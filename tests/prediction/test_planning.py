"""Plans of measurements: the formulas against plain linear algebra, and the plan against random choices."""

from itertools import combinations

import numpy as np
import pytest

from mergekern.errors import PredictionError
from mergekern.prediction import make_predictor, plan_measurements
from mergekern.prediction.planning import MEAN_RATIO, Design
from tests.support.measurements import METHODS, PUBLISHED, make_table, needs_published, published_table


def mean_variance(tasks, measured, ratio=10.0):
    """Return the mean predictive variance over all pairs, by inverting the information matrix."""
    rows = np.zeros((tasks * (tasks - 1) // 2, tasks + 1))
    for row, pair in zip(rows, combinations(range(tasks), 2), strict=True):
        row[[0, 1 + pair[0], 1 + pair[1]]] = 1
    information = np.diag([1 / MEAN_RATIO, *[1 / ratio] * tasks]) + rows[measured].T @ rows[measured]
    return np.einsum("ij,jk,ik->i", rows, np.linalg.inv(information), rows).mean()


def test_variances_are_those_of_the_information_matrix():
    design = Design(6)
    for pair in (0, 7, 11, 3):
        expected = design.mean_variance() - design.reductions()[pair]
        design.measure(pair)
        assert design.mean_variance() == pytest.approx(expected, rel=1e-8)
    design.measure(7, sign=-1)
    assert design.mean_variance() == pytest.approx(mean_variance(6, [0, 11, 3]), rel=1e-6)


def test_a_design_of_many_models_has_no_row_of_all_models_for_each_pair():
    design = Design(300)
    design.measure(5)
    sizes = [value.nbytes for value in vars(design).values()]
    assert sum(sizes) < 8 * 300 * len(design.pairs) / 10
    assert design.reductions().shape == (len(design.pairs),)


def test_a_plan_is_near_the_best_of_all_plans():
    names = "abcde"
    chosen = plan_measurements(names, 4)
    every = [mean_variance(5, list(rows)) for rows in combinations(range(10), 4)]
    assert chosen["mean_sd"].iloc[-1] ** 2 == pytest.approx(min(every), rel=1e-6)


def test_a_plan_beats_chance_and_each_measurement_helps():
    names = [f"m{number}" for number in range(12)]
    chosen = plan_measurements(names, 20)
    assert len(set(chosen.index)) == 20
    assert (np.diff(chosen["mean_sd"]) < 0).all()
    random = np.random.default_rng(0)
    by_chance = [mean_variance(12, random.choice(66, 20, replace=False)) for _ in range(50)]
    assert chosen["mean_sd"].iloc[-1] ** 2 < min(by_chance)


def test_a_plan_of_as_many_merges_as_models_is_not_stuck_in_a_worse_optimum():
    """Greedy exchange ends at 1.293 for 20 merges of 20 models, where six triangles and two more pairs have 1.225.

    Of plans of an exchange algorithm, the best of several starts is taken since Fedorov (1972); R's AlgDesign has
    nRepeats for it: https://cran.r-project.org/package=AlgDesign.
    """
    names = [f"m{number:02d}" for number in range(20)]
    chosen = plan_measurements(names, 20)
    assert chosen["mean_sd"].iloc[-1] < 1.2251
    assert chosen.equals(plan_measurements(names, 20))
    triangles = [pair for n in range(4) for pair in combinations(range(3 * n, 3 * n + 3), 2)]
    places = {pair: number for number, pair in enumerate(combinations(range(12), 2))}
    best = mean_variance(12, [places[pair] for pair in triangles]) ** 0.5
    assert plan_measurements(names[:12], 12)["mean_sd"].iloc[-1] < best * (1 + 1e-5)


def test_measured_pairs_are_not_planned_again():
    names = "abcdef"
    measured = [("b", "a"), ("c", "d"), ("x", "a")]
    chosen = plan_measurements(names, 13, measured)
    assert len(chosen) == 13
    assert not {frozenset("ab"), frozenset("cd")} & {frozenset(pair) for pair in chosen.index}
    # Models without a measured merge come first.
    assert set(plan_measurements(names, 1, measured).index[0]) == {"e", "f"}


def test_impossible_plans_are_refused():
    with pytest.raises(PredictionError, match=r"k must be from 1 to 2, .* not 3"):
        plan_measurements("abc", 3, [("a", "b")])
    with pytest.raises(PredictionError, match=r"k must be from 1 to 3, .* not 1\.5"):
        plan_measurements("abc", 1.5)
    with pytest.raises(PredictionError, match="2 models, 1 names"):
        plan_measurements(["a", "a"], 1)
    with pytest.raises(PredictionError, match="positive"):
        plan_measurements("abc", 1, ratio=0.0)


@needs_published
def test_planned_measurements_predict_the_study_better_than_random_ones():
    from mergekern.prediction import align_scores, read_scores

    table = published_table()
    index = table.to_pandas().index
    planned = index.isin(plan_measurements(table.models, 30).index)
    random = np.random.default_rng(0)
    errors = {"planned": [], "random": []}
    for method in METHODS:
        y = align_scores(read_scores(PUBLISHED / "accuracy_vit_b16.csv", method), index, table.models)
        draws = [("random", random.permutation(planned)) for _ in range(5)]
        for name, rows in [("planned", planned), *draws]:
            train, test = rows & y.notna().to_numpy(), ~rows & y.notna().to_numpy()
            X = y.to_frame() * 0
            found = make_predictor("additive").fit(X[train], y[train]).predict(X[test])
            errors[name].append(np.sqrt(((found - y[test]) ** 2).mean()) / y.std())
    assert np.mean(errors["planned"]) < 0.8 * np.mean(errors["random"])


def test_plans_do_not_depend_on_metrics():
    assert plan_measurements(make_table(5).models, 3).equals(plan_measurements(make_table(5, seed=1).models, 3))
