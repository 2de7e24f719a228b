"""The metrics beyond the study's: closed forms, plain formulas, undefined pairs, and every way to the same values."""

import itertools

import numpy as np
import pytest
import torch

import mergekern
from mergekern import MeasureOptions, MetricTable, ZooStatistics
from mergekern.errors import OptionError
from mergekern.kernels import dispatch
from mergekern.kernels.trim import reference as trim
from mergekern.merging.registry import METHODS
from mergekern.metrics import ADDITIONAL, CATALOGUE, select
from mergekern.statistics.coordinates import DENSITY
from tests.support.adapters import adapt, llama, seeded, state
from tests.support.device import TRITON, backend
from tests.support.zoos import NAMES, assert_same, paths, write_zoo

OF_WEIGHTS = [name for name, metric in ADDITIONAL.items() if not metric.runs_models]
SIGN, WEIGHTED, TIES, PEARSON, SINGULAR = OF_WEIGHTS
EVERY = ["all", *OF_WEIGHTS]


def table(a, b, metrics="interference", **options):
    base = {name: np.zeros_like(array) for name, array in a.items()}
    return mergekern.compute_all({"a": a, "b": b}, base, metrics=metrics, **options)


def value(metric, a, b, **options):
    return table(a, b, **options).matrix(metric)[0, 1]


# Both change four coordinates, two of them in opposite directions.
PAIR = {"w": np.array([3.0, -1, 2, 0, 1, 2])}, {"w": np.array([-1.0, 2, 2, 5, 0, 1])}


def test_closed_forms_of_coordinates():
    assert value(SIGN, *PAIR) == 2 / 4
    assert value(WEIGHTED, *PAIR) == pytest.approx((3 + 2) / (3 + 2 + 4 + 2), rel=1e-15)
    a, b = (model["w"] for model in PAIR)
    assert value(PEARSON, *PAIR) == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-14)


def test_ties_interference_counts_what_both_keep():
    """Of ten coordinates trimming keeps two, and what equals the second."""
    a = {"w": np.array([9.0, -8, 1, 1, 1, 1, 1, 1, 1, 1])}
    b = {"w": np.array([9.0, 8, 8, -1, -1, 1, 1, 1, 1, 1])}
    assert value(TIES, a, b) == 1 / 3
    assert value(TIES, a, {"w": -a["w"]}) == 1.0
    assert value(TIES, a, {"w": a["w"][::-1].copy()}) == 0.0


def test_density_is_that_of_ties():
    assert METHODS["ties"].defaults["density"] == DENSITY


def test_every_coordinate_has_one_weight_whatever_its_tensor():
    small, large = ({"v": np.array([1.0]), "w": model["w"]} for model in PAIR)
    large["v"] = np.array([-1.0])
    assert value(SIGN, small, large) == 3 / 5
    found = table(small, large, per_layer=True)
    assert found.per_layer(SIGN).iloc[0].to_dict() == {"v": 1.0, "w": 0.5}
    assert np.isnan(found.per_layer(PEARSON).iloc[0]["v"])
    assert list(found.per_layer(SINGULAR)) == []


@pytest.mark.parametrize("shape", [(2, 2), (5, 2), (2, 7)], ids=str)
def test_singular_task_interference_of_turned_directions(shape):
    """Rank 1: U and V of b are turned by the angles t and s, so that L = cos t and R = cos s."""
    t, s = 0.3, 1.1
    a, b = np.zeros(shape), np.zeros(shape)
    a[0, 0] = 5.0
    b[:2, :2] = 2.0 * np.outer([np.cos(t), np.sin(t)], [np.cos(s), np.sin(s)])
    expected = (5 + 2) * np.cos(t) * np.cos(s)
    assert value(SINGULAR, {"w": a}, {"w": b}, top_k=1) == pytest.approx(expected, rel=1e-6)


def plain(base, first, second, k):
    """Return the metrics of one pair by NumPy, from whole task vectors and full SVDs."""
    flats, kept, singular = ([], []), ([], []), []
    for name in base:
        pair = [(model[name].double() - base[name].double()).numpy() for model in (first, second)]
        for delta, flat, keep in zip(pair, flats, kept, strict=True):
            flat.append(delta.ravel())
            least = trim.kth_largest(None, torch.from_numpy(delta), max(1, int(DENSITY * delta.size)))
            keep.append((np.abs(flat[-1]) >= least) & (flat[-1] != 0))
        if pair[0].ndim == 2:
            u, s, v = zip(*(np.linalg.svd(delta, full_matrices=False) for delta in pair), strict=True)
            side = np.concatenate([each[:, :k] for each in u], axis=1), np.concatenate([each[:k] for each in v])
            sides = side[0].T @ side[0], side[1] @ side[1].T
            values = np.diag(np.concatenate([each[:k] for each in s]))
            left, right = (product - np.eye(len(values)) for product in sides)
            singular.append(np.abs(left @ values @ right).sum())
    (a, b), (of_a, of_b) = map(np.concatenate, flats), map(np.concatenate, kept)
    return {
        SIGN: (a * b < 0).sum() / (a * b != 0).sum(),
        WEIGHTED: np.abs(a * b)[a * b < 0].sum() / np.abs(a * b).sum(),
        TIES: (of_a & of_b & (a * b < 0)).sum() / (of_a | of_b).sum(),
        PEARSON: np.corrcoef(a, b)[0, 1],
        SINGULAR: np.mean(singular),
    }


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("zoo"), blocks=1)


@pytest.fixture(scope="module")
def expected(zoo):
    return mergekern.compute_all(zoo, metrics=EVERY, per_layer=True)


@pytest.mark.parametrize("backend", dispatch.backends(), ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_agrees_with_plain_formulas(monkeypatch, backend, dtype):
    monkeypatch.setattr(dispatch, "backends", lambda: [backend])
    draw = torch.Generator().manual_seed(0)
    shapes = {"w": (20, 14), "wide": (9, 40), "v": (33,)}
    base = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    models = {
        name: {key: (t.double() + 0.3 * torch.randn(t.shape, generator=draw)).to(dtype) for key, t in base.items()}
        for name in "abc"
    }
    found = mergekern.compute_all(models, base, metrics="interference", top_k=3).to_pandas()
    for a, b in itertools.combinations(models, 2):
        for name, right in plain(base, models[a], models[b], 3).items():
            assert found.loc[(a, b), name] == pytest.approx(right, rel=1e-6), name


def test_all_stands_for_the_study_alone(expected, zoo):
    assert len(CATALOGUE) == 28
    assert not CATALOGUE.keys() & ADDITIONAL.keys()
    assert not {metric.name for metric in select("all")} & ADDITIONAL.keys()
    assert [metric.name for metric in select("interference")] == OF_WEIGHTS
    plainly = mergekern.compute_all(zoo, per_layer=True)
    assert "extras" not in plainly.provenance
    for name in plainly.metrics:
        np.testing.assert_array_equal(plainly.matrix(name), expected.matrix(name))
    with pytest.raises(OptionError, match="measured without coordinates"):
        MetricTable.from_statistics(mergekern.measure(zoo), SIGN)


def test_diagonals_compare_a_model_with_itself(expected):
    own = {name: np.diagonal(expected.matrix(name)) for name in OF_WEIGHTS}
    assert not any(own[name].any() for name in (SIGN, WEIGHTED, TIES))
    np.testing.assert_array_equal(own[PEARSON], 1.0)


def test_undefined_where_a_task_vector_is_zero_or_constant():
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal((6, 6))}
    models = {"same": base, "a": {"w": base["w"] + rng.standard_normal((6, 6))}, "b": {"w": base["w"] + 1.0}}
    found = mergekern.compute_all(models, base, metrics="interference", top_k=1)
    frame = found.to_pandas()
    assert frame.loc[("same", "a")].isna().all()
    assert frame.loc[("a", "b")].isna().to_dict() == {name: name == PEARSON for name in OF_WEIGHTS}
    assert any("same: 1 matrices equal to the base, left out" in note for note in found.notes)
    assert any(f"{PEARSON}: no value for 3 pairs" in note for note in found.notes)


def test_infinities_of_the_base_are_no_change():
    mask = {"mask": np.triu(np.full((4, 4), -np.inf), 1), **PAIR[0]}
    models = [{**mask, "w": model["w"]} for model in PAIR]
    found = mergekern.compute_all(models, {**mask, "w": np.zeros(6)}, metrics="interference")
    assert found.matrix(SIGN)[0, 1] == 0.5
    assert found.matrix(WEIGHTED)[0, 1] == pytest.approx(5 / 11)


@pytest.mark.parametrize("max_memory", [150, 5000])
def test_tensors_in_blocks(zoo, expected, max_memory):
    found = mergekern.compute_all(zoo, metrics="interference", max_memory=max_memory).to_pandas()
    np.testing.assert_allclose(found, expected.to_pandas()[OF_WEIGHTS], rtol=1e-9)


def test_folders_of_statistics_shards_and_models_that_come_later(zoo, expected, tmp_path):
    def assert_found(statistics):
        assert_same(MetricTable.from_statistics(statistics, EVERY, per_layer=True), expected)

    options = MeasureOptions(metrics=EVERY)
    mergekern.measure(zoo, statistics=tmp_path / "one")
    blocks = sorted(path.name for path in (tmp_path / "one").rglob("*.safetensors"))
    assert_found(mergekern.measure(zoo, options=options, statistics=tmp_path / "one"))
    assert blocks == sorted(path.name for path in (tmp_path / "one").rglob("*.safetensors"))  # what was there is kept
    for shard in (1, 2):
        mergekern.measure_shard(zoo, shard=(shard, 2), statistics=tmp_path / "two", options=options, block_size=3)
    assert_found(ZooStatistics.load(mergekern.combine(tmp_path / "two")))
    every = paths(zoo)
    first, rest = ({name: every[name] for name in names} for names in (NAMES[:4], NAMES[4:]))
    mergekern.measure(first, zoo / "base.safetensors", options, statistics=tmp_path / "three")
    assert_found(mergekern.add_models(rest, tmp_path / "three"))
    mergekern.remove_models(NAMES[:5], tmp_path / "three")
    left = MetricTable.from_statistics(ZooStatistics.load(tmp_path / "three"), "interference")
    np.testing.assert_array_equal(left.matrix(SINGULAR), expected.matrix(SINGULAR)[5:, 5:])


def test_files_keep_them(expected, tmp_path):
    for suffix in (".parquet", ".csv", ".json"):
        expected.save(tmp_path / f"table{suffix}")
        found = MetricTable.load(tmp_path / f"table{suffix}")
        assert found.metrics == expected.metrics
        np.testing.assert_allclose(found.to_pandas(), expected.to_pandas(), rtol=1e-15)
    assert expected.ranked(TIES)[TIES].is_monotonic_increasing


def test_adapters_are_multiplied(tmp_path):
    model = seeded(llama)
    adapters, merged = {}, {}
    for index, name in enumerate("ab"):
        options = {"target_modules": ["q_proj", "down_proj"], "r": 12}
        adapters[name], merged[name] = tmp_path / name, adapt(model, tmp_path / name, seed=index, **options)
    mixed = mergekern.compute_all({**adapters, "c": merged["b"]}, state(model), metrics="interference")
    whole = mergekern.compute_all({**merged, "c": merged["b"]}, state(model), metrics="interference")
    left, right = mixed.to_pandas(), whole.to_pandas()
    np.testing.assert_allclose(left[[WEIGHTED, PEARSON]], right[[WEIGHTED, PEARSON]], rtol=1e-3, atol=1e-3)
    # Rounding of the merged weights turns the sign of a few tiny changes, and moves a few across the threshold.
    np.testing.assert_allclose(left[[SIGN, TIES]], right[[SIGN, TIES]], atol=2e-2)
    assert mixed.matrix(SIGN)[0, 1] > 0.3


def test_randomised_factorisations_leave_single_vectors_out(zoo):
    found = mergekern.compute_all(zoo, metrics="interference", svd="randomized")
    assert found.metrics == tuple(OF_WEIGHTS[:-1])
    assert any(f"{SINGULAR} is left out" in note for note in found.notes)
    with pytest.raises(OptionError, match=r"single singular vectors.*use svd='exact'"):
        mergekern.compute_all(zoo, metrics=SINGULAR, svd="randomized")


@TRITON[0]
@TRITON[1]
def test_on_a_device(monkeypatch, zoo):
    few = {name: path for name, path in paths(zoo).items() if name in "abd"}
    cpu = mergekern.compute_all(few, zoo / "base.safetensors", metrics="interference")
    kernels = backend()
    monkeypatch.setattr(dispatch, "choose", lambda device: kernels)
    found = mergekern.compute_all(few, zoo / "base.safetensors", metrics="interference")
    np.testing.assert_allclose(found.to_pandas(), cpu.to_pandas(), rtol=1e-4)
