"""Statistics are put together from any blocks that have all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mergekern
from mergekern import ZooStatistics
from mergekern.statistics.assembly import Coverage
from mergekern.statistics.keys import BlockKey
from mergekern.statistics.layer_block import LayerBlock
from tests.support.zoos import assert_same, paths

GEOMETRY = ["task-vector geometry"]


def test_the_same_content_on_both_sides_of_a_block_has_no_spectra_there():
    """Two models share a tensor. The block of their pair is not the block of one model with itself."""
    pairs = np.ones((1, 1))
    block = LayerBlock(BlockKey("w", (2, 2), "how", "base", ("x",), ("x",)), pairs, pairs)
    coverage = Coverage(["x", "x"])
    coverage.add(block.key)
    assert coverage.pairs.tolist() == [[False, True], [True, False]]
    assert coverage.known() == []


BASE = {"w": np.zeros((5, 4), dtype=np.float32), "b": np.zeros(3, dtype=np.float32)}


def model(seed):
    """Return a model whose matrix depends on the seed modulo 3, and whose vector on the seed modulo 5."""
    return {
        "w": np.random.default_rng(seed % 3).normal(size=(5, 4)).astype(np.float32),
        "b": np.random.default_rng(100 + seed % 5).normal(size=3).astype(np.float32),
    }


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=6, unique=True), st.sampled_from(["all", GEOMETRY])),
        min_size=1,
        max_size=5,
    )
)
def test_any_sequence_of_zoos_in_one_folder(tmp_path_factory, sequence):
    """Models come and go, share their tensors, and are measured for all metrics or for some."""
    folder = tmp_path_factory.mktemp("sequence") / "s"
    for seeds, metrics in sequence:
        models = {f"m{seed}": model(seed) for seed in seeds}
        found = mergekern.measure(models, BASE, statistics=folder, options=mergekern.MeasureOptions(metrics))
        assert metrics == GEOMETRY or found.has_spectra
        if found.has_spectra:
            assert_same(found, mergekern.compute_all(models, BASE, per_layer=True))
        alone = mergekern.measure(models, BASE, options=mergekern.MeasureOptions(metrics))
        for one, other in zip(found.layers, alone.layers, strict=True):
            np.testing.assert_array_equal(one.inner, other.inner)
            np.testing.assert_array_equal(one.squared_distance, other.squared_distance)
        assert not mergekern.verify(folder)
        names = list(models)[::-1][:2]
        np.testing.assert_array_equal(ZooStatistics.load(folder, names).inner, alone.select(names).inner)


def test_models_added_for_some_metrics_have_no_spectra_of_others(tmp_path):
    """Overlaps are missing while one model is not factorised. A run that needs them computes them."""
    models = {f"m{seed}": model(seed) for seed in range(3)}
    two = {name: models[name] for name in ("m0", "m1")}
    mergekern.measure(two, BASE, statistics=tmp_path / "s")
    found = mergekern.measure(models, BASE, statistics=tmp_path / "s", options=mergekern.MeasureOptions(GEOMETRY))
    assert not found.has_spectra
    with pytest.raises(mergekern.MergekernError):
        mergekern.MetricTable.from_statistics(found, ["subspace_overlap"])
    found = mergekern.measure(models, BASE, statistics=tmp_path / "s")
    assert_same(found, mergekern.compute_all(models, BASE, per_layer=True))


def test_blocks_that_no_model_needs_are_removed(tmp_path):
    """A block is removed when the last model on one of its sides is."""
    models = {f"m{seed}": {"b": np.full(3, seed + 1.0)} for seed in range(4)}
    base = {"b": np.zeros(3)}
    mergekern.measure({name: models[name] for name in ("m0", "m1")}, base, statistics=tmp_path / "s")
    mergekern.measure(models, base, statistics=tmp_path / "s")
    assert len(list((tmp_path / "s" / "blocks").iterdir())) == 3
    mergekern.remove_models(["m0"], tmp_path / "s")
    assert len(list((tmp_path / "s" / "blocks").iterdir())) == 3
    mergekern.remove_models(["m1"], tmp_path / "s")
    assert len(list((tmp_path / "s" / "blocks").iterdir())) == 1
    assert ZooStatistics.load(tmp_path / "s").inner.tolist() == [[27.0, 36.0], [36.0, 48.0]]


def test_only_blocks_of_the_models_are_read(tmp_path):
    """Damaged values of other models' pairs are not read, so they do no harm."""
    models = {f"m{seed}": {"b": np.full(3, seed + 1.0)} for seed in range(4)}
    base = {"b": np.zeros(3)}
    mergekern.measure({name: models[name] for name in ("m0", "m1")}, base, statistics=tmp_path / "s")
    (others,) = (tmp_path / "s" / "blocks").iterdir()
    mergekern.measure(models, base, statistics=tmp_path / "s")
    content = others.read_bytes()
    others.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert ZooStatistics.load(tmp_path / "s", ["m3", "m2"]).inner.tolist() == [[48.0, 36.0], [36.0, 27.0]]
    for names in (None, ["m0", "m2"]):
        with pytest.raises(mergekern.StatisticsError, match="checksum"):
            ZooStatistics.load(tmp_path / "s", names)


@pytest.mark.parametrize("names", ["ab", "gca", "fedcba"])
def test_any_subset_in_any_order(zoo, tmp_path, names):
    folder = tmp_path / "s"
    whole = mergekern.measure(zoo, statistics=folder)
    alone = mergekern.compute_all(paths(zoo, names), zoo / "base.safetensors", per_layer=True)
    assert_same(ZooStatistics.load(folder, list(names)), alone)
    assert_same(whole.select(list(names)), alone)
