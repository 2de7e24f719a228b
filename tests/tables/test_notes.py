"""Notes stay short however much there is to say, and say which matrices tell no models apart."""

import numpy as np
import pytest

import mergekern
from mergekern import MetricTable, OptionError
from mergekern.metrics import CATALOGUE
from mergekern.statistics import LayerStatistics, SpectrumStatistics, ZooStatistics
from mergekern.tables.notes import notes_of, notes_of_checkpoints, notes_of_missing

LEFT, RIGHT, VALUES = "subspace_overlap", "right_subspace_overlap_top_k", "singular_value_overlap"
DRAW = np.random.default_rng(3)
SHAPES = {"square": (14, 13), "flat": (6, 15), "tall": (17, 4), "row": (1, 19)}
BASE = {name: np.zeros(shape) for name, shape in SHAPES.items()}
MODELS = {name: {key: DRAW.standard_normal(shape) for key, shape in SHAPES.items()} for name in "abc"}


def test_a_side_of_at_most_k_is_a_constant_and_can_be_left_out():
    table = mergekern.compute_all(MODELS, BASE, per_layer=True)
    for metric, tensor, constant in ((LEFT, "flat", 6**-0.5), (LEFT, "row", 1), (RIGHT, "tall", 1), (VALUES, "row", 1)):
        assert table.per_layer(metric)[tensor].to_numpy() == pytest.approx(constant)
    left_out = mergekern.compute_all(MODELS, BASE, small_tensors="exclude")
    for metric, small in {LEFT: {"flat", "row"}, RIGHT: {"tall"}, VALUES: {"row"}}.items():
        kept = [name for name in SHAPES if name not in small]
        expected = table.per_layer(metric)[kept].mean(axis=1)
        np.testing.assert_allclose(left_out.to_pandas()[metric], expected, rtol=1e-12)
    assert left_out.provenance["options"]["small_tensors"] == "exclude"
    geometry = "task_vector_cosine_similarity"
    assert (left_out.matrix(geometry) == table.matrix(geometry)).all()
    for notes, how in ((table.notes, "counted as in the published code"), (left_out.notes, "left out")):
        assert any(f"2 matrices are too small to tell models apart in {LEFT}, {how}" in note for note in notes)
        assert any(f"apart in {VALUES}, {how}" in note and note.endswith(": row") for note in notes)


def test_a_zoo_of_small_tensors_alone_has_no_value():
    table = mergekern.compute_all(
        {name: {"w": model["row"]} for name, model in MODELS.items()}, {"w": BASE["row"]}, small_tensors="exclude"
    )
    assert np.isnan(table.matrix(LEFT)).all()
    with pytest.raises(OptionError, match="small_tensors must be"):
        MetricTable.from_statistics(mergekern.measure(MODELS, BASE), small_tensors="drop")


def test_the_catalogue_says_what_values_can_be():
    assert "0.316 at k = 10" in CATALOGUE[LEFT].remark
    same = mergekern.compute_all({name: {"w": MODELS["a"]["square"]} for name in "ab"}, {"w": BASE["square"]})
    assert same.matrix(LEFT)[0, 1] == pytest.approx(10**-0.5)
    assert CATALOGUE["stable_rank"].remark == ""


def many(models, tensors):
    """Return statistics of models all of whose matrices are of rank 1, those of the first half also unchanged."""
    names = tuple(f"model-{number:04d}" for number in range(models))
    pairs = np.ones((models, models))
    rank = np.where(np.arange(models) < models // 2, 0, 1)
    spectrum = SpectrumStatistics(np.ones((models, 12)), rank, pairs, pairs, pairs, 10)
    layers = tuple(LayerStatistics(f"layers.{n}.weight", (12, 12), pairs, pairs, spectrum) for n in range(tensors))
    skipped = tuple(f"tensor.{number}: only in one" for number in range(tensors))
    return ZooStatistics(names, layers, 10, 100, skipped)


def test_notes_of_many_models_and_tensors_are_short():
    statistics = many(models=60, tensors=3000)
    missing = {LEFT: np.full((60, 60), np.nan)}
    notes = notes_of(statistics, missing, "exclude")
    assert max(map(len, notes)) < 1500
    assert len(notes) < 30
    assert "tensors left out of everything: 2,980 more" in notes
    assert any("3000 matrices equal to the base" in note and "and 2,980 more" in note for note in notes)
    assert notes_of_missing(statistics.models, missing)[0].endswith("and 1,750 more")


def test_notes_of_many_checkpoints_name_a_few():
    names = [f"m{number}" for number in range(1000)]
    every = notes_of_checkpoints({name: ["read as float32"] for name in names}, names)
    some = notes_of_checkpoints({name: ["read as float32"] for name in names[1:]}, names)
    assert every == ["read as float32 (in all 1000 models)"]
    assert some[0].endswith("and 979 more)")
