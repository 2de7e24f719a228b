import numpy as np
import pandas as pd
import pytest

from mergekern import MetricTable, OptionError
from mergekern.metrics import CATALOGUE
from mergekern.report import contents
from mergekern.report.contents import gather, leaf_order
from tests.support.report_tables import make_table


def test_summary_is_what_pandas_finds():
    table = make_table(missing=[("stable_rank", [(0, 1), (2, 3)])])
    frame, summary = table.to_pandas(), gather(table).summary
    assert list(summary.index) == list(table.metrics)
    assert (summary["lowest"] == frame.min()).all()
    assert (summary["median"] == frame.median()).all()
    assert (summary["highest"] == frame.max()).all()
    assert summary["missing"].to_dict() == {name: 2 if name == "stable_rank" else 0 for name in frame}
    for name, row in summary.iterrows():
        assert (row["best_a"], row["best_b"]) == table.ranked(name).index[0]


def test_a_metric_without_any_value_has_no_best_pair():
    table = make_table(3, 0, missing=[("stable_rank", [(0, 1), (0, 2), (1, 2)])])
    row = gather(table).summary.loc["stable_rank"]
    assert row["missing"] == 3
    assert row["best_a"] is None
    assert np.isnan(row["lowest"])


def test_correlations_are_over_pairs_that_have_both_values():
    table = make_table(8, 0, missing=[("stable_rank", [(0, 1), (2, 3)])])
    found = gather(table).correlations
    both = table.to_pandas()[["stable_rank", "effective_rank"]].dropna().to_numpy().T
    assert len(both[0]) == 26
    assert found["pearson"].loc["stable_rank", "effective_rank"] == pytest.approx(np.corrcoef(both)[0, 1], rel=1e-12)
    ranks = np.argsort(np.argsort(both, axis=1), axis=1)
    assert found["spearman"].loc["stable_rank", "effective_rank"] == pytest.approx(np.corrcoef(ranks)[0, 1], rel=1e-12)


def test_layers_are_the_tables_own_and_spread_is_their_quantiles():
    table = make_table()
    found = gather(table)
    assert set(found.layers) == {name for name, metric in CATALOGUE.items() if table.per_layer(name).shape[1]}
    assert "activation_l2_distance" not in found.layers
    for name in found.layers:
        pd.testing.assert_frame_equal(found.layers[name], table.per_layer(name), check_exact=True)
        expected = np.quantile(table.per_layer(name).to_numpy(), contents.QUANTILES, axis=0)
        np.testing.assert_allclose(found.spread[name].to_numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("more", ["higher", "lower"])
def test_clustering_brings_groups_together(more):
    group = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    rng = np.random.default_rng(0)
    i, j = np.triu_indices(8, 1)
    close = (group[i] == group[j]) + 0.1 * rng.random(len(i))
    order = leaf_order(close if more == "higher" else -close, 8, more)
    assert sorted(order) == list(range(8))
    assert np.count_nonzero(np.diff(group[order])) == 1


def test_pairs_without_a_value_are_kept_apart():
    i, j = np.triu_indices(4, 1)
    values = np.where((i == 0) | (j == 0), np.nan, 0.5)
    values[-1] = 0.9
    assert leaf_order(values, 4, "higher")[[0, -1]].tolist().count(0) == 1
    assert leaf_order(np.full(6, np.nan), 4, "higher").tolist() == [0, 1, 2, 3]


def test_orders_are_of_the_whole_models_and_of_each_tensor():
    table = make_table()
    found = gather(table)
    more = CATALOGUE["weight_space_angle"].more_mergeable
    orders = found.orders["weight_space_angle"]
    assert orders.shape == (4, 6)
    assert (orders[0] == leaf_order(table.to_pandas()["weight_space_angle"].to_numpy(), 6, more)).all()
    last = table.per_layer("weight_space_angle")["blocks.2.weight"].to_numpy()
    assert (orders[3] == leaf_order(last, 6, more)).all()
    assert found.orders["activation_l2_distance"].shape == (1, 6)


def test_too_many_values_of_tensors_leave_their_quantiles(monkeypatch):
    table = make_table()
    size = sum(table.per_layer(name).size for name in table.metrics)
    monkeypatch.setattr(contents, "LAYER_VALUES", size)
    assert gather(table).with_layers
    monkeypatch.setattr(contents, "LAYER_VALUES", size - 1)
    found = gather(table)
    assert not found.with_layers
    assert found.orders["weight_space_angle"].shape == (1, 6)
    assert found.spread["weight_space_angle"].shape == (5, 3)


def test_the_first_metric():
    table = make_table(3, 0)
    assert gather(table).first == "task_vector_l2_distance"
    assert gather(table, "stable_rank").first == "stable_rank"
    alone = MetricTable(table.models, {"stable_rank": table.matrix("stable_rank")})
    assert gather(alone).first == "stable_rank"
    with pytest.raises(OptionError, match="did you mean 'stable_rank'"):
        gather(table, "stabel_rank")
    with pytest.raises(OptionError, match="no metric"):
        gather(MetricTable(["a", "b"], {}))


def test_two_models_are_enough():
    found = gather(make_table(2, 1))
    assert found.orders["stable_rank"].tolist() == [[0, 1], [0, 1]]
    assert found.correlations["pearson"].isna().all(axis=None)
