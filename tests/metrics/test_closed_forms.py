"""Every metric against values worked out by hand."""

import numpy as np
import pytest

import mergekern
from tests.support.names import OF_WEIGHTS
from tests.support.tolerances import GEOMETRY, SUBSPACE


def value(metric, a, b, **options):
    """Return the metric of two models whose task vectors are a and b."""
    base = {name: np.zeros_like(array) for name, array in a.items()}
    table = mergekern.compute_all({"a": a, "b": b}, base, metrics=metric, **options)
    return table.to_pandas().loc[("a", "b"), metric]


# Task vectors (3, 4) and (4, 3): lengths 5, inner product 24, cosine 0.96, stack values √49 and √1.
PAIR = {"w": np.array([3.0, 4.0])}, {"w": np.array([4.0, 3.0])}
P = np.array([7, 1]) / 8
RANK = np.exp(-(P * np.log(P)).sum())
GEOMETRIC = {
    "task_vector_cosine_similarity": 0.96,
    "task_vector_l2_distance": np.sqrt(2),
    "task_vector_dot_product": 24.0,
    "weight_space_angle": np.degrees(np.arccos(0.96)),
    "task_vector_magnitude_ratio": 1.0,
    "effective_rank": RANK,
    "effective_rank_mergeability_score": 2 - RANK,
    "stable_rank": 64 / 50,
    "spectral_gap": 6 / 7,
    "singular_value_ratio": 1 / 7,
    "layerwise_effective_rank": RANK,
    "layerwise_effective_rank_mergeability_score": 2 - RANK,
}

# τ_a = diag(4, 3, 2, 1); τ_b has the values 2, 1.5, 1, 0.5 along e₁, e₃, e₂, e₄. With k = 2 the top subspaces share one
# direction of two, and so do the bottom ones.
DIAGONAL = np.diag([4.0, 3, 2, 1]), np.diag([2.0, 1, 1.5, 0.5])
SUBSPACE_VALUES = {
    "singular_value_overlap": 1.0,
    "subspace_overlap": 1 / 2,
    "right_subspace_overlap_top_k": np.sqrt(1 / 2),
    "right_subspace_overlap_bottom_k": np.sqrt(1 / 2),
    "interaction_matrix_overlap_top_k": 1 / 2,
    "interaction_matrix_overlap_bottom_k": 1 / 2,
}


def test_every_metric_is_here():
    assert {*GEOMETRIC, *SUBSPACE_VALUES} == set(OF_WEIGHTS)


@pytest.mark.parametrize("metric", GEOMETRIC)
def test_geometry_and_effective_rank(metric):
    assert value(metric, *PAIR) == pytest.approx(GEOMETRIC[metric], rel=GEOMETRY / 100)


@pytest.mark.parametrize("metric", SUBSPACE_VALUES)
@pytest.mark.parametrize("pad", ["square", "tall", "wide"])
def test_subspace_overlap(metric, pad):
    shape = {"square": (4, 4), "tall": (7, 4), "wide": (4, 9)}[pad]
    a, b = ({"w": np.pad(m, [(0, shape[0] - 4), (0, shape[1] - 4)])} for m in DIAGONAL)
    assert value(metric, a, b, top_k=2) == pytest.approx(SUBSPACE_VALUES[metric], abs=SUBSPACE / 10)


def test_singular_value_overlap_is_the_cosine_of_the_leading_values():
    a, b = {"w": np.diag([3.0, 2, 1])}, {"w": np.diag([5.0, 1, 1])}
    assert value("singular_value_overlap", a, b) == pytest.approx(18 / np.sqrt(14 * 27), rel=1e-12)
    assert value("singular_value_overlap", a, b, spectrum_k=1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("subspace_overlap", 10**-0.5), ("right_subspace_overlap_top_k", 1.0), ("right_subspace_overlap_bottom_k", 1.0)],
)
def test_equal_models_left_divides_by_k_right_by_its_root(metric, expected):
    matrix = {"w": np.random.default_rng(0).standard_normal((30, 20))}
    assert value(metric, matrix, matrix) == pytest.approx(expected, abs=SUBSPACE / 10)


def test_opposite_and_orthogonal_vectors_keep_their_sign():
    x, y = {"w": np.array([2.0, 0.0])}, {"w": np.array([0.0, 5.0])}
    assert value("task_vector_cosine_similarity", x, {"w": -x["w"]}) == -1.0
    assert value("weight_space_angle", x, {"w": -x["w"]}) == pytest.approx(180.0)
    assert value("weight_space_angle", x, y) == pytest.approx(90.0)
    assert value("effective_rank", x, {"w": y["w"] * 0.4}) == pytest.approx(2.0)
    assert value("spectral_gap", x, {"w": -x["w"]}) == pytest.approx(1.0)


def test_layerwise_effective_rank_weighs_by_length():
    a = {"u": np.array([1.0, 0.0]), "v": np.array([0.0, 3.0])}
    b = {"u": np.array([0.0, 1.0]), "v": np.array([0.0, 3.0])}
    # u: orthogonal and equal (rank 2, weight 2); v: parallel (rank 1, weight 6).
    assert value("layerwise_effective_rank", a, b) == pytest.approx((2 * 2 + 1 * 6) / 8)


def test_layerwise_effective_rank_leaves_out_what_hardly_moved():
    a = {"u": np.array([1.0, 0.0]), "v": np.array([1e-11, 0.0])}
    b = {"u": np.array([1.0, 0.0]), "v": np.array([0.0, 1.0])}
    assert value("layerwise_effective_rank", a, b) == pytest.approx(1.0)


def test_subspace_metrics_average_over_matrices_alone():
    rng = np.random.default_rng(1)
    first, second = ({"m": rng.standard_normal((12, 12)), "v": rng.standard_normal(12)} for _ in range(2))
    alone = [{"m": model["m"]} for model in (first, second)]
    both = [{**model, "n": np.eye(3) * 2} for model in (first, second)]
    single = value("right_subspace_overlap_top_k", *alone)
    assert value("right_subspace_overlap_top_k", first, second) == single
    assert value("right_subspace_overlap_top_k", *both) == pytest.approx((single + 1) / 2, abs=SUBSPACE)


@pytest.mark.parametrize("metric", GEOMETRIC)
@pytest.mark.parametrize("closeness", [1e-2, 1e-4, 1e-6])
def test_nearly_identical_pair(metric, closeness):
    """Compared with 50 digits: a distance of a millionth of the length loses no digits to cancellation."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(5)
    base, a = rng.standard_normal(40), rng.standard_normal(40)
    first, second = base + a, base + a * (1 + closeness * rng.standard_normal(40))
    table = mergekern.compute_all({"a": {"w": first}, "b": {"w": second}}, {"w": base}, metrics=metric)
    with mpmath.workdps(50):
        x = [mpmath.mpf(float(p)) - mpmath.mpf(float(q)) for p, q in zip(first, base, strict=True)]
        y = [mpmath.mpf(float(p)) - mpmath.mpf(float(q)) for p, q in zip(second, base, strict=True)]
        xx, yy, xy = (mpmath.fdot(p, q) for p, q in ((x, x), (y, y), (x, y)))
        root = mpmath.sqrt((xx - yy) ** 2 + 4 * xy**2)
        s1, s2 = mpmath.sqrt((xx + yy + root) / 2), mpmath.sqrt((xx * yy - xy**2) * 2 / (xx + yy + root))
        p1, p2 = s1 / (s1 + s2), s2 / (s1 + s2)
        rank = mpmath.exp(-p1 * mpmath.log(p1) - p2 * mpmath.log(p2))
        expected = {
            "task_vector_cosine_similarity": xy / mpmath.sqrt(xx * yy),
            "task_vector_l2_distance": mpmath.sqrt(sum((p - q) ** 2 for p, q in zip(x, y, strict=True))),
            "task_vector_dot_product": xy,
            "weight_space_angle": mpmath.degrees(mpmath.acos(xy / mpmath.sqrt(xx * yy))),
            "task_vector_magnitude_ratio": mpmath.sqrt(min(xx, yy) / max(xx, yy)),
            "effective_rank": rank,
            "effective_rank_mergeability_score": 2 - rank,
            "stable_rank": (s1 + s2) ** 2 / (s1**2 + s2**2),
            "spectral_gap": (s1 - s2) / s1,
            "singular_value_ratio": s2 / s1,
            "layerwise_effective_rank": rank,
            "layerwise_effective_rank_mergeability_score": 2 - rank,
        }
    assert metric in expected, "a new metric of inner products needs its value by 50 digits here"
    assert table.matrix(metric)[0, 1] == pytest.approx(float(expected[metric]), rel=GEOMETRY, abs=0)


def test_block_structure_gives_known_principal_angles():
    """V_b is V_a turned by 30° in each of the planes (e₁, e₃) and (e₂, e₄)."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.eye(4)
    for i, j in ((0, 2), (1, 3)):
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    a = np.diag([4.0, 3.5, 2, 1])
    overlap = value("interaction_matrix_overlap_top_k", {"w": a}, {"w": a @ turn.T}, top_k=2)
    assert overlap == pytest.approx(c**2, abs=SUBSPACE / 10)
