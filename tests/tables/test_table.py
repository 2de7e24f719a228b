import json

import numpy as np
import pandas as pd
import pytest

import mergekern
from mergekern import MetricTable, OptionError, StatisticsError
from tests.golden.zoo import SPECS, make_zoo
from tests.support.names import OF_WEIGHTS


@pytest.fixture(scope="module")
def table():
    base, tuned = make_zoo(SPECS["mixed"])
    zoo = {name: model for name, model in zip(["NA", "b__b", "c,c", 'd"d', "é"], tuned, strict=True)}
    zoo["c,c"] = {**zoo["c,c"], "head.small.weight": base["head.small.weight"]}
    return mergekern.compute_all(zoo, base, per_layer=True)


def test_pairs_are_in_model_order(table):
    frame = table.to_pandas()
    assert frame.index.names == ["model_a", "model_b"]
    assert list(frame.columns) == OF_WEIGHTS
    assert list(frame.index[:5]) == [("NA", "b__b"), ("NA", "c,c"), ("NA", 'd"d'), ("NA", "é"), ("b__b", "c,c")]
    assert (frame.dtypes == np.float64).all()
    for name in OF_WEIGHTS:
        matrix = table.matrix(name)
        assert matrix.shape == (5, 5)
        assert matrix[1, 2] == frame.loc[("b__b", "c,c"), name]


def test_diagonal_compares_each_model_with_itself(table):
    assert np.allclose(np.diagonal(table.matrix("task_vector_cosine_similarity")), 1)
    assert np.allclose(np.diagonal(table.matrix("right_subspace_overlap_top_k")), 1, atol=1e-5)
    assert (np.diagonal(table.matrix("task_vector_l2_distance")) == 0).all()


def test_per_layer_leaves_out_what_is_not_defined(table):
    assert "blocks.0.attn.bias" in table.per_layer("effective_rank")
    assert list(table.per_layer("subspace_overlap")) == [
        "embed.position", "blocks.0.attn.weight", "blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight",
        "head.small.weight",
    ]  # fmt: skip
    assert np.isnan(table.per_layer("subspace_overlap").loc[("NA", "c,c"), "head.small.weight"])


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json"])
@pytest.mark.parametrize("per_layer", [True, False])
def test_saved_tables_are_read_back_exactly(table, tmp_path, suffix, per_layer):
    if not per_layer:
        table = MetricTable(
            table.models, {n: table.matrix(n) for n in table.metrics}, None, table.notes, table.provenance
        )
    path = tmp_path / f"table.{suffix}"
    table.save(path)
    again = MetricTable.load(path)
    assert again.models == table.models
    pd.testing.assert_frame_equal(again.to_pandas(), table.to_pandas(), check_exact=True)
    if suffix != "csv":
        assert again.notes == table.notes
        assert again.provenance == table.provenance
        for name in table.metrics:
            assert np.array_equal(again.matrix(name), table.matrix(name), equal_nan=True)
    if per_layer:
        for name in table.metrics:
            pd.testing.assert_frame_equal(again.per_layer(name), table.per_layer(name), check_exact=True)
    first = path.read_bytes()
    table.save(path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_parquet_is_plain_for_pandas(table, tmp_path):
    plain = MetricTable(table.models, {n: table.matrix(n) for n in table.metrics})
    plain.save(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), plain.to_pandas())


def test_json_has_the_form_of_the_study(table, tmp_path):
    table.save(tmp_path / "t.json")
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["datasets"] == list(table.models)
    entry = document["metrics"]["task_vector_cosine_similarity"]
    assert entry["pairs"]["NA__b__b"] == entry["matrix"][0][1] == table.matrix("task_vector_cosine_similarity")[0, 1]
    assert entry["matrix"][1][0] is None
    assert entry["per_layer"]["NA__b__b"]["blocks.0.attn.bias"] is not None


def test_reads_the_study_files(tmp_path):
    document = {
        "model_name": "ViT", "datasets": ["a", "b", "c"],
        "metrics": {"stable_rank": {"matrix": [[None, 1.5, None], [None, None, 1.25], [None] * 3], "pairs": {}}},
    }  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps(document))
    table = MetricTable.load(tmp_path / "s.json")
    assert table.matrix("stable_rank")[1, 0] == 1.5
    assert np.isnan(table.matrix("stable_rank")[0, 2])
    (tmp_path / "s.csv").write_text("model_a,model_b,mystery,stable_rank\nx,y,1,1.5\nx,z,2,\ny,z,3,1.75\n")
    table = MetricTable.load(tmp_path / "s.csv")
    assert table.metrics == ("stable_rank",)
    assert table.matrix("stable_rank")[2, 1] == 1.75
    assert "mystery" in table.notes[0]


def test_ranked_puts_the_more_mergeable_first(table):
    assert table.ranked("task_vector_cosine_similarity")["task_vector_cosine_similarity"].is_monotonic_decreasing
    assert table.ranked("weight_space_angle")["weight_space_angle"].is_monotonic_increasing


def test_errors_name_what_is_wrong(table, tmp_path):
    with pytest.raises(OptionError, match=r"did you mean 'stable_rank'"):
        table.matrix("stabel_rank")
    with pytest.raises(OptionError, match=r"t\.xlsx.*\.parquet"):
        table.save(tmp_path / "t.xlsx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(StatisticsError, match=r"gone\.json"):
        MetricTable.load(tmp_path / "gone.json")
    for name, content in {"a.json": "[1]", "b.parquet": "PAR1", "c.csv": "x,y\n1,2\n"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(StatisticsError, match=name):
            MetricTable.load(tmp_path / name)
    plain = MetricTable(table.models, {"stable_rank": table.matrix("stable_rank")})
    with pytest.raises(OptionError, match="per_layer=True"):
        plain.per_layer("stable_rank")


def test_matrices_are_copies(table):
    table.matrix("stable_rank")[:] = 0
    assert table.matrix("stable_rank")[0, 1] > 0


def test_json_keeps_pairs_whose_study_keys_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    zoo = {name: {"w": rng.standard_normal((4, 4))} for name in ("a", "a__b", "b__c", "c")}
    table = mergekern.compute_all(zoo, {"w": np.zeros((4, 4))}, per_layer=True)
    table.save(tmp_path / "t.json")
    again = MetricTable.load(tmp_path / "t.json")
    pd.testing.assert_frame_equal(again.per_layer("stable_rank"), table.per_layer("stable_rank"), check_exact=True)
