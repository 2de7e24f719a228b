"""How updates W_i = s_i·B_i·A_i of one module become one: a function for each combination, of float64 factors.

The definitions are those of PEFT's `add_weighted_adapter` (https://huggingface.co/docs/peft/developer_guides/model_merging).
Adapters that do not touch the module are not among the updates: they count neither in sums nor in means. Names, and the
options that each takes, are in `registry.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergekern.merging.adapters.elements import Elements, largest
from mergekern.merging.adapters.products import Merged, Update, merged_product, truncated, truncated_sum
from mergekern.merging.adapters.registry import MajoritySign


def svd(updates: Sequence[Update], *, svd_rank: int) -> Merged:
    """Return the best approximation of rank r to Σ w_i·W_i: B = U_r·Σ_r, A = V_rᵀ (Eckart and Young).

    >>> one, two = Update(np.array([[1.0], [0.0]]), np.array([[2.0, 0.0]])), Update(np.eye(2)[:, 1:], np.eye(2)[1:])
    >>> found = svd([one, two], svd_rank=1)
    >>> (found.b @ found.a).tolist(), found.lost
    ([[2.0, 0.0], [0.0, 0.0]], 1.0)
    """
    stacked = cat(updates)
    return truncated_sum(stacked.b, stacked.a, svd_rank)


def cat(updates: Sequence[Update]) -> Merged:
    """Return Σ w_i·W_i exactly: A stacks w_i·s_i·A_i, B stacks B_i, and the rank is Σ r_i.

    >>> found = cat([Update(np.eye(2)[:, :1], np.eye(2)[:1], 2.0, 3.0), Update(np.eye(2)[:, 1:], np.eye(2)[1:])])
    >>> found.b @ found.a
    array([[6., 0.],
           [0., 1.]])
    """
    rows = [update.weight * update.scale * update.a for update in updates]
    return Merged(np.concatenate([update.b for update in updates], axis=1), np.concatenate(rows))


def linear(updates: Sequence[Update]) -> Merged:
    """Return A = Σ ±√|w_i·s_i|·A_i and B = Σ √|w_i·s_i|·B_i, with the sign of w_i·s_i.

    The product is not Σ w_i·W_i: it has a cross term of B_i and A_j for every two adapters. Ranks must be equal.

    >>> found = linear([Update(np.eye(2)[:, :1], np.eye(2)[:1]), Update(np.eye(2)[:, 1:], np.eye(2)[1:])])
    >>> found.b @ found.a
    array([[1., 1.],
           [1., 1.]])
    """
    return _of_factors(updates, Elements())


def ties(updates: Sequence[Update], *, density: float, majority_sign: MajoritySign = "total") -> Merged:
    """Return TIES (arXiv 2306.01708) of A and of B, each by itself, with the weights of `linear`.

    Of each A_i and B_i the ⌊density·n⌋ largest magnitudes are kept. An element is the mean, over the adapters whose
    kept value has the elected sign, of weight times value. The sign is that of the sum of what is kept, before weights;
    with "frequency" that of the sum of its signs. It is elected of factors, whose own signs are arbitrary: −B and −A
    are the same adapter as B and A, and give another result.

    >>> one = Update(np.array([[1.0], [4.0]]), np.array([[2.0, -1.0]]))
    >>> two = Update(np.array([[3.0], [-1.0]]), np.array([[1.0, -4.0]]))
    >>> found = ties([one, two], density=0.5)
    >>> found.b.T, found.a
    (array([[3., 4.]]), array([[ 2., -4.]]))
    """
    return _of_factors(updates, Elements(density, elect=majority_sign))


def dare_linear(updates: Sequence[Update], *, density: float, seed: int = 0) -> Merged:
    """Return `linear` of A and B thinned by DARE (arXiv 2311.03099): elements are kept with probability `density`.

    What is kept is divided by `density`. Masks are functions of the seed, the module and the factors.

    >>> one = Update(np.eye(2)[:, :1], np.eye(2)[:1])
    >>> np.array_equal(dare_linear([one], density=1.0).a, linear([one]).a)
    True
    """
    return _of_factors(updates, Elements(density, is_random=True, seed=seed))


def dare_ties(
    updates: Sequence[Update], *, density: float, majority_sign: MajoritySign = "total", seed: int = 0
) -> Merged:
    """Return `ties` of A and B thinned by DARE instead of trimmed.

    >>> one = Update(np.eye(2)[:, :1], np.eye(2)[:1])
    >>> np.array_equal(dare_ties([one], density=1.0).a, ties([one], density=1.0).a)
    True
    """
    return _of_factors(updates, Elements(density, is_random=True, elect=majority_sign, seed=seed))


def magnitude_prune(updates: Sequence[Update], *, density: float) -> Merged:
    """Return `linear` of the ⌊density·n⌋ largest magnitudes of each A_i and each B_i.

    >>> magnitude_prune([Update(np.array([[1.0], [3.0]]), np.array([[2.0, -1.0]]))], density=0.5).b.T
    array([[0., 3.]])
    """
    return _of_factors(updates, Elements(density))


def ties_svd(
    updates: Sequence[Update], *, svd_rank: int, density: float, majority_sign: MajoritySign = "total"
) -> Merged:
    """Return the best approximation of rank r to TIES of the W_i, with weights w_i.

    >>> one = Update(np.array([[2.0], [0.0]]), np.array([[2.0, 0.5]]))
    >>> found = ties_svd([one, Update(-one.b, one.a)], svd_rank=1, density=0.25)
    >>> (found.b @ found.a).round(12)
    array([[4., 0.],
           [0., 0.]])
    """
    return _of_products(updates, Elements(density, elect=majority_sign), svd_rank)


def dare_linear_svd(updates: Sequence[Update], *, svd_rank: int, density: float, seed: int = 0) -> Merged:
    """Return the best approximation of rank r to Σ w_i·W_i, each W_i thinned by DARE.

    >>> found = dare_linear_svd([Update(np.eye(2), np.diag([3.0, 1.0]))], svd_rank=1, density=1.0)
    >>> (found.b @ found.a).round(12).tolist(), round(found.lost, 12)
    ([[3.0, 0.0], [0.0, 0.0]], 1.0)
    """
    return _of_products(updates, Elements(density, is_random=True, seed=seed), svd_rank)


def dare_ties_svd(
    updates: Sequence[Update], *, svd_rank: int, density: float, majority_sign: MajoritySign = "total", seed: int = 0
) -> Merged:
    """Return the best approximation of rank r to TIES of the W_i, thinned by DARE instead of trimmed.

    >>> found = dare_ties_svd([Update(np.eye(2), np.diag([3.0, 1.0]))], svd_rank=2, density=1.0)
    >>> (found.b @ found.a).round(12).tolist()
    [[3.0, 0.0], [0.0, 1.0]]
    """
    return _of_products(updates, Elements(density, is_random=True, elect=majority_sign, seed=seed), svd_rank)


def magnitude_prune_svd(updates: Sequence[Update], *, svd_rank: int, density: float) -> Merged:
    """Return the best approximation of rank r to Σ w_i·W_i, of the ⌊density·n⌋ largest magnitudes of each W_i.

    >>> found = magnitude_prune_svd([Update(np.eye(2), np.diag([3.0, 1.0]))], svd_rank=2, density=0.25)
    >>> (found.b @ found.a).round(12).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    return _of_products(updates, Elements(density), svd_rank)


def _of_factors(updates: Sequence[Update], elements: Elements) -> Merged:
    """Return what `elements` does to the A_i and to the B_i, with roots of the coefficients w_i·s_i as weights."""
    coefficients = [update.weight * update.scale for update in updates]
    roots = [math.sqrt(abs(coefficient)) for coefficient in coefficients]
    signed = [root if coefficient >= 0 else -root for root, coefficient in zip(roots, coefficients, strict=True)]
    return Merged(
        _merged_side(updates, elements, "b", [update.b for update in updates], roots),
        _merged_side(updates, elements, "a", [update.a for update in updates], signed),
    )


def _merged_side(
    updates: Sequence[Update], elements: Elements, side: str, values: Sequence[np.ndarray], weights: Sequence[float]
) -> np.ndarray:
    thinned = [
        elements.thinned(each, largest(each, elements.kept(each.size)), update.key(elements.seed, side))
        for update, each in zip(updates, values, strict=True)
    ]
    return elements.merged(thinned, weights)


def _of_products(updates: Sequence[Update], elements: Elements, rank: int) -> Merged:
    return truncated(merged_product(updates, elements), rank)
