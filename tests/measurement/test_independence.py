"""The statistics of a pair do not depend on the other models or on the memory budget, to the last bit."""

import numpy as np
import pandas as pd
import pytest
import torch

import mergekern
from mergekern.checkpoints import LayerStream, open_zoo
from mergekern.checkpoints.stream import SEGMENT
from mergekern.kernels import dispatch, native
from mergekern.kernels.gram import wanted_pairs
from mergekern.kernels.lapack import single_threaded_pool
from mergekern.measurement.on_cpu import CpuMeasurement
from tests.support.adapters import adapt, llama, seeded, state
from tests.support.names import OF_WEIGHTS

pytestmark = pytest.mark.skipif(native.extension is None, reason="BLAS gives other bits to other numbers of models")

SHAPES = {"tall": (70, 33), "wide": (12, 51), "square": (40, 40), "norm": (37,), "convolution": (4, 3, 3, 3)}


def draw(seed, shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def full():
    """A base and models of several dtypes: two nearly equal, one with frozen tensors, one of low rank."""
    base, models = draw(0, SHAPES), {}
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]
    for index in range(13):
        tensors = draw(1 + index, SHAPES, dtypes[index % 5])
        models[f"m{index}"] = {name: (base[name] + 0.1 * values).to(values.dtype) for name, values in tensors.items()}
    models["m5"] = {name: values + 1e-6 * torch.sign(values) for name, values in models["m0"].items()}
    models["m6"] |= {"tall": base["tall"], "norm": base["norm"]}
    models["m1"]["square"] = base["square"] + torch.outer(*draw(99, {"a": (40,), "b": (40,)}).values())
    return base, models


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A base, adapters of several ranks, and the float64 models that some of the adapters are merged into."""
    folder, model, models = tmp_path_factory.mktemp("adapters"), seeded(llama), {}
    for index, rank in enumerate([2, 12, 5, 24, 3, 12, 30, 16]):
        targets = ["q_proj", "down_proj"] if index % 2 else ["q_proj", "up_proj"]
        merged = adapt(model, folder / f"m{index}", seed=index, target_modules=targets, r=rank)
        models[f"m{index}"] = merged if index in (2, 3, 5) else folder / f"m{index}"
    models["merged"] = adapt(model, folder / "merged", seed=6, target_modules=["q_proj", "up_proj"], r=30)
    return state(model), models


@pytest.fixture(params=["full", "mixed"])
def zoo(request):
    return request.getfixturevalue(request.param)


def assert_part(found, every):
    """Assert that the statistics of some models, in any order, are their part of those of more models."""
    at = [every.models.index(name) for name in found.models]
    pairs = np.ix_(at, at)
    others = {layer.name: layer for layer in every.layers}
    assert len(found.layers) == len(others)
    for layer in found.layers:
        other = others[layer.name]
        assert np.array_equal(layer.inner, other.inner[pairs]), layer.name
        assert np.array_equal(layer.squared_distance, other.squared_distance[pairs]), layer.name
        assert (layer.spectrum is None) == (other.spectrum is None)
        if layer.spectrum is not None:
            for name in ("values", "rank"):
                assert np.array_equal(getattr(layer.spectrum, name), getattr(other.spectrum, name)[at]), layer.name
            for name in ("left_top_overlap", "right_top_overlap", "right_bottom_overlap"):
                assert np.array_equal(getattr(layer.spectrum, name), getattr(other.spectrum, name)[pairs]), layer.name


@pytest.mark.parametrize("seed", range(6))
def test_some_models_have_their_part_of_the_statistics_and_of_the_table(zoo, seed):
    base, models = zoo
    rng = np.random.default_rng(seed)
    names = rng.permutation(list(models))[: rng.integers(2, len(models) + 1)]
    some = {name: models[name] for name in names}
    assert_part(mergekern.measure(some, base), mergekern.measure(models, base))
    for frozen in ("exclude", "include"):
        every = mergekern.compute_all(models, base, frozen=frozen)
        found = mergekern.compute_all(some, base, frozen=frozen)
        for metric in OF_WEIGHTS:
            at = [every.models.index(name) for name in names]
            part, expected = found.matrix(metric), every.matrix(metric)[np.ix_(at, at)]
            assert np.array_equal(part, expected, equal_nan=True), metric


def test_the_budget_does_not_change_a_bit():
    shapes = {"split": (300, 1500), "whole": (40, 30)}
    base = draw(0, shapes)
    models = {f"m{i}": {n: base[n] + 0.1 * v for n, v in draw(1 + i, shapes).items()} for i in range(3)}
    models["near"] = {name: values * (1 + 1e-6) for name, values in models["m0"].items()}
    segment = 5 * 4 * SEGMENT  # of the base and of all models
    every = mergekern.measure(models, base)
    for budget in (segment, int(1.9 * segment), 3 * segment):
        assert_part(mergekern.measure(models, base, options=mergekern.MeasureOptions(max_memory=budget)), every)
    table = mergekern.compute_all(models, base, max_memory=segment)
    pd.testing.assert_frame_equal(table.to_pandas(), mergekern.compute_all(models, base).to_pandas(), check_exact=True)


def test_a_budget_of_few_adapters_does_not_change_a_bit(mixed):
    base, models = mixed
    adapters = {name: model for name, model in models.items() if not isinstance(model, dict)}
    assert_part(
        mergekern.measure(adapters, base, options=mergekern.MeasureOptions(max_memory=30_000)),
        mergekern.measure(adapters, base),
    )


@pytest.mark.parametrize("split", [1, 3, 6, 9])
def test_a_split_measures_what_is_new(zoo, split):
    base, models = zoo
    opened = open_zoo(models, base)
    measurement = CpuMeasurement(True, 10, 100, 2, None, dispatch.backends()[0], False)
    with single_threaded_pool(2) as pool:
        for layer in LayerStream(opened).with_factors():
            every = measurement.begin(layer, opened, pool)()
            new = measurement.begin(layer, opened, pool, split=split)()
            wanted = wanted_pairs(len(models), split)
            assert new.spectrum is None
            assert (new.name, new.shape) == (every.name, every.shape)
            assert np.array_equal(new.inner, np.where(wanted, every.inner, 0.0))
            assert np.array_equal(new.squared_distance, np.where(wanted, every.squared_distance, 0.0))


def test_vectors_that_are_kept_give_the_overlaps_of_later_models(zoo):
    """The vectors of an added model are compared with the kept vectors of the others."""
    base, models = zoo
    opened = open_zoo(models, base)
    measurement = CpuMeasurement(True, 10, 100, 2, None, dispatch.backends()[0], True)
    with single_threaded_pool(2) as pool:
        for layer in LayerStream(opened).with_factors():
            spectrum = measurement.begin(layer, opened, pool)().spectrum
            for side, bases in spectrum.bases._asdict().items() if spectrum else ():
                found = measurement.backend.overlap(bases[-1:], bases[:-1])
                assert np.array_equal(found, getattr(spectrum, f"{side}_overlap")[-1:, :-1]), (layer.tensor.name, side)
