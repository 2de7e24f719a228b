"""Buffers of infinities or NaN that are the same everywhere, and sums of squares beyond float64."""

import numpy as np
import pytest
import torch

import mergekern
from mergekern.errors import NonFiniteError
from mergekern.measurement.options import MeasureOptions

MASK = torch.triu(torch.full((6, 6), float("-inf")), 1)
MASK[5, 0] = float("nan")


def zoo(**others):
    generator = torch.Generator().manual_seed(3)
    weights = {name: {"w": torch.randn(6, 6, generator=generator)} for name in ("base", "a", "b")}
    return {name: {"mask": others.get(name, MASK), **state} for name, state in weights.items()}


def check(models, **options):
    """Assert that the mask counts as unchanged."""
    base = models.pop("base")
    mask, weight = mergekern.measure(models, base, MeasureOptions(**options)).layers
    assert mask.unchanged.all()
    assert not mask.squared_distance.any()
    assert not mask.spectrum.rank.any()
    without = {name: {"w": state["w"]} for name, state in models.items()}
    [expected] = mergekern.measure(without, {"w": base["w"]}).layers
    np.testing.assert_allclose(weight.inner, expected.inner, rtol=1e-12)


@pytest.mark.parametrize("max_memory", [None, 48], ids=["whole", "split"])
def test_a_mask_that_is_the_same_everywhere_is_unchanged(max_memory):
    """TransformerLensOrg/TransformerLens#366: a causal mask in the state dict."""
    check(zoo(), max_memory=max_memory)


def test_a_mask_in_other_dtypes():
    check(zoo(a=MASK.bfloat16(), b=MASK.double()))


def test_sketches_of_a_mask():
    models = zoo()
    base = models.pop("base")
    squares = mergekern.sketch(models, base).squares
    expected = [float((state["w"] - base["w"]).double().square().sum()) for state in models.values()]
    np.testing.assert_allclose(squares, expected, rtol=1e-6)


@pytest.mark.parametrize("compute", [mergekern.measure, mergekern.sketch])
def test_a_mask_that_differs_is_refused(compute):
    models = zoo(b=MASK.clone().fill_diagonal_(1.0))
    base = models.pop("base")
    with pytest.raises(NonFiniteError, match="'mask' holds NaN or infinite"):
        compute(models, base)


def test_sums_that_overflow_are_refused():
    """The squares of every tensor are finite, and their sum is not."""
    models = {
        name: {part: torch.full((4,), 6e153 * size, dtype=torch.float64) for part in "pqr"}
        for name, size in (("long", 1.0), ("short", 0.25))
    }
    base = {part: torch.zeros(4, dtype=torch.float64) for part in "pqr"}
    for compute in (mergekern.compute_all, mergekern.sketch):
        with pytest.raises(NonFiniteError, match="long: values so large"):
            compute(models, base)


def test_long_task_vectors_below_the_limit():
    models = {"a": {"w": np.array([1e153, 0.0])}, "b": {"w": np.array([0.0, 2e153])}}
    row = mergekern.compute_all(models, {"w": torch.zeros(2, dtype=torch.float64)}).to_pandas().iloc[0]
    assert row["task_vector_cosine_similarity"] == pytest.approx(0.0, abs=1e-15)
    assert row["singular_value_ratio"] == pytest.approx(0.5)
    assert row["stable_rank"] == pytest.approx(1.8)
