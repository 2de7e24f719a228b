"""Whole tables by the kernels of a GPU, which are interpreted and emulated where there is none."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import mergekern
from mergekern import measurement
from mergekern.kernels import dispatch
from mergekern.kernels.spectrum import on_cuda
from mergekern.measurement import on_device
from mergekern.metrics import ADDITIONAL, CATALOGUE
from tests.golden.zoo import GOLDEN, SPECS, make_zoo
from tests.support.device import DEVICE, TRITON, backend, needs_gpu
from tests.support.tolerances import GEOMETRY, PUBLISHED, SUBSPACE

pytestmark = TRITON
OF_COORDINATES = [name for name, metric in ADDITIONAL.items() if metric.needs == "coordinates"]


def small_zoo(models=3, dtype=torch.float32):
    """Return a base and models with vectors, matrices of two short sides, and one wide matrix."""
    shapes = {"bias": (7,), "a": (12, 9), "b": (9, 30), "kernel": (3, 2, 2, 2), "c": (12, 9), "square": (10, 10)}
    generator = torch.Generator().manual_seed(0)

    def draw(scale):
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    base = draw(1.0)
    zoo = {}
    for index in range(models):
        change = draw(0.1)
        zoo[f"m{index}"] = {name: (base[name] + change[name]).to(dtype) for name in shapes}
    return {name: value.to(dtype) for name, value in base.items()}, zoo


@pytest.fixture
def on_the_device(monkeypatch):
    """Return compute_all by the device's kernels."""
    kernels = backend()

    def compute_all(zoo, base, **options):
        monkeypatch.setattr(dispatch, "choose", lambda device: kernels)
        try:
            return mergekern.compute_all(zoo, base, **{"top_k": 2, **options})
        finally:
            monkeypatch.undo()

    return compute_all


def assert_same(found, expected):
    found, expected = found.to_pandas(), expected.to_pandas()
    assert list(found.columns) == list(expected.columns)
    for name in found.columns:
        near = dict(abs=SUBSPACE) if CATALOGUE[name].needs == "spectra" else dict(rel=GEOMETRY, abs=0)
        assert found[name].tolist() == pytest.approx(expected[name].tolist(), nan_ok=True, **near), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gives_the_table_of_the_cpu(on_the_device, dtype):
    base, zoo = small_zoo(4, dtype)
    table = on_the_device(zoo, base, per_layer=True)
    expected = mergekern.compute_all(zoo, base, top_k=2, per_layer=True, device="cpu")
    assert_same(table, expected)
    for name in expected.to_pandas():
        pd.testing.assert_frame_equal(table.per_layer(name), expected.per_layer(name), rtol=SUBSPACE, atol=SUBSPACE)
    assert table.provenance["backend"] == backend().name
    assert table.provenance["device"] == backend().description
    assert table.provenance["redone_on_cpu"] == 0
    assert table.provenance["content_hashes"] == expected.provenance["content_hashes"]


def test_agrees_with_the_published_code(on_the_device):
    expected = json.loads((GOLDEN / "golden_mixed.json").read_text())
    base, tuned = make_zoo(SPECS["mixed"])
    table = on_the_device({str(index): model for index, model in enumerate(tuned)}, base, top_k=10)
    for pair, values in expected["pairs"].items():
        found = table.to_pandas().loc[tuple(pair.split("-"))]
        for name in values:
            assert found[name] == pytest.approx(values[name], rel=PUBLISHED, abs=PUBLISHED), (pair, name)


def test_metrics_of_inner_products_cause_no_factorisation(on_the_device, monkeypatch):
    base, zoo = small_zoo()
    expected = mergekern.compute_all(zoo, base, metrics="task-vector geometry", device="cpu")
    monkeypatch.setattr(on_cuda, "spectra", None)
    assert_same(on_the_device(zoo, base, metrics="task-vector geometry"), expected)


@pytest.mark.parametrize("max_memory", [300, 1100, 4000])
def test_a_small_budget_gives_the_same(on_the_device, max_memory):
    """A small budget: layers are read in blocks, and matrices one model at a time."""
    base, zoo = small_zoo()
    expected = mergekern.compute_all(zoo, base, top_k=2, device="cpu")
    assert_same(on_the_device(zoo, base, max_memory=max_memory), expected)


def test_a_small_workspace_splits_the_models_of_a_layer(on_the_device, monkeypatch):
    base, zoo = small_zoo()
    expected = mergekern.compute_all(zoo, base, top_k=2, device="cpu")
    sizes, spectra = [], on_cuda.spectra

    def counted(stacks, *arguments):
        sizes.append(sum(len(stack.tuned) for stack in stacks))
        return spectra(stacks, *arguments)

    monkeypatch.setattr(on_cuda, "spectra", counted)
    monkeypatch.setattr(on_cuda, "workspace", lambda shape, top_k: 1 << 62)
    table = on_the_device(zoo, base)
    assert sizes == [1] * 12
    assert_same(table, expected)


def test_matrices_of_one_short_side_are_factorised_together(on_the_device, monkeypatch):
    base, zoo = small_zoo()
    together, spectra = [], on_cuda.spectra

    def counted(stacks, *arguments):
        together.append([(tuple(stack.base.shape), len(stack.tuned)) for stack in stacks])
        return spectra(stacks, *arguments)

    monkeypatch.setattr(on_device, "MATRICES_PER_MULTIPROCESSOR", 1000)
    monkeypatch.setattr(on_cuda, "spectra", counted)
    on_the_device(zoo, base)
    assert together == [[((12, 9), 3), ((9, 30), 3), ((12, 9), 3)], [((10, 10), 3)]]


def test_what_fails_its_check_is_redone_and_counted(on_the_device, monkeypatch, caplog):
    base, zoo = small_zoo()
    expected = mergekern.compute_all(zoo, base, top_k=2, device="cpu")
    spectra = on_cuda.spectra

    def damaged(stacks, *arguments):
        results = spectra(stacks, *arguments)
        for stack, result in zip(stacks, results, strict=True):
            if stack.base.shape == (9, 30):
                result.right_top[1] = 0
                result.good[1] = False
        return results

    monkeypatch.setattr(on_cuda, "spectra", damaged)
    table = on_the_device(zoo, base)
    assert table.provenance["redone_on_cpu"] == 1
    assert_same(table, expected)
    assert [record.getMessage() for record in caplog.records] == [
        "b: 1 factorisations failed their check; redone on the CPU"
    ]


@pytest.mark.parametrize("max_memory", [None, 300])
def test_nearly_identical_models(on_the_device, max_memory):
    base, zoo = small_zoo(2, torch.float64)
    zoo["close"] = {name: value * (1 + 1e-9) for name, value in zoo["m0"].items()}
    expected = mergekern.compute_all(zoo, base, metrics="task_vector_l2_distance", device="cpu")
    table = on_the_device(zoo, base, metrics="task_vector_l2_distance", max_memory=max_memory)
    assert_same(table, expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_bad_values_are_named(on_the_device):
    base, zoo = small_zoo()
    zoo["m1"]["b"][2, 3] = np.nan
    with pytest.raises(mergekern.NonFiniteError, match=r"tensor 'b' holds NaN or infinite values: 1 in 'm1'"):
        on_the_device(zoo, base)


def test_frozen_and_empty_tensors(on_the_device):
    base, zoo = small_zoo()
    for model in (base, *zoo.values()):
        model["empty"] = torch.zeros(0)
    zoo["m1"]["a"] = base["a"].clone()
    expected = mergekern.compute_all(zoo, base, top_k=2, device="cpu")
    table = on_the_device(zoo, base)
    assert_same(table, expected)
    assert table.notes == expected.notes


def test_a_run_continues_from_its_statistics(on_the_device, tmp_path, monkeypatch):
    base, zoo = small_zoo()
    first = on_the_device(zoo, base, statistics=tmp_path / "s")
    blocks = sorted((tmp_path / "s" / "blocks").iterdir())
    blocks[0].unlink()
    again = on_the_device(zoo, base, statistics=tmp_path / "s")
    assert sorted((tmp_path / "s" / "blocks").iterdir()) == blocks
    assert_same(again, first)
    monkeypatch.setattr(on_cuda, "spectra", None)
    pd.testing.assert_frame_equal(
        on_the_device(zoo, base, statistics=tmp_path / "s").to_pandas(), again.to_pandas(), check_exact=True
    )


def test_too_little_memory_says_what_to_do(on_the_device, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")

    monkeypatch.setattr(on_cuda, "spectra", full)
    base, zoo = small_zoo()
    with pytest.raises(mergekern.OptionError, match=r"too little free memory .* 3\.00 GiB\. .* max_memory, or use"):
        on_the_device(zoo, base)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("max_memory", [None, 1000])
def test_coordinates_of_models_that_come_later(tmp_path, monkeypatch, max_memory):
    """Counts are those of the CPU exactly; with a small budget, large layers are counted there.

    Two models are measured first. A layer is then two tiles: the new model alone, and its pairs with the others.
    """
    base, zoo = small_zoo()
    for state in (base, *zoo.values()):
        for name in ("b", "c", "square"):
            del state[name]
        state["mask"] = torch.triu(torch.full((3, 3), float("-inf")), 1)
        state["empty"] = torch.zeros(0)
    options = mergekern.MeasureOptions(OF_COORDINATES, max_memory=max_memory)
    expected = mergekern.measure(zoo, base, replace(options, device="cpu"))
    kernels = backend()
    monkeypatch.setattr(dispatch, "choose", lambda device: kernels)
    if max_memory is None:
        monkeypatch.setattr(measurement, "coordinate_statistics", None)
    mergekern.measure({name: zoo[name] for name in ("m0", "m1")}, base, options, statistics=tmp_path)
    found = mergekern.measure(zoo, base, options, statistics=tmp_path)
    for layer, right in zip(found.layers, expected.layers, strict=True):
        for name in ("shared", "opposite", "kept_shared", "kept_opposite"):
            np.testing.assert_array_equal(getattr(layer.coordinates, name), getattr(right.coordinates, name))
        np.testing.assert_allclose(layer.coordinates.absolute, right.coordinates.absolute, rtol=1e-12)
        np.testing.assert_allclose(layer.coordinates.sums, right.coordinates.sums, rtol=0, atol=1e-12)


@needs_gpu
def test_weights_that_are_on_the_device_stay_there(on_the_device):
    base, zoo = small_zoo()
    expected = on_the_device(zoo, base)
    resident = {model: {name: value.to(DEVICE) for name, value in tensors.items()} for model, tensors in zoo.items()}
    found = on_the_device(resident, {name: value.to(DEVICE) for name, value in base.items()})
    assert_same(found, expected)
    assert found.provenance["content_hashes"] == expected.provenance["content_hashes"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # interpreted kernels are NumPy's arithmetic
def test_a_mask_that_is_the_same_everywhere_is_unchanged(on_the_device):
    base, zoo = small_zoo()
    masked = {name: {"mask": torch.triu(torch.full((9, 9), float("-inf")), 1), **state} for name, state in zoo.items()}
    assert_same(on_the_device(masked, {"mask": masked["m0"]["mask"], **base}), on_the_device(zoo, base))


def test_what_equals_the_rounded_base_is_unchanged(on_the_device):
    base, zoo = small_zoo()
    for state in zoo.values():
        state["square"] = base["square"]
    narrow = {name: {part: values.bfloat16() for part, values in state.items()} for name, state in zoo.items()}
    wide = {name: {part: values.float() for part, values in state.items()} for name, state in narrow.items()}
    for state in wide.values():
        state["square"] = base["square"]
    assert_same(on_the_device(narrow, base), on_the_device(wide, base))
