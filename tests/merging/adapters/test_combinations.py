"""Combinations against closed forms: dense sums, NumPy's SVD, cross terms, and values worked out by hand."""

import numpy as np
import pytest

from mergekern.merging.adapters import combinations, products
from mergekern.merging.adapters.elements import Elements
from mergekern.merging.adapters.products import Update
from mergekern.merging.adapters.registry import COMBINATIONS

OPTIONS = {"density": 0.4, "svd_rank": 3, "majority_sign": "total", "seed": 5}


def drawn(count=3, shape=(9, 7), rank=2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Update(
            rng.standard_normal((shape[0], rank)),
            rng.standard_normal((rank, shape[1])),
            0.5 + index,
            weight,
            f"{index}",
        )
        for index, weight in zip(range(count), (0.7, -0.4, 1.2), strict=False)
    ]


def product(update):
    return update.scale * update.b @ update.a


def dense(updates):
    return sum(update.weight * product(update) for update in updates)


def best(matrix, rank):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def test_cat_is_the_sum():
    updates = [*drawn(2), *drawn(1, rank=4, seed=1)]
    found = combinations.cat(updates)
    assert found.a.shape == (8, 7)
    np.testing.assert_allclose(found.b @ found.a, dense(updates), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(9, 7), (5, 30), (4, 4), (1, 6), (600, 3)])
def test_svd_is_that_of_the_dense_sum(shape):
    updates = drawn(3, shape)
    for rank in range(1, min(6, *shape) + 1):
        found = combinations.svd(updates, svd_rank=rank)
        values = np.linalg.svd(dense(updates), compute_uv=False)
        np.testing.assert_allclose(found.b @ found.a, best(dense(updates), rank), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.a @ found.a.T, np.eye(rank), rtol=0, atol=1e-12)
        np.testing.assert_allclose([found.square, found.lost], [sum(values**2), sum(values[rank:] ** 2)], atol=1e-11)


def test_linear_has_cross_terms_of_every_two():
    updates = drawn(2)
    found = combinations.linear(updates)
    roots = [np.sqrt(abs(update.weight * update.scale)) for update in updates]
    signs = [np.sign(update.weight) for update in updates]
    one, two = updates
    cross = roots[0] * roots[1] * (signs[1] * one.b @ two.a + signs[0] * two.b @ one.a)
    np.testing.assert_allclose(found.b @ found.a, dense(updates) + cross, rtol=0, atol=1e-13)
    assert np.abs(cross).max() > 0.1


def test_ties_by_hand():
    # Of four elements each the two largest are kept: A is [5, 0, -3, 0] and [-4, 0, -1, 0], B is 1s.
    one = Update(np.ones((1, 1)), np.array([[5.0, 1.0, -3.0, 0.5]]), weight=4.0)
    two = Update(np.ones((1, 1)), np.array([[-4.0, 0.1, -1.0, 0.2]]), weight=9.0)
    a = combinations.ties([one, two], density=0.5).a
    # The sums are 1, 0, -4, 0; the roots of the weights are 2 and 3.
    assert a.tolist() == [[10.0, 0.0, (-6.0 - 3.0) / 2, 0.0]]
    # By the number of signs the first is undecided, and + by definition.
    assert combinations.ties([one, two], density=0.5, majority_sign="frequency").a.tolist() == a.tolist()
    three = two._replace(weight=0.0)
    a = combinations.ties([one, two, three], density=0.5, majority_sign="frequency").a
    assert a.tolist() == [[(-12.0 + 0.0) / 2, 0.0, (-6.0 - 3.0 + 0.0) / 3, 0.0]]


def test_a_negative_weight_is_elected_by_the_sign_before_it():
    one = Update(np.ones((1, 1)), np.array([[2.0]]), weight=-1.0)
    assert combinations.ties([one], density=1.0).a.tolist() == [[-2.0]]


def test_signs_of_factors_are_arbitrary_for_ties_and_not_for_ties_svd():
    one, two = drawn(2)
    turned = two._replace(a=-two.a, b=-two.b)
    assert np.allclose(product(two), product(turned))
    of_factors = [combinations.ties([one, other], density=0.6) for other in (two, turned)]
    assert not np.allclose(of_factors[0].b @ of_factors[0].a, of_factors[1].b @ of_factors[1].a)
    of_products = [combinations.ties_svd([one, other], svd_rank=3, density=0.6) for other in (two, turned)]
    np.testing.assert_allclose(
        of_products[0].b @ of_products[0].a, of_products[1].b @ of_products[1].a, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("elect", [None, "total", "frequency"])
@pytest.mark.parametrize("shape", [(9, 7), (700, 3), (257, 5)])
def test_products_in_blocks_are_those_of_whole_matrices(elect, shape):
    updates, density = drawn(3, shape), 0.3
    kept = []
    for matrix in map(product, updates):
        count = int(density * matrix.size)
        least = np.sort(np.abs(matrix), axis=None)[-count]
        kept.append(np.where(np.abs(matrix) >= least * (1 - 1e-12), matrix, 0.0))
        assert np.count_nonzero(kept[-1]) == count
    weighted = np.stack([update.weight * matrix for update, matrix in zip(updates, kept, strict=True)])
    expected = weighted.sum(axis=0)
    if elect:
        votes = np.stack(kept) if elect == "total" else np.sign(kept)
        agrees = np.sign(kept) == np.where(votes.sum(axis=0) >= 0, 1, -1)
        expected = (weighted * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
    found = products.merged_product(updates, Elements(density, elect=elect))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    if elect is None:
        for name in ("magnitude_prune_svd", "dare_linear_svd"):
            options = {"seed": 3} if "dare" in name else {}
            merged = getattr(combinations, name)(updates, svd_rank=2, density=density, **options)
            elements = Elements(density, is_random="dare" in name, **options)
            whole = products.merged_product(updates, elements)
            np.testing.assert_allclose(merged.b @ merged.a, best(whole, 2), rtol=0, atol=1e-9)
            lost = np.square(whole - merged.b @ merged.a).sum()
            np.testing.assert_allclose([merged.square, merged.lost], [np.square(whole).sum(), lost], rtol=1e-9)


def test_masks_keep_the_share_and_the_mean_in_blocks_and_whole():
    one = Update(np.ones((800, 1)), np.ones((1, 50)), content="x")
    found = products.merged_product([one], Elements(0.3, is_random=True, seed=1))
    assert set(np.unique(found)) == {0.0, 1 / 0.3}
    # 40,000 draws: five standard deviations are 0.0115.
    assert abs((found > 0).mean() - 0.3) < 0.0115
    again = Elements(0.3, is_random=True, seed=1).thinned(np.ones((800, 50)), 0.0, one.key(1, "product"))
    assert np.array_equal(found, again)
    for other in (one._replace(content="y"), one):
        seed = 1 if other.content == "y" else 2
        assert not np.array_equal(products.merged_product([other], Elements(0.3, is_random=True, seed=seed)), found)


def test_nothing_is_kept_of_too_few_elements():
    one = Update(np.ones((2, 1)), np.ones((1, 2)))
    assert not combinations.magnitude_prune([one], density=0.4).b.any()
    merged = combinations.magnitude_prune_svd([one], svd_rank=2, density=0.2)
    assert not merged.b.any()
    assert (merged.square, merged.lost) == (0.0, 0.0)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_density_1_thins_nothing(name):
    updates = drawn(3)
    options = {option: OPTIONS[option] for option in COMBINATIONS[name].options} | (
        {"density": 1.0} if "density" in COMBINATIONS[name].options else {}
    )
    found = getattr(combinations, name)(updates, **options)
    if "ties" not in name:
        of_products = name == "cat" or name.endswith("svd")
        expected = dense(updates) if of_products else (lambda merged: merged.b @ merged.a)(combinations.linear(updates))
        expected = best(expected, 3) if name.endswith("svd") else expected
        np.testing.assert_allclose(found.b @ found.a, expected, rtol=0, atol=1e-9)
    assert found.b.shape[1] == len(found.a)
    assert np.isfinite(found.b).all()


def test_a_matrix_of_lower_rank_than_asked_for_is_padded_with_zeros():
    one = Update(np.ones((5, 1)), np.arange(1.0, 5.0)[None])
    found = combinations.dare_linear_svd([one], svd_rank=4, density=1.0)
    assert found.b.shape == (5, 4)
    np.testing.assert_allclose(found.b @ found.a, product(one), rtol=0, atol=1e-12)
    assert not found.b[:, 1:].any()
    assert found.lost < 1e-20
