"""plan_measurements: the pairs to merge and measure next, so that the additive model predicts all other pairs best.

This is optimal design on a graph whose nodes are models and whose edges are measured pairs. Under the model
y_ab = μ + t_a + t_b + e, the variance of a prediction depends on the edges alone, not on the scores. The plan can
therefore be made before the first merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import combinations
from numbers import Integral

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError, did_you_mean
from mergekern.prediction.pairs import pair_key
from mergekern.tables.frames import INDEX

# Variances of a task effect and of the mean, in residual variances. The first is about that of the study's data; the
# second is so large that the mean is free.
TASK_RATIO = 10.0
MEAN_RATIO = 1e6
# Passes over the plan in which each pair may be exchanged for a better one.
EXCHANGES = 5
# Sizes of the groups whose pairs a plan may start from. 20 merges of 20 models: 1.213 from them, 1.293 greedily.
GROUPS = (3, 4, 5)
RANDOM_STARTS = 8
# With more models, the greedy plan is the only start: an exchange costs time of order models³.
MOST_MODELS = 60


class Design:
    """Posterior covariance of the mean and T task effects, updated as pairs are measured, in residual variances."""

    def __init__(self, tasks: int, ratio: float = TASK_RATIO) -> None:
        first, second = np.triu_indices(tasks, 1)
        self.pairs = np.stack([first, second], axis=1)
        self.covariance = np.diag([MEAN_RATIO, *np.full(tasks, ratio)])
        # The sum of r rᵀ over all pairs; r is 1 at the mean (first) and at both tasks of the pair. No array has a row
        # for each pair: for 1000 models, that would be 4 GB.
        self.moments = np.ones((tasks + 1, tasks + 1))
        self.moments[0, 1:] = self.moments[1:, 0] = tasks - 1
        np.fill_diagonal(self.moments, [len(self.pairs), *np.full(tasks, tasks - 1)])

    def measure(self, pair: int, sign: int = 1) -> None:
        """Add a measurement of a pair, given by its row; with sign −1, remove one."""
        places = [0, *(1 + self.pairs[pair])]
        gain = self.covariance[:, places].sum(1)
        self.covariance = self.covariance - sign * np.outer(gain, gain) / (1 + sign * gain[places].sum())

    def mean_variance(self) -> float:
        """Return the variance of predictions, averaged over all pairs; an I-optimal plan minimises it."""
        return float((self.covariance * self.moments).sum() / len(self.pairs))

    def reductions(self) -> np.ndarray:
        """Return (pairs,) amounts by which measuring each pair would lower `mean_variance`."""
        lowered = self._squares(self.covariance @ self.moments @ self.covariance)
        return lowered / (1 + self._squares(self.covariance)) / len(self.pairs)

    def _squares(self, matrix: np.ndarray) -> np.ndarray:
        """Return (pairs,) values rᵀ M r for a symmetric M."""
        first, second = 1 + self.pairs.T
        own = np.diagonal(matrix) + 2 * matrix[0]
        return matrix[0, 0] + own[first] + own[second] + 2 * matrix[first, second]


def plan_measurements(
    models: Sequence[str], k: int, measured: Iterable[Sequence[str]] = (), *, ratio: float = TASK_RATIO
) -> pd.DataFrame:
    """Choose the k pairs whose measurement lets the additive model predict all pairs best.

    Several plans are made, and the best is taken: a greedy one, plans that start from small groups of models with all
    their pairs, and plans that start from random pairs (for up to 60 models). In each, pairs are exchanged as long as
    that helps. The order is greedy, so that a prefix of the plan is a good plan too. Everything is deterministic: of
    equally good pairs, the first in the order of the models is taken.

    Args:
        models: names of the T models.
        k: number of pairs to choose.
        measured: pairs that are measured already; pairs of other models are ignored.
        ratio: variance of the effect of a model, in residual variances.

    Returns:
        A frame with the index (model_a, model_b), in the order in which to measure. Its column mean_sd is the standard
        deviation of a prediction (root of the mean variance over all pairs) after this pair and those above it are
        measured, in residual standard deviations.

    Raises:
        PredictionError: fewer than two models, a name given twice, or k outside 1 to the number of unmeasured pairs.

    >>> plan_measurements("abcd", 2).index.tolist()
    [('a', 'b'), ('c', 'd')]
    """
    names = [str(name) for name in models]
    if len(names) < 2 or len(set(names)) < len(names):
        raise PredictionError(f"{len(names)} models, {len(set(names))} names: a plan needs two or more, all different")
    if not ratio > 0:
        raise PredictionError(f"the ratio of variances must be positive, not {ratio!r}")
    at = {pair_key(pair): number for number, pair in enumerate(combinations(names, 2))}
    done = sorted({at[key] for pair in measured if (key := pair_key(pair)) in at})
    free = np.ones(len(at), dtype=bool)
    free[done] = False
    if not (isinstance(k, Integral) and 1 <= k <= free.sum()):
        raise PredictionError(f"k must be from 1 to {free.sum()}, the pairs that are not measured yet, not {k}")
    design = Design(len(names), ratio)
    for pair in done:
        design.measure(pair)
    chosen, least = _improved(design, [], free, k)
    for start in _starts(design, done, free, k) if len(names) <= MOST_MODELS else ():
        other, variance = _improved(design, start, free, k)
        if variance < least * (1 - 1e-6):
            chosen, least = other, variance
    return _as_frame(names, chosen, done, ratio)


def _best(design: Design, free: np.ndarray) -> int:
    reductions = np.where(free, design.reductions(), -np.inf)
    # Pairs that differ by rounding only count as equally good.
    return int(np.argmax(reductions >= reductions.max() * (1 - 1e-9)))


def _improved(design: Design, start: Sequence[int], free: np.ndarray, k: int) -> tuple[list[int], float]:
    """Return a plan of k free pairs that begins with a start, filled up and improved, and its mean variance."""
    design, free, chosen = copy(design), free.copy(), list(start)
    for pair in chosen:
        design.measure(pair)
        free[pair] = False
    while len(chosen) < k:
        chosen.append(_best(design, free))
        design.measure(chosen[-1])
        free[chosen[-1]] = False
    _exchange(design, chosen, free)
    return chosen, design.mean_variance()


def _starts(design: Design, done: Sequence[int], free: np.ndarray, k: int) -> Iterator[list[int]]:
    """Yield up to k free pairs each: those within groups of models, the least measured models first, or random ones."""
    models = int(design.pairs.max()) + 1
    at = np.zeros((models, models), dtype=int)
    at[design.pairs[:, 0], design.pairs[:, 1]] = at[design.pairs[:, 1], design.pairs[:, 0]] = np.arange(
        len(design.pairs)
    )
    order = np.argsort(np.bincount(design.pairs[list(done)].ravel(), minlength=models), kind="stable")
    for size in GROUPS:
        groups = [order[first : first + size] for first in range(0, models - size + 1, size)]
        pairs = [int(at[one, other]) for group in groups for one, other in combinations(group, 2)]
        yield [pair for pair in pairs if free[pair]][:k]
    for number in range(RANDOM_STARTS):
        random = np.random.default_rng(number)
        yield random.permutation(np.flatnonzero(free))[: max(k // (1 + number % 2), 1)].tolist()


def _exchange(design: Design, chosen: list[int], free: np.ndarray) -> None:
    """Replace pairs of the plan by better ones, in place (Fedorov 1972)."""
    for _ in range(EXCHANGES):
        before = list(chosen)
        for place, pair in enumerate(before):
            with_it = design.mean_variance()
            design.measure(pair, sign=-1)
            free[pair] = True
            best = _best(design, free)
            worth = design.mean_variance() - design.reductions()[best]
            chosen[place] = best if worth < with_it * (1 - 1e-9) else pair
            design.measure(chosen[place])
            free[chosen[place]] = False
        if chosen == before:
            return


def _as_frame(names: list[str], chosen: list[int], done: list[int], ratio: float) -> pd.DataFrame:
    """Return the plan, the most useful pairs first."""
    design = Design(len(names), ratio)
    for pair in done:
        design.measure(pair)
    left = np.zeros(len(design.pairs), dtype=bool)
    left[chosen] = True
    order, variances = [], []
    while left.any():
        order.append(_best(design, left))
        left[order[-1]] = False
        design.measure(order[-1])
        variances.append(design.mean_variance())
    pairs = [tuple(names[model] for model in design.pairs[pair]) for pair in order]
    index = pd.MultiIndex.from_tuples(pairs, names=INDEX)
    return pd.DataFrame({"mean_sd": np.sqrt(variances)}, index=index)


def check_models(wanted: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the names as a list, after a check that all are known.

    Raises:
        PredictionError: an unknown name.
    """
    wanted, known = list(wanted), list(known)
    for name in wanted:
        if name not in known:
            raise PredictionError(f"no model {name!r}{did_you_mean(name, known)} in the table")
    return wanted
