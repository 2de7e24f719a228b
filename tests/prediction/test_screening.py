"""Screening: tiles of pairs give the table of the whole, and its predictions and ranking."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import mergekern
from mergekern import MetricTable
from mergekern.cli import main
from mergekern.prediction import MergePredictor, recommend
from mergekern.prediction.screening import screen
from tests.support.zoos import write_zoo


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """A zoo, its finished statistics, table, and predictors of two methods."""
    folder = tmp_path_factory.mktemp("screened")
    zoo = write_zoo(folder / "zoo")
    table = mergekern.compute_all(zoo, statistics=folder / "s")
    draw = np.random.default_rng(0)
    scores = {
        method: pd.Series(draw.uniform(size=21), table.to_pandas().index, name="accuracy") for method in ("tsv", "ties")
    }
    predictors = [MergePredictor.fit(table, found[:15], method, "linear") for method, found in scores.items()]
    return zoo, folder / "s", table, predictors


@pytest.mark.parametrize("tile", [1, 2, 3, 7, 100])
def test_tiles_are_the_table(screened, tmp_path, tile):
    _, statistics, table, predictors = screened
    out = tmp_path / "pairs.parquet"
    found = screen(statistics, predictors, out, tile=tile)
    assert (found.models, found.pairs) == (7, 21)
    pd.testing.assert_frame_equal(found.ranked, recommend(predictors, table), rtol=1e-12, check_exact=False)
    loaded = MetricTable.load(out)
    assert loaded.models == table.models
    pd.testing.assert_frame_equal(loaded.to_pandas(), table.to_pandas(), check_exact=True)
    for metric in table.metrics:
        np.testing.assert_array_equal(loaded.matrix(metric), table.matrix(metric))
    written = pd.read_parquet(out).set_index(["model_a", "model_b"])
    for predictor in predictors:
        expected = predictor.predict(table).reindex(written.index)
        for what in ("prediction", "low", "high"):
            np.testing.assert_allclose(written[f"{what}_{predictor.method}"], expected[what], rtol=1e-12)


def test_only_the_most_promising_are_kept(screened):
    _, statistics, table, predictors = screened
    found = screen(statistics, predictors, tile=2, kept=4)
    assert found.pairs == 21
    assert list(found.ranked.index) == list(recommend(predictors, table).index[:4])


def test_without_predictors_by_a_metric(screened):
    _, statistics, table, _ = screened
    found = screen(statistics, metrics=["task_vector_l2_distance", "stable_rank"], tile=3, kept=5)
    pd.testing.assert_frame_equal(
        found.ranked, table.ranked("task_vector_l2_distance")[["task_vector_l2_distance", "stable_rank"]][:5],
        check_exact=True,
    )  # fmt: skip


def test_memory_is_of_a_tile(screened, monkeypatch):
    """No table has more models than the two sides of a tile."""
    _, statistics, _, predictors = screened
    sizes = []
    original = MetricTable.from_statistics
    monkeypatch.setattr(
        MetricTable,
        "from_statistics",
        staticmethod(lambda found, *a, **k: sizes.append(len(found.models)) or original(found, *a, **k)),
    )
    screen(statistics, predictors, tile=2)
    assert max(sizes) == 4
    assert len(sizes) == 3 + 6  # a block of one model has no pairs of its own


def test_a_metric_that_a_predictor_needs(screened, tmp_path):
    _, statistics, _, predictors = screened
    with pytest.raises(mergekern.PredictionError, match="the table lacks"):
        screen(statistics, predictors, tmp_path / "pairs.parquet", metrics="stable_rank")
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_written(screened, tmp_path):
    _, statistics, _, predictors = screened
    with pytest.raises(mergekern.OptionError, match=r"written as \.parquet"):
        screen(statistics, predictors, tmp_path / "pairs.csv")
    with pytest.raises(mergekern.OutputError, match="no folder"):
        screen(statistics, predictors, tmp_path / "none" / "pairs.parquet")


def run(*arguments):
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return found.exit_code, found.stdout or found.stderr


def test_the_command(screened, tmp_path):
    zoo, _, table, predictors = screened
    for predictor in predictors:
        predictor.save(tmp_path / f"{predictor.method}.json")
    models = [option for p in predictors for option in ("--predictor", tmp_path / f"{p.method}.json")]
    code, output = run("screen", zoo, *models, "--out", tmp_path / "pairs.parquet", "--rows", 3)
    assert code == 0, output
    best = recommend(predictors, table)
    assert all(name in output for name in best.index[0])
    assert "7 models, 21 pairs" in output
    pd.testing.assert_frame_equal(
        MetricTable.load(tmp_path / "pairs.parquet").to_pandas(), table.to_pandas(), check_exact=True
    )
    code, again = run("screen", zoo, *models, "--statistics", tmp_path / "s", "--rows", 3)
    assert code == 0, again
    code, from_folder = run("screen", "--statistics", tmp_path / "s", *models, "--rows", 3)
    assert code == 0
    assert from_folder == output.replace(f"wrote {tmp_path / 'pairs.parquet'}\n", "")
    code, output = run("screen", *models)
    assert code == 2
    assert "give ZOO, or the --statistics of one" in output


def test_the_command_looks_at_predictors_and_output_before_it_measures(screened, tmp_path):
    zoo, _, _, predictors = screened
    predictors[0].save(tmp_path / "p.json")
    asked = ("screen", zoo, "--predictor", tmp_path / "p.json", "--statistics", tmp_path / "s")
    for wrong, message in (
        (("--metrics", "stable_rank"), "not measured here"),
        (("--out", tmp_path / "pairs.csv"), "written as .parquet"),
        (("--out", tmp_path / "none" / "pairs.parquet"), "no folder"),
    ):
        code, output = run(*asked, *wrong)
        assert code == 1
        assert message in output.replace("\n", " ")
    assert not (tmp_path / "s").exists()


def test_provenance_is_of_the_whole(screened, tmp_path):
    _, statistics, table, _ = screened
    screen(statistics, out=tmp_path / "pairs.parquet", tile=2)
    loaded = MetricTable.load(tmp_path / "pairs.parquet")
    assert loaded.provenance == json.loads(json.dumps(table.provenance))
    assert sorted(loaded.notes) == sorted(table.notes)  # those of tiles come in the order of the tiles


def test_models_measured_for_fewer_metrics(screened, tmp_path):
    zoo, *_ = screened
    models = {name: zoo / f"{name}.safetensors" for name in "abcdefg"}
    base, folder = zoo / "base.safetensors", tmp_path / "s"
    mergekern.measure({name: models[name] for name in "abc"}, base, statistics=folder)
    mergekern.measure(models, base, statistics=folder, options=mergekern.MeasureOptions("task-vector geometry"))
    with pytest.raises(mergekern.StatisticsError, match="measured for fewer metrics than others; measure all of them"):
        screen(folder, out=tmp_path / "pairs.parquet", tile=3)
    assert not (tmp_path / "pairs.parquet").exists()
    mergekern.measure(models, base, statistics=folder)
    assert screen(folder, tile=3).pairs == 21


def test_notes_on_checkpoints_are_of_the_whole_zoo(tmp_path):
    draw = np.random.default_rng(4)
    zoo = {name: {"w": draw.normal(size=(12, 12)), "ids": np.arange(3)} for name in "abcde"}
    table = mergekern.compute_all(zoo, {"w": np.zeros((12, 12)), "ids": np.arange(3)}, statistics=tmp_path / "s")
    found = screen(tmp_path / "s", tile=2)
    notes = [note for note in found.notes if "integer tensor" in note]
    assert notes == [note for note in table.notes if "integer tensor" in note]
    assert any("all 5 models" in note for note in notes)


@pytest.mark.parametrize("tile", [2, 3])
def test_notes_on_ranks_count_the_models_of_the_whole_zoo(tmp_path, tile):
    """One matrix is of rank 1 in every model, another is frozen in two models of different tiles."""
    draw = np.random.default_rng(5)
    zoo = {name: {"w": np.outer(*draw.normal(size=(2, 12))), "v": draw.normal(size=(12, 12))} for name in "abcde"}
    zoo["a"]["v"] = zoo["e"]["v"] = np.zeros((12, 12))
    table = mergekern.compute_all(zoo, {n: np.zeros((12, 12)) for n in "wv"}, statistics=tmp_path / "s")
    found = screen(tmp_path / "s", out=tmp_path / "pairs.parquet", tile=tile)
    on_ranks = [note for note in found.notes if "matrices" in note]
    assert on_ranks == [note for note in table.notes if "matrices" in note]
    assert [note.partition(":")[0] for note in on_ranks] == ["a, e", "all 5 models"]
    assert [note for note in MetricTable.load(tmp_path / "pairs.parquet").notes if "matrices" in note] == on_ranks
    assert not [note for note in screen(tmp_path / "s", metrics="stable_rank", tile=tile).notes if "matrices" in note]
