"""Properties of the metrics of every zoo: symmetry, order of models, scale, ranges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mergekern
from mergekern.errors import OptionError
from mergekern.metrics import CATALOGUE
from tests.support.names import OF_WEIGHTS
from tests.support.tolerances import GEOMETRY, SUBSPACE

SCALE_FREE = [name for name in OF_WEIGHTS if np.isfinite(CATALOGUE[name].range).all()]
zoos = st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 14), st.integers(1, 14))


def make(seed, models, rows, columns):
    rng = np.random.default_rng(seed)
    base = {
        "w": rng.standard_normal((rows, columns)),
        "b": rng.standard_normal(rows),
        "c": rng.standard_normal((2, 2, 2)),
    }
    zoo = {
        f"m{i}": {name: array + 0.1 * rng.standard_normal(array.shape) for name, array in base.items()}
        for i in range(models)
    }
    return base, zoo


def assert_close(metric, a, b):
    tolerance = {"abs": SUBSPACE, "rel": 0} if CATALOGUE[metric].needs == "spectra" else {"rel": GEOMETRY, "abs": 1e-9}
    np.testing.assert_allclose(a, b, rtol=tolerance["rel"], atol=tolerance["abs"], err_msg=metric)


@settings(max_examples=25, deadline=None)
@given(zoos)
def test_symmetric_and_in_range(sizes):
    base, zoo = make(*sizes)
    table = mergekern.compute_all(zoo, base)
    for name in OF_WEIGHTS:
        metric, matrix = CATALOGUE[name], table.matrix(name)
        assert np.array_equal(matrix, matrix.T, equal_nan=True) == metric.symmetric, name
        values = matrix[~np.isnan(matrix)]
        low, high = metric.range
        assert (values >= low - 1e-6).all(), name
        assert (values <= high + 1e-6).all(), name


@settings(max_examples=10, deadline=None)
@given(zoos, st.sampled_from([0.0, 1e-9]))
def test_identical_models_are_in_range(sizes, apart):
    """No rounding carries a value beyond the range that the catalogue states, on the diagonal neither."""
    base, zoo = make(*sizes)
    zoo["again"] = {name: array * (1 + apart) for name, array in zoo["m0"].items()}
    table = mergekern.compute_all(zoo, base)
    for name in OF_WEIGHTS:
        values, (low, high) = table.matrix(name), CATALOGUE[name].range
        assert (np.isnan(values) | (values >= low) & (values <= high)).all(), name


@settings(max_examples=20, deadline=None)
@given(zoos, st.randoms(use_true_random=False))
def test_order_of_models_does_not_matter(sizes, random):
    base, zoo = make(*sizes)
    names = list(zoo)
    random.shuffle(names)
    table = mergekern.compute_all(zoo, base)
    shuffled = mergekern.compute_all({name: zoo[name] for name in names}, base)
    at = [table.models.index(name) for name in names]
    for name in OF_WEIGHTS:
        assert_close(name, shuffled.matrix(name), table.matrix(name)[np.ix_(at, at)])


@settings(max_examples=20, deadline=None)
@given(zoos, st.sampled_from([2.0**-20, 0.5, 8.0, 2.0**20]))
def test_common_scale_of_all_task_vectors(sizes, scale):
    assert len(SCALE_FREE) >= 16
    _, zoo = make(*sizes)
    zero = {name: np.zeros_like(array) for name, array in zoo["m0"].items()}
    table = mergekern.compute_all(zoo, zero)
    scaled = mergekern.compute_all({m: {k: scale * v for k, v in t.items()} for m, t in zoo.items()}, zero)
    for name in SCALE_FREE:
        assert_close(name, scaled.matrix(name), table.matrix(name))
    assert_close("task_vector_l2_distance", scaled.matrix("task_vector_l2_distance"),
                 scale * table.matrix("task_vector_l2_distance"))  # fmt: skip
    assert_close("task_vector_dot_product", scaled.matrix("task_vector_dot_product") / scale**2,
                 table.matrix("task_vector_dot_product"))  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(zoos, st.floats(0.01, 100))
def test_directions_ignore_the_scale_of_one_model(sizes, scale):
    _, zoo = make(*sizes)
    zero = {name: np.zeros_like(array) for name, array in zoo["m0"].items()}
    stretched = {**zoo, "m0": {name: scale * array for name, array in zoo["m0"].items()}}
    one, other = mergekern.compute_all(zoo, zero), mergekern.compute_all(stretched, zero)
    for name in ("task_vector_cosine_similarity", "weight_space_angle", *[n for n in CATALOGUE if "overlap" in n]):
        assert_close(name, one.matrix(name), other.matrix(name))


@pytest.mark.parametrize("metric", CATALOGUE)
def test_catalogue_entries_are_complete(metric):
    entry = CATALOGUE[metric]
    assert entry.name == metric == entry.function.__name__
    assert entry.formula
    assert entry.range[0] < entry.range[1]
    assert entry.more_mergeable in ("higher", "lower")


@pytest.mark.parametrize("metric", [name for name, entry in CATALOGUE.items() if entry.runs_models])
def test_statistics_without_runs_are_refused(metric):
    """The check is not an assertion, which `python -O` would drop."""
    statistics = mergekern.measure(
        *make_zoo_of_one_matrix(), options=mergekern.MeasureOptions("task_vector_dot_product")
    )
    for compute in (CATALOGUE[metric].compute, CATALOGUE[metric].compute_layers):
        with pytest.raises(OptionError, match=f"{metric}: .* measured without"):
            compute(statistics)


def make_zoo_of_one_matrix():
    return {name: {"w": row} for name, row in zip("abc", np.eye(3), strict=True)}, {"w": np.zeros(3)}
