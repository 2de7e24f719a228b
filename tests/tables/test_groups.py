"""Metrics of groups: against whole stacks, against pairs and by hand; bad groups are refused."""

from itertools import combinations

import numpy as np
import pytest
import torch

import mergekern
from mergekern.metrics.effective_rank import pair_values, stack_values
from mergekern.metrics.geometry import Geometry
from tests.support.tolerances import GEOMETRY

NAMES = "abcdef"
STACK_METRICS = (
    "effective_rank", "effective_rank_mergeability_score", "stable_rank", "spectral_gap", "singular_value_ratio",
    "layerwise_effective_rank", "layerwise_effective_rank_mergeability_score",
)  # fmt: skip


@pytest.fixture(scope="module")
def deltas():
    """Task vectors of six models, of different lengths and with a common part."""
    rng = np.random.default_rng(0)
    common = {"w": rng.standard_normal((14, 12)), "b": rng.standard_normal(9)}
    return {
        name: {key: (1 + at) * (array + rng.standard_normal(array.shape)) for key, array in common.items()}
        for at, name in enumerate(NAMES)
    }


@pytest.fixture(scope="module")
def statistics(deltas, tmp_path_factory):
    """Statistics for all 28 metrics, read back from files."""
    encoder = torch.nn.Linear(12, 14, bias=False)
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(3, 14, generator=draw), None
    tasks = {name: (torch.randn(8, 12, generator=draw), torch.arange(8) % 3, head) for name in NAMES}
    tuned = {name: {"weight": torch.tensor(delta["w"]), "b": delta["b"]} for name, delta in deltas.items()}
    base = {"weight": np.zeros((14, 12)), "b": np.zeros(9)}
    encoder.register_buffer("b", torch.zeros(9))
    folder = tmp_path_factory.mktemp("groups") / "statistics"
    mergekern.measure(tuned, base, calibration=mergekern.Calibration(encoder, tasks, "")).save(folder)
    return mergekern.ZooStatistics.load(folder)


def flat(delta):
    return np.concatenate([array.ravel() for array in delta.values()])


def measure(deltas):
    base = {key: np.zeros_like(array) for key, array in next(iter(deltas.values())).items()}
    return mergekern.measure(deltas, base)


def rank(vectors):
    """The definition, from the singular values of the whole stack."""
    values = np.linalg.svd(np.stack(vectors), compute_uv=False)
    share = values[values > 0] / values.sum()
    return np.exp(-(share * np.log(share)).sum())


def test_a_group_of_two_is_the_pair(statistics):
    table = mergekern.MetricTable.from_statistics(statistics)
    pairs = table.to_pandas()
    assert list(pairs.columns) == list(mergekern.CATALOGUE)
    groups = mergekern.group_metrics(statistics, list(pairs.index))
    assert list(groups.index) == list(pairs.index)
    for name in pairs:
        for column in (f"mean_{name}", f"worst_{name}", *([name] if name in STACK_METRICS else [])):
            np.testing.assert_array_equal(groups[column], pairs[name], err_msg=column)
        assert (groups[f"spread_{name}"] == 0).all()
    assert len(groups.columns) == 3 * len(mergekern.CATALOGUE) + len(STACK_METRICS)


@pytest.mark.parametrize("size", [3, 4, 6])
def test_stacks_against_their_singular_values(deltas, statistics, size):
    for group in combinations(NAMES, size):
        found = mergekern.group_metrics(statistics, [group]).iloc[0]
        values = np.linalg.svd(np.stack([flat(deltas[name]) for name in group]), compute_uv=False)
        whole = rank([flat(deltas[name]) for name in group])
        layers = [([deltas[name][key].ravel() for name in group]) for key in ("w", "b")]
        weights = [sum(np.linalg.norm(vector) for vector in vectors) for vectors in layers]
        layerwise = np.average([rank(vectors) for vectors in layers], weights=weights)
        expected = {
            "effective_rank": whole,
            "effective_rank_mergeability_score": (size - whole) / (size - 1),
            "stable_rank": values.sum() ** 2 / (values**2).sum(),
            "spectral_gap": 1 - values[1] / values[0],
            "singular_value_ratio": values[-1] / values[0],
            "layerwise_effective_rank": layerwise,
            "layerwise_effective_rank_mergeability_score": (size - layerwise) / (size - 1),
        }
        assert {name: found[name] for name in STACK_METRICS} == pytest.approx(expected, rel=GEOMETRY / 1000)


def test_mean_worst_and_spread_of_the_pairs(statistics):
    pairs = mergekern.MetricTable.from_statistics(statistics).to_pandas()
    group = ("b", "c", "e", "f")
    found = mergekern.group_metrics(statistics, [group]).iloc[0]
    inside = pairs.loc[list(combinations(group, 2))]
    for name in pairs:
        worst = "min" if mergekern.CATALOGUE[name].more_mergeable == "higher" else "max"
        assert found[f"mean_{name}"] == pytest.approx(inside[name].mean(), rel=1e-12)
        assert found[f"worst_{name}"] == inside[name].agg(worst)
        assert found[f"spread_{name}"] == pytest.approx(inside[name].std(ddof=0), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_orthogonal_and_equal_task_vectors(size):
    names = NAMES[:size]
    for vectors, expected, score in ((np.eye(size), size, 0.0), (np.ones((size, size)), 1.0, 1.0)):
        statistics = measure({name: {"w": 3 * row} for name, row in zip(names, vectors, strict=True)})
        found = mergekern.group_metrics(statistics, [tuple(names)]).iloc[0]
        for kind in ("", "layerwise_"):
            assert found[f"{kind}effective_rank"] == pytest.approx(expected, rel=1e-12)
            assert found[f"{kind}effective_rank_mergeability_score"] == pytest.approx(score, abs=1e-12)
        assert found["stable_rank"] == pytest.approx(expected, rel=1e-12)


def test_lengths_3_2_1_at_right_angles():
    statistics = measure({name: {"w": row} for name, row in zip("abc", np.diag([1.0, 3.0, 2.0]), strict=True)})
    found = mergekern.group_metrics(statistics, [("a", "b", "c")], "effective rank").iloc[0]
    share = np.array([3, 2, 1]) / 6
    assert found["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-12)
    assert found["stable_rank"] == pytest.approx(36 / 14, rel=1e-12)
    assert found["spectral_gap"] == pytest.approx(1 / 3, rel=1e-12)
    assert found["singular_value_ratio"] == pytest.approx(1 / 3, rel=1e-12)


def test_nearly_equal_models_keep_their_differences():
    rng = np.random.default_rng(1)
    common = rng.standard_normal(500)
    models = {name: {"w": common + 1e-6 * rng.standard_normal(500)} for name in "abc"}
    found = mergekern.group_metrics(measure(models), [("a", "b", "c")]).iloc[0]
    values = np.linalg.svd(np.stack([flat(model) for model in models.values()]), compute_uv=False)
    assert found["singular_value_ratio"] == pytest.approx(values[-1] / values[0], rel=1e-7, abs=0)
    assert found["effective_rank"] - 1 == pytest.approx(rank([flat(model) for model in models.values()]) - 1, rel=1e-7)


def test_stacks_of_two_are_those_of_the_closed_form(statistics):
    geometry = Geometry.from_statistics(statistics)
    i, j = np.triu_indices(6, 1)
    general = stack_values(geometry, np.stack([i, j], axis=1))
    np.testing.assert_allclose(general, pair_values(geometry)[i, j], rtol=1e-12)


def test_the_order_of_names_changes_no_bit_and_sizes_may_differ(statistics):
    given = [("a", "c", "f"), ("b", "d"), NAMES, ("d", "e", "f")]
    frame = mergekern.group_metrics(statistics, map(tuple, given))
    turned = mergekern.group_metrics(statistics, [tuple(reversed(group)) for group in reversed(given)])
    assert list(turned.index) == [tuple(reversed(group)) for group in reversed(given)]
    np.testing.assert_array_equal(frame.to_numpy(), turned.to_numpy()[::-1])
    assert frame.index.name == "group"


def test_blocks_change_nothing(statistics, monkeypatch):
    groups = list(combinations(NAMES, 3))
    frame = mergekern.group_metrics(statistics, groups)
    monkeypatch.setattr("mergekern.tables.groups.BLOCK", 20)
    np.testing.assert_array_equal(mergekern.group_metrics(statistics, groups).to_numpy(), frame.to_numpy())


def test_a_frozen_model_has_no_value_and_harms_no_other_group(deltas):
    statistics = measure({**deltas, "f": {key: np.zeros_like(array) for key, array in deltas["f"].items()}})
    frame = mergekern.group_metrics(statistics, [("a", "b", "f"), ("a", "b", "c")])
    cosine = "task_vector_cosine_similarity"
    assert (
        frame.iloc[0][["effective_rank", "layerwise_effective_rank", f"mean_{cosine}", f"worst_{cosine}"]].isna().all()
    )
    assert frame.iloc[0]["mean_task_vector_l2_distance"] > 0
    assert frame.iloc[1].notna().all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("a", "x")], r"no model 'x' in these statistics"),
        ([("a",)], r"two or more different model names, not \('a',\)"),
        ([()], "two or more"),
        (["ab"], "two or more different model names, not 'ab'"),
        ([("a", "b", "a")], "different model names"),
        ([("a", "b"), ("b", "a")], "given twice"),
        ([], "no groups given"),
    ],
)
def test_what_is_no_group(statistics, groups, message):
    with pytest.raises(mergekern.OptionError, match=message):
        mergekern.group_metrics(statistics, groups)


def test_metrics_that_were_not_measured(deltas):
    base = {key: np.zeros_like(array) for key, array in deltas["a"].items()}
    statistics = mergekern.measure(deltas, base, options=mergekern.MeasureOptions("effective rank"))
    with pytest.raises(mergekern.OptionError, match="measured without spectra"):
        mergekern.group_metrics(statistics, [("a", "b", "c")], "subspace_overlap")
    assert "mean_subspace_overlap" not in mergekern.group_metrics(statistics, [("a", "b", "c")])
