"""Merges worked out by hand, and cases in which a merge has a closed form."""

import math

import numpy as np
import pytest
import torch
import xxhash

import mergekern
from mergekern import METHODS
from mergekern.kernels.combine import reference
from mergekern.kernels.polar.reference import polar
from mergekern.kernels.truncation.reference import leading
from mergekern.merging.elementwise import mask_key
from mergekern.merging.registry import methods_for
from tests.merging.zoos import drawn

# 4 × 4, the base all ones, so that a wrong base shows.
A = torch.tensor([[8.0, -4.0, 2.0, 1.0], [0.5, 0.0, -6.0, 3.0], [0.25, -0.5, 1.5, -1.0], [5.0, -7.0, 0.0, 2.5]])
B = torch.tensor([[4.0, 4.0, -1.0, 3.0], [-2.0, 0.0, -5.0, -3.0], [7.0, 0.5, -1.5, 0.75], [1.0, -6.0, 2.0, -8.0]])

# Every method with every number of models that it merges.
EVERY = [(name, models) for name, method in METHODS.items() for models in (1, 2, 3, 5, 8) if method.merges(models)]


def merged(method, *deltas, base=None, weights=None, **options):
    base = torch.ones_like(deltas[0]) if base is None else base
    models = {f"model_{i}": {"w": base + delta} for i, delta in enumerate(deltas)}
    return mergekern.merge(models, {"w": base}, method, options=options, weights=weights)["w"]


def test_weight_average():
    assert torch.equal(merged("weight_average", A, B), 1 + (A + B) / 2)
    assert torch.equal(merged("weight_average", A, B, weights=[3, 1]), 1 + (3 * A + B) / 4)


@pytest.mark.parametrize("method", sorted(set(methods_for(2)) - {"tsv", "model_stock"}))
def test_a_model_of_no_weight_adds_nothing(method):
    options = {"mask": "magnitude"} if "dare" in method else {}
    alone = merged(method, A, torch.zeros(4, 4), weights=[1, 0], **options)
    torch.testing.assert_close(merged(method, A, 7 * B, weights=[1, 0], **options), alone, rtol=0, atol=1e-6)


def test_tsv_weighs_singular_values_and_not_directions():
    limit = merged("tsv", A, B, weights=[1, 1e-9])
    torch.testing.assert_close(merged("tsv", A, B, weights=[1, 0]), limit, rtol=0, atol=1e-6)
    assert (limit - merged("tsv", A, torch.zeros(4, 4))).abs().max() > 0.1


def test_task_arithmetic():
    assert torch.equal(merged("task_arithmetic", A, B, scale=0.5), 1 + (A + B) / 2)
    assert torch.equal(merged("task_arithmetic", A, B, scale=1, weights={"model_1": -1, "model_0": 2}), 1 + 2 * A - B)


def test_ties():
    # A quarter of 16 elements: A keeps 8, −6, 5, −7; B keeps 7, −6, −8, −5. At (1, 2) and (3, 1) both agree.
    change = torch.tensor([[8.0, 0, 0, 0], [0, 0, -5.5, 0], [7.0, 0, 0, 0], [5.0, -6.5, 0, -8.0]])
    assert torch.equal(merged("ties", A, B, density=0.25, scale=2.0), 1 + 2 * change)


@pytest.mark.parametrize(("sign", "kept"), [(1, 3.0), (-1, -3.0)])
def test_ties_of_entries_that_cancel_take_the_sign_of_the_tensor(sign, kept):
    first, second = sign * torch.tensor([3.0, 5.0, 0.0, 0.0]), sign * torch.tensor([-3.0, 2.0, 1.0, 0.0])
    expected = torch.tensor([kept, sign * 3.5, sign * 1.0, 0.0])
    assert torch.equal(merged("ties", first, second, density=1.0, scale=1.0), 1 + expected)


def test_ties_of_balanced_signs_take_plus():
    first, second = torch.tensor([3.0, 5.0, 0.0, -1.0]), torch.tensor([-3.0, 2.0, 0.0, -1.0])
    expected = torch.tensor([3.0, 3.5, 0.0, -1.0])
    assert torch.equal(merged("ties", first, second, density=1.0, scale=1.0), 1 + expected)


def test_dare_by_magnitude():
    # The 12 smallest of 16 elements are dropped, the others are multiplied by 4, and the mean halves them.
    change = torch.tensor([[8.0, 0, 0, 0], [0, 0, -11.0, 0], [7.0, 0, 0, 0], [5.0, -13.0, 0, -8.0]])
    assert torch.equal(merged("dare", A, B, rate=0.75, mask="magnitude"), 1 + 2 * change)


def test_tall_masks():
    first, second, third = (torch.tensor([[4.0, 1.0], [0.0, a]]) for a in (1.0, 10.0, -6.0))
    # Each model claims the elements they share. At (1, 1) the sum is 5, which only the second and third claim. No model
    # claims a zero.
    expected = torch.tensor([[12.0, 3.0], [0.0, 5.0]])
    by_all = torch.tensor([[12.0, 3.0], [0.0, 0.0]])
    assert torch.equal(merged("tall_masks", first, second, third), 1 + expected)
    assert torch.equal(merged("tall_masks", first, second, third, needed=3), 1 + by_all)


def test_tall_masks_of_a_pair():
    # |a| > 0.4·|b| or |b| > 0.4·|a| holds for any two numbers that are not both zero, and one condition is enough here.
    assert torch.equal(merged("tall_masks", A, B), 1 + A + B)
    # Both conditions: neither number may be more than 2.5 times the other.
    both = torch.tensor([[1.0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]])
    assert torch.equal(merged("tall_masks", A, B, needed=2), 1 + both * (A + B))


def test_dare_at_random():
    models = [{"w": 1 + delta} for delta in (A, B)]
    found = mergekern.merge(models, {"w": torch.ones(4, 4)}, "dare", options={"rate": 0.5, "seed": 3})["w"]
    content = [xxhash.xxh3_128(b"torch.float32(4, 4)" + model["w"].numpy().tobytes()).hexdigest() for model in models]
    drawn_numbers = [reference.uniform(mask_key(3, "w", digest), 0, 16).reshape(4, 4) / 2**53 for digest in content]
    kept = [torch.from_numpy(np.where(numbers >= 0.5, 2.0, 0.0)) for numbers in drawn_numbers]
    assert torch.equal(found, (1 + (kept[0] * A + kept[1] * B) / 2).float())
    assert 0 < kept[0].count_nonzero() < 16


def test_dare_ties_by_magnitude():
    # Kept and counted fourfold: A 8, −6, 5, −7; B 7, −6, −8, −5. As in TIES.
    change = torch.tensor([[8.0, 0, 0, 0], [0, 0, -5.5, 0], [7.0, 0, 0, 0], [5.0, -6.5, 0, -8.0]])
    assert torch.equal(merged("dare_ties", A, B, rate=0.75, mask="magnitude", scale=0.5), 1 + 2 * change)


def diagonal(*values):
    return torch.diag(torch.tensor(values))


# Two orthogonal task matrices. They are rotations of a diagonal, so that singular vectors are known but not axes.
ROTATION = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5], [0.5, -0.5, -0.5, 0.5]])


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        # Each keeps two triplets, with 8 and 4 of the first and 6 and 3 of the second, in orthogonal spaces.
        ("tsv", {}, diagonal(8.0, 4.0, 6.0, 3.0)),
        # Σ = (8, 4, 6, 3), mean 5.25.
        ("isotropic", {}, diagonal(5.25, 5.25, 5.25, 5.25)),
        # Σ = (9, 6, 6, 3), mean 6.
        ("isotropic", {"truncate": None}, diagonal(6.0, 6.0, 6.0, 6.0)),
        # 9 and one of the sixes are common, the rest is divided, and (9, 6, 6, 3) again fill the space.
        ("isotropic_cts", {"common_fraction": 1.0}, diagonal(6.0, 6.0, 6.0, 6.0)),
    ],
    ids=["tsv", "isotropic", "isotropic untruncated", "isotropic_cts"],
)
def test_of_singular_vectors(method, options, expected):
    first, second = diagonal(8.0, 4.0, 0.0, 0.0), diagonal(0.0, 0.0, 6.0, 3.0)
    if options:
        first, second = diagonal(8.0, 4.0, 2.0, 1.0), diagonal(1.0, 2.0, 4.0, 2.0)
    found = merged(method, first @ ROTATION, second @ ROTATION, scale=2.0, **options)
    torch.testing.assert_close(found, 1 + 2 * expected @ ROTATION, rtol=0, atol=1e-6)


def test_isotropic_cts_of_common_and_own_directions():
    # Common: e1, e2 with 8, 6. Of what is left the first adds e3 with 2, the second e4 with 1: mean 17/4.
    found = merged("isotropic_cts", diagonal(4.0, 3.0, 2.0, 0.5), diagonal(4.0, 3.0, 0.5, 1.0), common_fraction=0.5)
    torch.testing.assert_close(found, 1 + 4.25 * torch.eye(4), rtol=0, atol=1e-6)


# --- a model with itself


@pytest.mark.parametrize("models", [2, 3, 5, 8])
def test_copies_of_one_model(models):
    base, tuned = drawn(1, {"w": (12, 10), "b": (9,)})
    (model,) = tuned.values()
    origin = {name: tensor.double() for name, tensor in base.items()}
    delta = {name: tensor.double() - origin[name] for name, tensor in model.items()}
    copies = {f"copy_{i}": model for i in range(models)}

    def change(method, name="w", **options):
        return mergekern.merge(copies, base, method, options=options)[name].double() - origin[name]

    near = {"rtol": 0, "atol": 1e-6}
    for name in base:
        torch.testing.assert_close(change("weight_average", name), delta[name], **near)
        torch.testing.assert_close(change("task_arithmetic", name), 0.3 * models * delta[name], **near)
        torch.testing.assert_close(change("ties", name, density=1, scale=1), delta[name], **near)
        torch.testing.assert_close(change("tall_masks", name), models * delta[name], **near) if models < 4 else None
    torch.testing.assert_close(change("tsv", "b"), delta["b"], **near)
    k = max(1, 10 // models)
    kept = leading(delta["w"].numpy(), k)
    torch.testing.assert_close(change("tsv"), torch.from_numpy(kept.matrix()), **near)
    mean = models * kept.values.sum() / 10
    torch.testing.assert_close(change("isotropic"), torch.from_numpy(mean * kept.left @ kept.right.T), **near)
    factor, mean = polar(delta["w"].numpy()), np.linalg.svd(delta["w"].numpy())[1].mean()
    torch.testing.assert_close(change("isotropic", truncate=None), torch.from_numpy(models * mean * factor), **near)
    # The mask depends on the content, so all copies have the same mask.
    dropped = change("dare", rate=0.5)
    assert torch.minimum(dropped.abs(), (dropped - 2 * delta["w"]).abs()).max() < 1e-6


# --- degenerate cases


@pytest.mark.parametrize(("method", "models"), EVERY)
def test_zero_deltas_give_the_base(method, models):
    base, _ = drawn(1, {"w": (5, 4), "b": (3,), "s": (), "one": (1, 1), "row": (1, 6), "empty": (0, 3)})
    found = mergekern.merge({f"m{i}": base for i in range(models)}, base, method)
    assert list(found) == list(base)
    for name in base:
        assert torch.equal(found[name], base[name]), name


@pytest.mark.parametrize(("method", "models"), EVERY)
def test_tiny_tensors(method, models):
    base, tuned = drawn(models, {"s": (), "one": (1, 1), "row": (1, 6), "column": (3, 1), "pair": (2,)})
    found = mergekern.merge(tuned, base, method)
    for name in base:
        assert found[name].shape == base[name].shape
        assert found[name].isfinite().all()
    if method in ("ties", "tsv", "isotropic"):
        assert not torch.equal(found["one"], base["one"])  # At least one value and one direction are kept.


@pytest.mark.parametrize("models", [2, 3, 5, 8])
@pytest.mark.parametrize("method", ["tsv", "isotropic", "isotropic_cts"])
def test_rank_deficient_deltas_leave_null_directions_alone(method, models):
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    deltas = [left @ torch.randn(2, 30, generator=generator, dtype=torch.float64) for _ in range(models)]
    found = merged(method, *deltas, base=torch.zeros(40, 30, dtype=torch.float64))
    outside = found - left @ torch.linalg.pinv(left) @ found
    assert outside.abs().max() < 1e-9 * found.abs().max()
    assert torch.linalg.matrix_rank(found, rtol=1e-6) == 2


def test_isotropic_of_opposites_is_the_base():
    assert torch.equal(merged("isotropic", A, -A, truncate=None), torch.ones(4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_are_not_in_the_storage_dtype(dtype):
    models = 8
    base, tuned = drawn(models, {"b": (500,), "w": (40, 30)}, dtype, scale=0.1)
    wide = {name: sum(model[name].double() - base[name].double() for model in tuned.values()) for name in base}
    found = mergekern.merge(tuned, base, "task_arithmetic")
    for name in base:
        assert found[name].dtype == dtype
        assert torch.equal(found[name], (base[name].double() + 0.3 * wide[name]).float().to(dtype))
    as_float = mergekern.merge(tuned, base, "task_arithmetic", dtype="float32")
    assert as_float["w"].dtype == torch.float32


# --- DARE's masks


def test_random_masks_drop_the_rate_and_are_independent():
    kept = [reference.uniform(mask_key(seed, "w", "content"), 0, 100_000) >= int(0.9 * 2**53) for seed in (0, 1)]
    for mask in kept:
        assert mask.mean() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 100_000))
    assert (kept[0] & kept[1]).mean() == pytest.approx(0.01, abs=0.002)
    assert np.corrcoef(kept[0][1:], kept[0][:-1])[0, 1] == pytest.approx(0, abs=0.02)


def test_dare_is_unbiased_and_seeded():
    base, tuned = drawn(2, {"w": (300, 300)}, scale=1.0)
    first = mergekern.merge(tuned, base, "dare", options={"rate": 0.5, "seed": 1})["w"]
    assert torch.equal(mergekern.merge(tuned, base, "dare", options={"rate": 0.5, "seed": 1})["w"], first)
    assert not torch.equal(mergekern.merge(tuned, base, "dare", options={"rate": 0.5, "seed": 2})["w"], first)
    average = mergekern.merge(tuned, base, "weight_average")["w"]
    assert float((first - average).mean()) == pytest.approx(0, abs=0.02)


# --- in the span of the models


def state(*rows):
    return torch.tensor(rows)


def of_models(method, *models, weights=None, base=None, **options):
    """Return the merge of models that are given themselves, not by their differences from the base."""
    zoo = {f"model_{i}": {"w": model} for i, model in enumerate(models)}
    base = None if base is None else {"w": base}
    return mergekern.merge(zoo, base, method, options=options, weights=weights)["w"]


EAST, NORTH = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
HALF = math.sqrt(0.5)


def close(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected).view(found.shape), rtol=0, atol=1e-6)


def test_linear_needs_no_base():
    close(of_models("linear", EAST, NORTH, weights=[3, 1]), 1.5, 1.0)
    close(of_models("linear", EAST, NORTH, weights=[3, -1], base=torch.ones(2)), 3.0, -2.0)
    close(of_models("linear", EAST, NORTH, weights=[3, 1], normalize=False), 6.0, 4.0)
    with pytest.raises(mergekern.OptionError, match="sum to 0"):
        of_models("linear", EAST, NORTH, weights=[1, -1])
    with pytest.raises(mergekern.OptionError, match="no base checkpoint"):
        of_models("task_arithmetic", EAST, NORTH)


def test_slerp():
    # A right angle: sin 30° of one and sin 60° of the other.
    close(of_models("slerp", EAST, NORTH, t=1 / 3), 2 * math.sin(math.pi / 3), 4 * math.sin(math.pi / 6))
    close(of_models("slerp", NORTH, EAST, t=2 / 3), 2 * math.sin(math.pi / 3), 4 * math.sin(math.pi / 6))
    close(of_models("slerp", EAST, NORTH, weights=[2, 1]), 2 * math.sin(math.pi / 3), 4 * math.sin(math.pi / 6))
    # Nearly parallel: linear. Opposite: linear too. A zero is at a right angle to everything.
    near = torch.tensor([4.0, 0.1])
    close(of_models("slerp", EAST, near, t=0.25), 2.5, 0.025)
    close(of_models("slerp", EAST, -EAST, t=0.25), 1.0, 0.0)
    close(of_models("slerp", EAST, 0 * EAST, t=0.5), 2 * HALF, 0.0)


def test_slerp_of_other_numbers_of_models_or_both_t_and_weights_is_refused():
    with pytest.raises(mergekern.OptionError, match="slerp merges two models, not 3"):
        of_models("slerp", EAST, NORTH, EAST)
    with pytest.raises(mergekern.OptionError, match="give those or weights, not both"):
        of_models("slerp", EAST, NORTH, t=0.3, weights=[1, 2])
    models = {"a": {"w": EAST}, "b": {"w": NORTH}}
    with pytest.raises(mergekern.OptionError, match="nearswap merges one model with the base, not 2"):
        mergekern.merge(models, {"w": EAST}, "nearswap")
    with pytest.raises(mergekern.OptionError, match="nearswap merges one model"):
        mergekern.merge_all(models, {"w": EAST}, "nearswap", callback=print)


def test_nuslerp():
    first, second = state([2.0, 0.0], [2.0, 0.0]), state([0.0, 4.0], [4.0, 0.0])
    close(of_models("nuslerp", first, second, along="rows"), 2 * HALF, 4 * HALF, 3.0, 0.0)
    # The columns: (2, 2) with (0, 4), at 45°; a zero with (4, 0), as at a right angle.
    side = math.sin(math.pi / 8) / math.sin(math.pi / 4)
    columns = of_models("nuslerp", first, second, along="columns")
    close(columns, 2 * side, 4 * HALF, 2 * side + 4 * side, 0.0)
    # Of task vectors, beside a base of ones; vectors are always whole.
    close(
        of_models("nuslerp", 1 + EAST, 1 + NORTH, base=torch.ones(2), of="deltas", along="rows"),
        1 + 2 * HALF,
        1 + 4 * HALF,
    )
    with pytest.raises(mergekern.OptionError, match="no base checkpoint"):
        of_models("nuslerp", EAST, NORTH, of="deltas")


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_spherical_means(method):
    # Two of weight 2 and 1 at a right angle: a sum of directions of (2, 1), an arc divided as 1 to 2.
    x, y = (2 / 5**0.5, 1 / 5**0.5) if method == "multislerp" else (math.cos(math.pi / 6), math.sin(math.pi / 6))
    length = (2 * 2 + 4) / 3
    close(of_models(method, EAST, NORTH, weights=[2, 1]), length * x, length * y)
    # Three axes have their mean on the diagonal.
    axes = [torch.eye(3)[i] * (i + 1) for i in range(3)]
    close(of_models(method, *axes), *[2 / 3**0.5] * 3)
    # Directions that cancel have none in the middle.
    close(of_models(method, EAST, -2 * EAST), -1.0, 0.0)
    # A zero has no direction, and a length.
    close(of_models(method, EAST, 0 * EAST), 1.0, 0.0)


def test_model_stock():
    # At 60° a pair has t = 2·0.5/1.5; three at right angles have t = 0.
    sixty = torch.tensor([2.0, 2 * 3**0.5])
    close(merged("model_stock", EAST, sixty), 1 + 2 / 3 * 2.0, 1 + 2 / 3 * 3**0.5)
    assert torch.equal(merged("model_stock", *torch.eye(3)), torch.ones(3))
    # By rows: at 60°, parallel, and opposite, where t = 2·c/(1 + c) has no value.
    first, second = state([2.0, 0.0], [1.0, 1.0], [1.0, 0.0]), state([2.0, 2 * 3**0.5], [3.0, 3.0], [-2.0, 0.0])
    expected = [4 / 3, 2 / 3 * 3**0.5, 2.0, 2.0, 0.0, 0.0]
    close(merged("model_stock", first, second, along="rows") - 1, *expected)
    # At 120° t = −2, beyond the base; it may be clipped.
    obtuse = torch.tensor([-2.0, 2 * 3**0.5])
    close(merged("model_stock", EAST, obtuse) - 1, 0.0, -2 * 3**0.5)
    assert torch.equal(merged("model_stock", EAST, obtuse, clip=True), torch.ones(2))


# --- element by element, after a look at the whole tensor


def test_ties_by_count_sum_and_largest():
    first, second, third = (torch.tensor(each) for each in ([5.0, 1.0], [-1.0, 2.0], [-2.0, 3.0]))
    options = {"density": 1.0, "scale": 1.0}
    close(merged("ties", first, second, third, **options) - 1, 5.0, 2.0)
    close(merged("ties", first, second, third, **options, sign="count") - 1, -1.5, 2.0)
    close(merged("ties", first, second, third, **options, aggregate="sum") - 1, 5.0, 6.0)
    close(merged("ties", first, second, third, **options, aggregate="max", sign="count") - 1, -2.0, 3.0)
    # A task is subtracted: κ = 5 and 2, 1 and −4.
    subtracted = merged("ties", first, second, weights=[1, -2], **options, aggregate="sum")
    close(subtracted - 1, 7.0, -4.0)


def test_a_density_for_each_model():
    options = {"scale": 1.0, "aggregate": "sum"}
    first, second = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    for density in ([0.25, 0.5], {"model_1": 0.5, "model_0": 0.25}):
        close(merged("ties", first, second, density=density, **options) - 1, 4.0, 0.0, 3.0, 4.0)
    with pytest.raises(mergekern.OptionError, match="no density for model_1"):
        merged("ties", first, second, density={"model_0": 0.5})
    with pytest.raises(mergekern.OptionError, match="density must be above 0"):
        merged("ties", first, second, density=[0.5, 0.0])


def test_breadcrumbs():
    # Of six elements one outlier goes, the next three stay.
    first, second = torch.tensor([9.0, 1.0, -2.0, 3.0, 4.0, 0.5]), torch.tensor([1.0, 2.0, 3.0, -4.0, -5.0, 0.0])
    options = {"density": 0.5, "gamma": 0.2, "scale": 1.0}
    close(merged("breadcrumbs", first, second, **options) - 1, 0.0, 2.0, 1.0, -1.0, 4.0, 0.0)
    close(merged("breadcrumbs_ties", first, second, **options, aggregate="mean") - 1, 0, 2.0, 3.0, -4.0, 4.0, 0.0)
    # The first keeps 9 of 19.5, the second 9 of 15.
    rescaled = merged("breadcrumbs", first, second, **options, rescale="norm") - 1
    close(rescaled, 0.0, 2 * 15 / 9, -2 * 19.5 / 9 + 3 * 15 / 9, 3 * 19.5 / 9 - 4 * 15 / 9, 4 * 19.5 / 9, 0.0)


@pytest.mark.parametrize("method", ["dare", "della_linear"])
def test_rescaling(method):
    """Random masks: divided by the chance of being kept, brought back to the sum of magnitudes, or left."""
    base, (model,) = torch.zeros(60, 50), (torch.linspace(1, 2, 3000).view(60, 50),)
    share = {"rate": 0.5} if method == "dare" else {"density": 0.5, "epsilon": 0.0}

    def change(rescale):
        found = mergekern.merge([{"w": model}], {"w": base}, method, options={**share, "rescale": rescale})
        return found["w"]

    left = change("none")
    kept = left != 0
    assert 0.4 < kept.double().mean() < 0.6
    assert torch.equal(left, torch.where(kept, model, 0.0))
    torch.testing.assert_close(change("density"), 2 * left)
    torch.testing.assert_close(change("norm"), left * (model.sum() / left.sum()))


def test_della_keeps_large_elements_more_often():
    model = torch.cat([torch.full((1, 1000), 1e-3), torch.full((1, 1000), 1.0)], 1).repeat(20, 1)
    options = {"density": 0.5, "epsilon": 0.4, "rescale": "none"}
    kept = mergekern.merge([{"w": model}], {"w": 0 * model}, "della", options=options)["w"] != 0
    # The lower half has chances from 0.1 to 0.5, the upper one from 0.5 to 0.9.
    assert kept[:, :1000].double().mean() == pytest.approx(0.3, abs=0.02)
    assert kept[:, 1000:].double().mean() == pytest.approx(0.7, abs=0.02)


def test_sce():
    # Variances of (2, 0), (1, −1), (3, 3), (0, −4): 1, 1, 0, 4. One of the three that vary stays.
    first, second = torch.tensor([2.0, 1.0, 3.0, 0.0]), torch.tensor([0.0, -1.0, 3.0, -4.0])
    close(merged("sce", first, second, density=0.4) - 1, 0.0, 0.0, 0.0, -4.0)
    # Energies 14 and 26. Balanced sums are positive.
    close(merged("sce", first, second) - 1, 2.0, 1.0, 3.0, -4.0)
    close(merged("sce", first, torch.tensor([4.0, 1.0, 3.0, 0.0])) - 1, (2 * 14 + 4 * 26) / 40, 1.0, 3.0, 0.0)


def test_ram():
    first, second = torch.tensor([2.0, 1.0, 0.01, 0.0]), torch.tensor([4.0, 0.0, 3.0, 0.0])
    close(merged("ram", first, second, epsilon=0.1) - 1, 3.0, 1.0, 3.0, 0.0)
    # Each shares one element and has one alone: 1 + 0.5·min(1, 0.4).
    plus = merged("ramplus_tl", first, second, epsilon=0.1, r=0.5, alpha=0.4) - 1
    close(plus, 3.0, 1.2, 3.6, 0.0)


def test_of_one_model_with_the_base():
    base, model = torch.zeros(5), torch.tensor([0.1, -0.1, 0.2, 3.0, -0.3])
    close(of_models("nearswap", model, base=base, t=0.15), 0.1, -0.1, 0.15, 0.15, -0.15)
    # All importances are multiples of |τ|: 0.1, 0.1, 0.2, 0.3, 3. The threshold is 0.2 + 1.5·(0.3 − 0.1) = 0.5.
    close(of_models("arcee_fusion", model, base=base), 0.0, 0.0, 0.0, 3.0, 0.0)
