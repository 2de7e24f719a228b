"""compute_all and measure: what is computed, left out, noted and kept, and what a call leaves unchanged."""

import dataclasses
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info

import mergekern
from mergekern import OptionError, ZooStatistics
from mergekern.kernels import dispatch
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.metrics import CATALOGUE
from tests.golden.zoo import SPECS, make_zoo
from tests.support.names import OF_WEIGHTS

SUBSPACE_METRICS = [name for name, metric in CATALOGUE.items() if metric.needs == "spectra"]


@pytest.fixture(scope="module")
def mixed():
    base, tuned = make_zoo(SPECS["mixed"])
    return base, {f"m{index}": model for index, model in enumerate(tuned)}


def frame(*arguments, **options):
    return mergekern.compute_all(*arguments, **options).to_pandas()


def test_only_the_metrics_asked_for(mixed):
    base, zoo = mixed
    assert list(frame(zoo, base, metrics="stable_rank")) == ["stable_rank"]
    assert list(frame(zoo, base, metrics=["subspace_overlap", "spectral_gap"])) == ["spectral_gap", "subspace_overlap"]
    assert list(frame(zoo, base, metrics="subspace overlap")) == SUBSPACE_METRICS


def test_metrics_of_inner_products_cause_no_factorisation(mixed):
    base, zoo = mixed
    statistics = mergekern.measure(zoo, base, options=mergekern.MeasureOptions("task-vector geometry"))
    assert all(layer.spectrum is None for layer in statistics.layers)
    assert not statistics.has_spectra


def test_inputs_are_left_as_they_were():
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal((20, 12))}
    zoo = {name: {"w": torch.from_numpy(rng.standard_normal((20, 12)))} for name in "ab"}
    kept = base["w"].copy(), {name: model["w"].clone() for name, model in zoo.items()}
    mergekern.compute_all(zoo, base)
    assert np.array_equal(base["w"], kept[0])
    assert all(torch.equal(zoo[name]["w"], kept[1][name]) for name in zoo)


def test_statistics_give_every_metric_without_the_weights(mixed, tmp_path):
    base, zoo = mixed
    expected = mergekern.compute_all(zoo, base, per_layer=True)
    mergekern.measure(zoo, base).save(tmp_path / "stats")
    table = mergekern.MetricTable.from_statistics(ZooStatistics.load(tmp_path / "stats"), per_layer=True)
    pd.testing.assert_frame_equal(table.to_pandas(), expected.to_pandas(), check_exact=True)
    assert table.provenance == expected.provenance
    with pytest.raises(OptionError, match="without spectra"):
        mergekern.MetricTable.from_statistics(
            mergekern.measure(zoo, base, options=mergekern.MeasureOptions("stable_rank")), SUBSPACE_METRICS
        )


def test_statistics_are_reused_only_while_the_inputs_are_the_same(mixed, tmp_path, monkeypatch):
    base, zoo = mixed
    folder = tmp_path / "stats"
    first = frame(zoo, base, statistics=folder)
    blocks = {path.name: path.stat().st_mtime_ns for path in (folder / "blocks").iterdir()}
    measured = []
    original = CpuMeasurement.begin

    def counted(self, layer, *arguments, **options):
        measured.append((layer.tensor.name, layer.zoo.model_names))
        return original(self, layer, *arguments, **options)

    monkeypatch.setattr(CpuMeasurement, "begin", counted)
    pd.testing.assert_frame_equal(frame(zoo, base, statistics=folder), first, check_exact=True)
    assert not measured
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "blocks").iterdir()} == blocks

    changed = {**zoo, "m1": {**zoo["m1"], "blocks.0.attn.weight": zoo["m1"]["blocks.0.attn.weight"] * 1.0001}}
    again = frame(changed, base, statistics=folder)
    # The changed model by itself, and with each of the others.
    name = "blocks.0.attn.weight"
    assert measured == [(name, ("m1",)), (name, ("m0", "m2", "m3", "m4", "m1"))]
    pd.testing.assert_frame_equal(again, frame(changed, base), check_exact=True)
    assert len(list((folder / "blocks").iterdir())) == len(blocks) + 2

    measured.clear()
    frame(changed, base, statistics=folder, top_k=5)
    assert len(measured) == len(blocks)


def test_statistics_without_spectra_are_completed(mixed, tmp_path):
    base, zoo = mixed
    frame(zoo, base, statistics=tmp_path / "s", metrics="stable_rank")
    pd.testing.assert_frame_equal(frame(zoo, base, statistics=tmp_path / "s"), frame(zoo, base), check_exact=True)
    assert list(frame(zoo, base, statistics=tmp_path / "s", metrics="stable_rank")) == ["stable_rank"]


def test_progress_counts_to_the_end(mixed):
    base, zoo = mixed
    seen = []
    mergekern.compute_all(zoo, base, progress=seen.append)
    assert [p.tensors_done for p in seen] == list(range(11))
    assert seen[0].tensor == "embed.conv.weight"
    assert seen[-1].tensor == ""
    assert (
        seen[-1].bytes_done
        == seen[-1].bytes_total
        == 6 * 4 * sum(v.size for v in base.values() if v.dtype == np.float32)
    )


class TestFrozen:
    """Tensors equal to the base."""

    @pytest.fixture
    def zoo(self):
        rng = np.random.default_rng(0)
        base = {"p": rng.standard_normal((20, 15)), "q": rng.standard_normal((15, 20))}
        zoo = {n: {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in base.items()} for n in "abc"}
        zoo["a"]["q"] = base["q"]
        zoo["b"]["q"] = base["q"].copy()
        return base, zoo

    def test_excluded_from_the_averages_of_the_pair(self, zoo):
        base, models = zoo
        both = frame(models, base)
        p = frame({n: {"p": m["p"]} for n, m in models.items()}, {"p": base["p"]})
        for metric in (*SUBSPACE_METRICS, "layerwise_effective_rank"):
            assert both.loc[("a", "b"), metric] == pytest.approx(p.loc[("a", "b"), metric])
            assert both.loc[("a", "c"), metric] == pytest.approx(p.loc[("a", "c"), metric])
        notes = mergekern.compute_all(models, base).notes
        assert notes[0] == "a, b: 1 matrices equal to the base, left out of the averages over layers: q"

    def test_included_as_the_published_code_does(self, zoo):
        base, models = zoo
        include = frame(models, base, frozen="include")
        p = frame({n: {"p": m["p"]} for n, m in models.items()}, {"p": base["p"]})
        pair = ("a", "b")
        assert include.loc[pair, "right_subspace_overlap_top_k"] == pytest.approx(
            (p.loc[pair, "right_subspace_overlap_top_k"] + 1) / 2, abs=1e-6
        )
        assert include.loc[pair, "singular_value_overlap"] == pytest.approx(p.loc[pair, "singular_value_overlap"] / 2)
        # A frozen matrix has the first columns of the identity as singular vectors.
        u, _, _ = np.linalg.svd(models["c"]["q"] - base["q"])
        left = np.linalg.norm(u[:10, :10]) / 10
        expected = (p.loc[("a", "c"), "subspace_overlap"] + left) / 2
        assert include.loc[("a", "c"), "subspace_overlap"] == pytest.approx(expected, abs=1e-6)

    def test_a_pair_with_nothing_left_has_no_value_but_a_reason(self, zoo):
        base, models = zoo
        models["a"] = dict(base)
        table = mergekern.compute_all(models, base)
        values = table.to_pandas().loc[("a", "b")]
        lengths = [name for name in OF_WEIGHTS if not np.isfinite(mergekern.CATALOGUE[name].range).all()]
        assert len(lengths) >= 2
        assert values.drop(lengths).isna().all()
        assert values[lengths].notna().all()
        assert table.to_pandas().loc[("b", "c")].notna().all()
        noted = [note.split(":")[0] for note in table.notes if "no value for 2 pairs" in note]
        assert noted == [name for name in OF_WEIGHTS if name not in lengths]
        assert all("(a, b), (a, c)" in note for note in table.notes if "no value" in note)


def test_low_rank_updates_count_only_where_they_can_be_measured():
    rng = np.random.default_rng(0)
    base = {"w": np.zeros((40, 30)), "x": np.zeros((40, 30))}
    low = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 30))
    middle = rng.standard_normal((40, 15)) @ rng.standard_normal((15, 30))
    zoo = {
        "low": {"w": low, "x": rng.standard_normal((40, 30))},
        "middle": {"w": middle, "x": rng.standard_normal((40, 30))},
        "full": {"w": rng.standard_normal((40, 30)), "x": rng.standard_normal((40, 30))},
    }
    table = mergekern.compute_all(zoo, base, per_layer=True)
    whole = table.to_pandas()
    for metric in SUBSPACE_METRICS:
        layers = table.per_layer(metric)
        if metric == "singular_value_overlap":
            counted = {("low", "middle"), ("low", "full"), ("middle", "full")}
        elif "bottom" in metric:
            counted = set()
        else:
            counted = {("middle", "full")}
        for pair in layers.index:
            assert np.isnan(layers.loc[pair, "w"]) == (pair not in counted), (metric, pair)
            assert whole.loc[pair, metric] == pytest.approx(layers.loc[pair].mean())
    assert "low: 1 matrices of rank below k, left out of the top-k and bottom-k averages: w" in table.notes
    assert "middle: 1 matrices not of full rank, left out of the bottom-k averages: w" in table.notes


def test_skipped_tensors_are_noted(mixed):
    base, zoo = mixed
    zoo = {**zoo, "m0": {k: v for k, v in zoo["m0"].items() if k != "embed.position"}}
    table = mergekern.compute_all(zoo, base, on_mismatch="skip")
    assert table.notes == [
        "tensor left out of everything: embed.position: in 'base' but missing in 'm0'",
        "1 integer tensor takes no part (0.2 % of the bytes): embed.position_ids (in the base and all 5 models)",
        "1 matrices are too small to tell models apart in subspace_overlap, counted as in the published code "
        '(small_tensors="exclude" does not): head.small.weight',
    ]
    assert "embed.position" not in mergekern.compute_all(zoo, base, on_mismatch="skip", per_layer=True).per_layer(
        "stable_rank"
    )


def test_provenance_says_what_was_computed_from_what(mixed):
    base, zoo = mixed
    provenance = mergekern.compute_all(zoo, base, top_k=3).provenance
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["device"] == "cpu"
    assert provenance["dtypes"]["m0"] == ["float32"]
    assert provenance["options"]["top_k"] == 3
    assert len(set(provenance["content_hashes"].values())) == 6
    assert mergekern.compute_all(zoo, base, top_k=3, max_memory=5000).provenance == provenance


def test_bits_do_not_depend_on_run_threads_or_budget(mixed):
    base, zoo = mixed
    expected = frame(zoo, base)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            pd.testing.assert_frame_equal(frame(zoo, base), expected, check_exact=True)
    finally:
        torch.set_num_threads(before)


def test_leaves_no_global_state_changed(mixed):
    base, zoo = mixed

    def state():
        return (
            torch.get_num_threads(), torch.is_grad_enabled(), torch.random.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(), random.getstate(), list(warnings.filters), torch.get_default_dtype(),  # noqa: NPY002
            sorted((p["filepath"], p["num_threads"]) for p in threadpool_info()), np.geterr(),
        )  # fmt: skip

    mergekern.compute_all(zoo, base)  # so that libraries that load at first use are loaded
    before = state()
    mergekern.compute_all(zoo, base)
    assert state() == before


def test_several_threads_of_a_larger_job(mixed):
    base, zoo = mixed
    expected = frame(zoo, base)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: frame(zoo, base), range(12)):
            pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_grad_mode_modules_and_parameters():
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 5))
    models = {}
    for name in "ab":
        models[name] = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 5))
    table = mergekern.compute_all(models, base)
    states = {name: model.state_dict() for name, model in models.items()}
    pd.testing.assert_frame_equal(table.to_pandas(), frame(states, base.state_dict()), check_exact=True)
    assert table.to_pandas().notna().all().all()


def test_metrics_may_be_any_iterable(mixed):
    base, zoo = mixed
    assert list(frame(zoo, base, metrics=(name for name in ["stable_rank"]), top_k=np.int64(3))) == ["stable_rank"]


def test_a_refused_run_leaves_the_blocks_of_an_earlier_one(mixed, tmp_path):
    base, zoo = mixed
    folder = tmp_path / "s"
    before = frame(zoo, base, metrics="stable_rank", statistics=folder)
    bad = {**zoo, "m4": {**zoo["m4"], "head.small.weight": np.full((6, 48), np.nan, np.float32)}}
    with pytest.raises(mergekern.NonFiniteError):
        mergekern.compute_all(bad, base, statistics=folder)
    again = mergekern.MetricTable.from_statistics(ZooStatistics.load(folder), "stable_rank")
    pd.testing.assert_frame_equal(again.to_pandas(), before, check_exact=True)


def test_blocks_of_another_backend_are_not_reused(mixed, tmp_path, monkeypatch):
    base, zoo = mixed
    mergekern.compute_all(zoo, base, statistics=tmp_path / "s")
    monkeypatch.setattr(dispatch, "backends", lambda: [dispatch.NUMPY])
    ran = []
    gram = dispatch.NUMPY.gram
    monkeypatch.setattr(
        dispatch, "NUMPY", dataclasses.replace(dispatch.NUMPY, gram=lambda *a: ran.append(1) or gram(*a))
    )
    table = mergekern.compute_all(zoo, base, statistics=tmp_path / "s")
    assert table.provenance["backend"] == "numpy"
    assert len(ran) == 10


def test_metrics_cannot_change_the_statistics(mixed):
    base, zoo = mixed
    statistics = mergekern.measure(zoo, base, options=mergekern.MeasureOptions("stable_rank"))
    with pytest.raises(ValueError, match="read-only"):
        CATALOGUE["task_vector_dot_product"].compute(statistics)[:] = 0
