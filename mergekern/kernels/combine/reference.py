"""The float64 oracle of `combine`: the formulas in NumPy, as they are written, and their parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.combine import LEAST_DIVISOR, Rule, Tally

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def combine(
    base: torch.Tensor | None, tuned: Sequence[torch.Tensor], rule: Rule, start: int = 0
) -> tuple[np.ndarray, Tally]:
    """Return the merged elements, (D,) float64, and the tally.

    Args:
        base: (D,), any float dtype; None for zero.
        tuned: N × (D,).
        rule: how the task vectors are merged.
        start: index of the first element in the tensor, for masks.

    >>> base, tuned = torch.zeros(3), [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 1.0, 0.0])]
    >>> combine(base, tuned, Rule("elect", (1.0, 1.0)))[0]
    array([ 2. , -2. ,  0.5])
    """
    origin = np.zeros(tuned[0].numel()) if base is None else base.to(torch.float64).numpy()
    deltas = np.stack([tensor.to(torch.float64).numpy() for tensor in tuned]) - origin
    non_finite = int((~np.isfinite(deltas)).sum())
    if rule.spread:
        deltas = np.where(variances(deltas) >= rule.spread, deltas, 0.0)
    if rule.thresholds is not None:
        deltas = trim(deltas, rule.thresholds)
    if rule.limits is not None:
        deltas = np.where(np.abs(deltas) <= np.array(rule.limits)[:, None], deltas, 0.0)
    if rule.keys is not None:
        deltas = drop(deltas, rule.keys, rule.dropped_below, start)
    holds = deltas != 0
    ballots = None if rule.ballots is None else ordered_sum(deltas * np.array(rule.ballots)[:, None])
    deltas = deltas * np.array(rule.weights)[:, None]
    total = ordered_sum(deltas)
    votes = ordered_sum(np.sign(np.nan_to_num(deltas))) if rule.by_count else total
    votes = ballots if ballots is not None and rule.elects else votes
    signs = np.sign(np.nan_to_num(votes))
    undecided = 0
    if rule.elects:
        undecided = int(((votes == 0) & (deltas != 0).any(axis=0)).sum())
        elected = np.where(signs == 0, rule.majority, signs)
        if rule.consensus == "elect":
            merged = disjoint_mean(deltas, elected, rule.counts, rule.floor)
        elif rule.consensus == "elect_sum":
            merged = ordered_sum(np.where(deltas * elected > 0, deltas, 0.0))
        else:
            merged = elected * (deltas * elected).max(axis=0, initial=0.0)
    elif rule.consensus == "held":
        merged = mean_of_holders(total, holds, rule.counts, rule.alone or (1.0,) * len(deltas))
    elif rule.consensus == "agree":
        merged = np.where(agreeing(deltas, total, rule.share) >= rule.needed, total, 0.0)
    else:
        merged = total / rule.total_weight if rule.consensus == "mean" else total
    return origin + rule.factor * merged, Tally(int(signs.sum()), undecided, non_finite)


def trim(deltas: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return deltas (N, D), with elements below the model's threshold set to zero.

    >>> trim(np.array([[1.0, -3.0, 2.0]]), [2.0])
    array([[ 0., -3.,  2.]])
    """
    return np.where(np.abs(deltas) >= np.array(thresholds)[:, None], deltas, 0.0)


def drop(deltas: np.ndarray, keys: Sequence[int], dropped_below: Sequence[int], start: int = 0) -> np.ndarray:
    """Return deltas (N, D) with zeros where the masks drop elements."""
    rows = zip(keys, dropped_below, deltas, strict=True)
    return np.stack([np.where(uniform(key, start, len(row)) < below, 0.0, row) for key, below, row in rows])


def uniform(key: int, start: int, count: int) -> np.ndarray:
    """Return the 53-bit uniform numbers of elements [start, start + count) for a mask's key.

    >>> uniform(7, 2, 2).tolist() == uniform(7, 0, 4)[2:].tolist()
    True
    """
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GOLDEN
        for shift, factor in _MIX:
            z = (z ^ (z >> shift)) * factor
    return (z ^ (z >> np.uint64(31))) >> np.uint64(11)


def disjoint_mean(deltas: np.ndarray, signs: np.ndarray, weights: Sequence[float], floor: float = 0.0) -> np.ndarray:
    """Return, for each element, the weighted mean of the (already weighted) deltas that have the elected sign.

    Where weights of both signs cancel, it is the sum. With a floor, weights sum to no less than that.

    >>> disjoint_mean(np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([1.0, -1.0]), [1.0, 1.0])
    array([ 2., -1.])
    """
    agree = deltas * signs > 0
    weight = ordered_sum(np.where(agree, np.array(weights)[:, None], 0.0))
    total = ordered_sum(np.where(agree, deltas, 0.0))
    if floor > 0:
        return total / np.where(weight > floor, weight, floor)
    return total / np.where(np.abs(weight) >= LEAST_DIVISOR, weight, 1.0)


def mean_of_holders(
    total: np.ndarray, holds: np.ndarray, weights: Sequence[float], alone: Sequence[float]
) -> np.ndarray:
    """Return, for each element, a sum over the weights of the models that hold it, times a factor of one alone.

    >>> mean_of_holders(np.array([6.0, 2.0]), np.array([[True, True], [True, False]]), [1.0, 1.0], [1.5, 1.0])
    array([3., 3.])
    """
    weight = ordered_sum(np.where(holds, np.array(weights)[:, None], 0.0))
    factor = ordered_sum(np.where(holds, np.array(alone)[:, None], 0.0))
    return total * np.where(holds.sum(axis=0) == 1, factor, 1.0) / np.where(weight > 0, weight, 1.0)


def variances(deltas: np.ndarray) -> np.ndarray:
    """Return the variance of each element of deltas (N, D) over the models.

    >>> variances(np.array([[1.0, 2.0], [3.0, 2.0]]))
    array([1., 0.])
    """
    mean = ordered_sum(deltas) / len(deltas)
    return ordered_sum((deltas - mean) ** 2) / len(deltas)


def agreeing(deltas: np.ndarray, total: np.ndarray, share: float) -> np.ndarray:
    """Return the number of models in which each element stands out against the sum of the others.

    >>> agreeing(np.array([[4.0, 1.0], [1.0, 5.0]]), np.array([5.0, 6.0]), 0.4)
    array([1, 1])
    """
    return (np.abs(deltas) > share * np.abs(total - deltas)).sum(axis=0)


def ordered_sum(rows: np.ndarray) -> np.ndarray:
    """Return the sum over the first axis, added in order."""
    total = np.zeros(rows.shape[1:])
    for row in rows:
        total = total + row
    return total
