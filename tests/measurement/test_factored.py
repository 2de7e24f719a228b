"""Tables of LoRA adapters, and of adapters beside full checkpoints, against those of the models they stand for."""

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoints import open_zoo
from mergekern.checkpoints.adapter import Adapter
from mergekern.cli import main
from mergekern.errors import OptionError
from mergekern.kernels import dispatch
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.metrics import CATALOGUE
from tests.support.adapters import Convolutions, adapt, configure, llama, seeded, state
from tests.support.device import TRITON, backend
from tests.support.names import OF_WEIGHTS
from tests.support.tolerances import GEOMETRY, SUBSPACE

BOTTOM = ["right_subspace_overlap_bottom_k", "interaction_matrix_overlap_bottom_k"]
PLAIN = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 12, "lora_alpha": 5}
ZOOS = {
    "one rank": [PLAIN] * 3,
    "several": [
        {"target_modules": ["q_proj", "down_proj", "embed_tokens"], "r": 12},
        {"target_modules": "all-linear", "r": 3, "rank_pattern": {"q_proj": 11, "down_proj": 13}, "use_rslora": True},
        {"target_modules": ["q_proj", "up_proj"], "r": 30, "modules_to_save": ["norm", "lm_head"], "bias": "all"},
        {"target_modules": ["q_proj", "k_proj"], "r": 12, "lora_bias": True},
    ],
    # Full rank, so that the bottom-k metrics are defined.
    "ranks above the sizes": [{"target_modules": ["q_proj", "down_proj"], "r": rank} for rank in (24, 26, 64)],
}


class Zoo:
    def __init__(self, build, options, folder):
        model = seeded(build)
        self.base, self.adapters, self.merged = state(model), {}, {}
        for index, each in enumerate(options):
            name = f"m{index}"
            self.adapters[name] = folder / name
            self.merged[name] = adapt(model, folder / name, seed=index, **each)


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Zoo(lambda: llama(attention_bias=True), ZOOS[name], tmp_path_factory.mktemp("zoo"))
        return made[name]

    return get


def assert_same(found, expected, notes=True):
    assert found.metrics == expected.metrics == tuple(OF_WEIGHTS)
    found_frame, expected_frame = found.to_pandas(), expected.to_pandas()
    for name in OF_WEIGHTS:
        near = {"abs": SUBSPACE, "rel": 0} if CATALOGUE[name].needs == "spectra" else {"rel": GEOMETRY, "abs": 1e-12}
        assert found_frame[name].tolist() == pytest.approx(expected_frame[name].tolist(), nan_ok=True, **near), name
    if notes:
        assert found.notes == expected.notes


@pytest.mark.parametrize("frozen", ["exclude", "include"])
@pytest.mark.parametrize("name", ZOOS)
def test_adapters_give_the_table_of_the_merged_models(name, frozen, zoos):
    zoo = zoos(name)
    found = mergekern.compute_all(zoo.adapters, zoo.base, frozen=frozen, per_layer=True)
    expected = mergekern.compute_all(zoo.merged, zoo.base, frozen=frozen, per_layer=True)
    assert_same(found, expected)
    for metric in OF_WEIGHTS:
        pd.testing.assert_frame_equal(found.per_layer(metric), expected.per_layer(metric), atol=SUBSPACE, rtol=GEOMETRY)
    assert found.to_pandas()[BOTTOM].notna().all(axis=None) == (name == "ranks above the sizes" or frozen == "include")


@pytest.mark.parametrize("full", [["m0"], ["m1"], ["m0", "m2"]], ids="+".join)
@pytest.mark.parametrize("name", ZOOS)
def test_adapters_beside_full_checkpoints(name, full, zoos):
    zoo = zoos(name)
    mixed = {**zoo.adapters, **{model: zoo.merged[model] for model in full}}
    for frozen in ("exclude", "include"):
        expected = mergekern.compute_all(zoo.merged, zoo.base, frozen=frozen)
        assert_same(mergekern.compute_all(mixed, zoo.base, frozen=frozen), expected)
    split = mergekern.compute_all(mixed, zoo.base, max_memory=20_000)
    assert_same(split, mergekern.compute_all(zoo.merged, zoo.base))


def test_adapters_of_convolutions(tmp_path):
    options = [{"target_modules": ["wide", "point", "along"], "r": rank} for rank in (2, 5, 9)]
    zoo = Zoo(Convolutions, options, tmp_path)
    expected = mergekern.compute_all(zoo.merged, zoo.base)
    assert_same(mergekern.compute_all(zoo.adapters, zoo.base), expected)
    assert_same(mergekern.compute_all({**zoo.adapters, "m1": zoo.merged["m1"]}, zoo.base), expected)


def test_adapters_need_no_base(zoos):
    zoo = zoos("one rank")
    without, with_base = mergekern.compute_all(zoo.adapters), mergekern.compute_all(zoo.adapters, zoo.base)
    # Layers, and so the sums over them, come in another order.
    pd.testing.assert_frame_equal(without.to_pandas(), with_base.to_pandas(), rtol=1e-13)
    assert without.provenance["dtypes"] == {"base": [], "m0": ["float64"], "m1": ["float64"], "m2": ["float64"]}


def test_nothing_is_materialised(zoos, monkeypatch):
    zoo = zoos("one rank")
    read = []
    monkeypatch.setattr(Adapter, "_read_range", lambda self, tensor, *_: read.append(tensor.name))
    base = {name: torch.full_like(values, float("nan")) for name, values in zoo.base.items()}
    assert mergekern.compute_all(zoo.adapters, base).to_pandas().notna().any(axis=None)
    assert not read


def test_tiles_of_few_models_give_the_same(zoos):
    zoo = zoos("several")
    whole = mergekern.compute_all(zoo.adapters, zoo.base).to_pandas()
    tiles = mergekern.compute_all(zoo.adapters, zoo.base, max_memory=30_000).to_pandas()
    pd.testing.assert_frame_equal(tiles, whole, rtol=1e-10, atol=1e-10)


def test_the_native_kernels_are_not_needed(zoos, monkeypatch):
    zoo = zoos("several")
    expected = mergekern.compute_all(zoo.merged, zoo.base)
    monkeypatch.setattr(dispatch, "backends", lambda: [dispatch.NUMPY])
    found = mergekern.compute_all({**zoo.adapters, "m0": zoo.merged["m0"]}, zoo.base)
    assert found.provenance["backend"] == "numpy"
    assert_same(found, expected)


# --- distances


def test_distances_of_nearly_equal_adapters(zoos, tmp_path):
    """Two adapters after a few steps of training: ‖τ_i‖² + ‖τ_j‖² − 2<τ_i, τ_j> would keep no correct digit."""
    zoo = zoos("one rank")
    paths = {name: tmp_path / name for name in ("a", "same", "near")}
    for path in paths.values():
        path.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (path / file).write_bytes((zoo.adapters["m0"] / file).read_bytes())
    near = paths["near"] / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(near)
    for values in tensors.values():
        values *= 1 + 1e-9 * torch.randn(values.shape, generator=generator, dtype=values.dtype)
    save_file(tensors, near)
    distance = mergekern.measure(paths).squared_distance
    opened = open_zoo(paths, needs_base=False)
    expected = 0.0
    for tensor in opened.tensors:
        (a, b, s), (c, d, _) = (opened.models[i].factors(tensor.name) for i in (0, 2))
        difference = a @ (b - d) + (a - c) @ d  # exact, unlike the difference of inner products
        expected += (s * difference).square().sum().item()
    assert distance[0, 1] == 0.0
    assert distance[0, 2] == pytest.approx(expected, rel=1e-7, abs=0)


def test_distance_of_an_adapter_to_its_merged_model(zoos, tmp_path):
    zoo = zoos("one rank")
    base = {name: values.float() for name, values in zoo.base.items()}
    merged = {name: values.float() for name, values in zoo.merged["m0"].items()}
    found = mergekern.measure({"a": zoo.adapters["m0"], "merged": merged}, base)
    adapter = open_zoo({"a": zoo.adapters["m0"], "merged": merged}, base).models[0]
    expected = sum((merged[name].double() - adapter.read(name)).square().sum().item() for name in merged)
    assert 0 < expected < 1e-8 * found.inner[0, 0]
    assert found.squared_distance[0, 1] == pytest.approx(expected, rel=1e-5, abs=0)


# --- ranks


def test_a_low_rank_change_has_no_bottom_and_no_top_beyond_its_rank(tmp_path):
    """A rank-4 change has no bottom 10 vectors. Code that compares ten anyway finds an overlap of 0.48."""
    model = seeded(llama)
    for name in "ab":
        adapt(model, tmp_path / name, target_modules=["q_proj", "down_proj"], r=4)
    row = mergekern.compute_all([tmp_path / "a", tmp_path / "b"]).to_pandas().iloc[0]
    assert row.index[row.isna()].tolist() == [
        name for name in OF_WEIGHTS if "subspace" in name or "interaction" in name
    ]
    assert row["singular_value_overlap"] == pytest.approx(1)
    assert row["task_vector_l2_distance"] == 0.0
    row = mergekern.compute_all([tmp_path / "a", tmp_path / "b"], top_k=4).to_pandas().iloc[0]
    assert row.index[row.isna()].tolist() == BOTTOM
    assert row["right_subspace_overlap_top_k"] == pytest.approx(1)
    assert row["subspace_overlap"] == pytest.approx(0.5)


def test_an_untrained_adapter_is_frozen(tmp_path):
    """The factor B of an adapter starts as zeros."""
    model = seeded(llama)
    for seed, name in enumerate("abc"):
        adapt(model, tmp_path / name, seed=seed, target_modules=["q_proj", "down_proj"], r=12)
    path = tmp_path / "c" / "adapter_model.safetensors"
    save_file({n: v * ("lora_A" in n or "down" in n) for n, v in load_file(path).items()}, path)
    statistics = mergekern.measure([tmp_path / name for name in "abc"])
    for layer in statistics.layers:
        assert layer.unchanged.tolist() == [False, False, "q_proj" in layer.name]
        assert layer.spectrum.rank.tolist() == [12, 12, 0 if "q_proj" in layer.name else 12]


# --- statistics


def test_statistics_are_kept_and_known_again(zoos, tmp_path, monkeypatch):
    zoo = zoos("several")
    mixed = {**zoo.adapters, "m1": zoo.merged["m1"]}
    first = mergekern.compute_all(mixed, zoo.base, statistics=tmp_path / "s").to_pandas()
    measured = []
    original = CpuMeasurement.begin
    monkeypatch.setattr(
        CpuMeasurement,
        "begin",
        lambda self, layer, *rest: measured.append(layer.tensor.name) or original(self, layer, *rest),
    )
    again = mergekern.compute_all(mixed, zoo.base, statistics=tmp_path / "s").to_pandas()
    assert not measured
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    loaded = mergekern.ZooStatistics.load(tmp_path / "s")
    kept = mergekern.MetricTable.from_statistics(loaded).to_pandas()
    pd.testing.assert_frame_equal(kept, first, check_exact=True)
    fresh = mergekern.compute_all(mixed, zoo.base).to_pandas()
    pd.testing.assert_frame_equal(fresh, first, check_exact=True)


def test_another_alpha_is_another_input(tmp_path):
    model = seeded(llama)
    for seed, name in enumerate("ab"):
        adapt(model, tmp_path / name, seed=seed, target_modules=["q_proj"], r=12, lora_alpha=12)
    paths = [tmp_path / "a", tmp_path / "b"]
    before = mergekern.measure(paths, statistics=tmp_path / "s").inner
    configure(paths[1], lora_alpha=24)
    np.testing.assert_allclose(mergekern.measure(paths, statistics=tmp_path / "s").inner[0, 1], 2 * before[0, 1])


def test_kept_vectors_are_those_of_the_merged_models(zoos, tmp_path):
    """Blocks keep the singular vectors, so that models added later can be compared."""
    zoo = zoos("one rank")
    for name, models in (("adapters", zoo.adapters), ("merged", zoo.merged)):
        mergekern.measure(models, zoo.base, statistics=tmp_path / name)
    layers = {}
    for name in ("adapters", "merged"):
        for path in sorted((tmp_path / name / "blocks").iterdir()):
            arrays, bases = load_file(path), tmp_path / name / "bases" / path.name
            if bases.exists():
                found = arrays | load_file(bases)
                layers.setdefault(tuple(arrays["inner"].diagonal().numpy().round(6)), []).append(found)
    pairs = [pair for pair in layers.values() if len(pair) == 2 and pair[0]["rank"].all()]
    assert pairs
    for factored, merged in pairs:
        for side in ("left_top", "right_top"):
            overlap = (factored[side].double().mT @ merged[side].double()).square().sum((1, 2))
            np.testing.assert_allclose(overlap, 10, atol=SUBSPACE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value, tmp_path):
    model = seeded(llama)
    for seed, name in enumerate("ab"):
        adapt(model, tmp_path / name, seed=seed, target_modules=["q_proj"], r=4)
    path = tmp_path / "b" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"][2:4, 1] = value
    save_file(tensors, path)
    with pytest.raises(
        mergekern.NonFiniteError, match=r"layers\.1\.self_attn\.q_proj\.weight' of 'b': 2 values of its LoRA factors"
    ):
        mergekern.measure([tmp_path / "a", tmp_path / "b"], statistics=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_plan_counts_factors(zoos):
    zoo = zoos("one rank")
    plan = mergekern.estimate_cost(open_zoo(zoo.adapters, zoo.base))
    held = [load_file(path / "adapter_model.safetensors").values() for path in zoo.adapters.values()]
    assert plan.bytes_read == sum(values.nbytes for tensors in held for values in tensors)
    assert mergekern.estimate_cost(open_zoo(zoo.adapters, needs_base=False)).bytes_read == plan.bytes_read


def test_on_the_command_line(zoos, tmp_path):
    zoo = zoos("one rank")
    folder = str(zoo.adapters["m0"].parent)
    shown = CliRunner().invoke(main, ["info", folder])
    assert shown.exit_code == 0, shown.output
    assert "3 models, 3 pairs; 6 shared tensors, 6 matrices" in shown.output
    assert shown.output.count("float64") == 3
    table = tmp_path / "table.parquet"
    done = CliRunner().invoke(main, ["metrics", folder, "--out", str(table), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    expected = mergekern.compute_all(zoo.adapters).to_pandas()
    pd.testing.assert_frame_equal(mergekern.MetricTable.load(table).to_pandas(), expected, check_exact=True)


@pytest.mark.gpu
@TRITON[1]
def test_on_a_device(zoos, monkeypatch):
    zoo = zoos("one rank")
    mixed = {**zoo.adapters, "m1": zoo.merged["m1"]}
    options = {"metrics": "task-vector geometry"}
    expected = mergekern.compute_all(mixed, zoo.base, **options)
    kernels = backend()
    monkeypatch.setattr(dispatch, "choose", lambda device: kernels)
    found = mergekern.compute_all(mixed, zoo.base, **options)
    assert found.provenance["backend"] == "emulated"
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), rtol=1e-9)


def test_models_with_adapters_are_run_as_the_merged_ones(tmp_path):
    build = lambda: torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh(), torch.nn.Linear(20, 8))  # noqa: E731
    zoo = Zoo(
        build, [{"target_modules": ["0", "2"], "r": 3}, {"target_modules": ["0"], "r": 5, "bias": "all"}], tmp_path
    )
    generator = torch.Generator().manual_seed(0)

    def task():
        inputs = torch.randn(7, 12, generator=generator, dtype=torch.float64)
        head = torch.randn(4, 8, generator=generator, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        return inputs, torch.randint(4, (7,), generator=generator), head

    tasks = {name: task() for name in zoo.adapters}
    calibration = mergekern.Calibration(build().double(), tasks, "1", dtype=torch.float64)
    options = {"calibration": calibration, "metrics": [name for name, m in CATALOGUE.items() if m.runs_models]}
    found, expected = (mergekern.compute_all(models, zoo.base, **options) for models in (zoo.adapters, zoo.merged))
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), rtol=1e-10)
    with pytest.raises(OptionError, match="no base checkpoint"):
        mergekern.compute_all(zoo.adapters, **options)
