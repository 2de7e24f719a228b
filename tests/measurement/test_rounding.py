"""Models that are stored in a narrower dtype than the base: rounding is not training.

kohya-ss/sd-scripts#960 and hiyouga/LlamaFactory#2847 have models that were saved so.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mergekern
from mergekern.distributed.shards import combine, measure_shard
from mergekern.measurement.options import MeasureOptions

NARROW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"w{i}": torch.randn(40, 24, generator=generator) for i in range(3)}


def tuned(seed, dtype):
    """Return a model that changes w0 alone, in a dtype."""
    state = drawn()
    state["w0"] = state["w0"] + 0.05 * drawn(seed)["w0"]
    return {name: values.to(dtype) for name, values in state.items()}


@pytest.fixture
def zoo():
    return {f"m{i}": tuned(i + 1, dtype) for i, dtype in enumerate(NARROW)}


@pytest.mark.parametrize("max_memory", [None, 3000], ids=["whole", "split"])
def test_what_equals_the_rounded_base_is_unchanged(zoo, max_memory):
    statistics = mergekern.measure(zoo, drawn(), MeasureOptions(max_memory=max_memory))
    changed, *frozen = statistics.layers
    assert not changed.unchanged.any()
    for layer in frozen:
        assert not layer.inner.any()
        assert not layer.spectrum.rank.any()
    delta = (zoo["m0"]["w0"].double() - drawn()["w0"].double()).flatten()
    assert statistics.inner[0, 0] == pytest.approx(float(delta @ delta), rel=1e-12)


def test_one_value_that_is_not_the_rounded_one_is_a_change(zoo):
    zoo["m0"]["w2"][39, 23] += 0.5
    assert mergekern.measure(zoo, drawn()).layers[2].unchanged.tolist() == [False, True, True]


def test_an_overflow_is_no_rounding():
    base = {"w": torch.tensor([1.0, 1e6])}
    models = {name: {"w": base["w"].half()} for name in "ab"}
    with pytest.raises(mergekern.errors.NonFiniteError, match="NaN or infinite"):
        mergekern.measure(models, base)


def test_sketches_and_merges(zoo):
    prints = mergekern.sketch(zoo, drawn())
    np.testing.assert_allclose(prints.squares, np.diagonal(mergekern.measure(zoo, drawn()).inner), rtol=1e-12)
    for method in ("ties", "tsv"):
        merged = mergekern.merge(zoo, drawn(), method)
        assert [torch.equal(merged[name], drawn()[name]) for name in drawn()] == [False, True, True]


def test_scaled_float8():
    base, models = drawn(), {}
    for name in "ab":
        state = {}
        for key, values in tuned(ord(name), torch.float32).items():
            scale = values.abs().amax(1, keepdim=True) / 448
            state |= {key: (values / scale).to(torch.float8_e4m3fn), f"{key}_scale": scale}
        models[name] = state
    assert [layer.unchanged.all() for layer in mergekern.measure(models, base).layers] == [False, True, True]


def test_notes_say_what_rounding_can_explain(zoo):
    zoo["exact"] = tuned(9, torch.float32)
    base = drawn()
    statistics = mergekern.measure(zoo, base)
    lost = base["w0"].double() - base["w0"].bfloat16().double()
    assert statistics.layers[0].rounding[0] == pytest.approx(float(lost.square().sum()), rel=1e-12)
    assert statistics.layers[0].rounding[3] == 0
    notes = mergekern.MetricTable.from_statistics(statistics, "effective_rank").notes
    share = 100 * statistics.layers[0].rounding[0] / statistics.inner[0, 0]
    assert any(f"m0 {share:.2g} % (2 of 3 tensors are unchanged)" in note for note in notes)
    assert any("stored as bfloat16, and as float32 in the base" in note and note.endswith("(in m0)") for note in notes)
    alone = mergekern.MetricTable.from_statistics(statistics.select(["m1", "exact"]), "effective_rank").notes
    assert not any("m0" in note for note in alone)


def test_a_rounded_base():
    """The models hold what the base was before it was rounded: the numbers stay, and a note says so."""
    base = {name: values.bfloat16() for name, values in drawn().items()}
    statistics = mergekern.measure([tuned(seed, torch.float32) for seed in (1, 2)], base)
    assert statistics.layers[0].rounding is None
    assert (statistics.layers[1].rounding == np.diagonal(statistics.layers[1].inner)).all()
    assert statistics.layers[1].rounding.all()


def test_equal_dtypes_have_no_note():
    zoo = {name: tuned(ord(name), torch.bfloat16) for name in "ab"}
    base = {name: values.bfloat16() for name, values in drawn().items()}
    statistics = mergekern.measure(zoo, base)
    assert all(layer.rounding is None for layer in statistics.layers)
    assert mergekern.MetricTable.from_statistics(statistics, "task-vector geometry").notes == []


def test_kept_statistics_are_those_of_one_run(zoo, tmp_path):
    """In one run, of shards, with models added, with a model removed, and resumed."""
    for name, state in {"base": drawn(), **zoo}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    base, paths = tmp_path / "base.safetensors", {name: tmp_path / f"{name}.safetensors" for name in zoo}
    whole = mergekern.measure(zoo, drawn())
    for shard in (1, 2):
        measure_shard(paths, base, shard=(shard, 2), statistics=tmp_path / "shards", block_size=2)
    combined = mergekern.ZooStatistics.load(combine(tmp_path / "shards"))
    mergekern.measure({name: paths[name] for name in ("m0", "m1")}, base, statistics=tmp_path / "grown")
    grown = mergekern.add_models({"m2": paths["m2"]}, tmp_path / "grown")
    resumed = mergekern.measure(paths, base, statistics=tmp_path / "grown")
    for found in (combined, grown, resumed):
        for layer, expected in zip(found.layers, whole.layers, strict=True):
            assert np.array_equal(layer.inner, expected.inner)
            assert (layer.rounding is None) == (expected.rounding is None)
        assert np.array_equal(found.layers[0].rounding, whole.layers[0].rounding)
    mergekern.remove_models(["m0"], tmp_path / "grown")
    left = mergekern.ZooStatistics.load(tmp_path / "grown")
    assert np.array_equal(left.layers[0].rounding, whole.layers[0].rounding[1:])
