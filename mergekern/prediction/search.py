"""next_merges: the merges to measure next in search of the best pair and method, by Bayesian optimisation.

The score of a merge is modelled as its prior plus a Gaussian process: effects of the method, of each model, of the
pair, and of each model under the method; a smooth function of the pair's metrics, which all methods share, and one of
the method's own; and a residual. Their ratios of variance are fixed, and their scale is that of the scores measured so
far. So a measurement by one method tells something of all others, and one of a pair something of the pairs of its
models and of pairs that are like it. The next merge is the one whose expected improvement over the best measured one is
largest (Jones et al. 1998); of several at a time, each is chosen as though those before had given what was expected.

What is lost beside the best of all merges where a third of them is measured, in points of accuracy: 0.06 on average, at
most 1.7, and by chance 1.8 (30 sets of 4 or 5 methods, on 6 zoos of 6 small networks on which nothing was tuned);
without the two metrics 0.5. On the study's data (arXiv 2601.22285), 20 of 180 merges of 10 models: 0.01, by chance 1.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm

from mergekern.prediction.scalers import RankNormalScaler

# A method and two models.
Merge = tuple[str, str, str]
# The metrics by which pairs are like each other; others and more of them were no better.
LIKENESS = ("task_vector_cosine_similarity", "task_vector_l2_distance")
# Variances in residual variances; chosen by hand on 6 other zoos and on the study's merges.
MEAN, METHOD, TASK, PAIR, TASK_AND_METHOD, METRICS, METRICS_AND_METHOD = 1e4, 30.0, 3.0, 3.0, 1.0, 30.0, 30.0
# Standard deviation of residuals where fewer than two measured merges tell.
UNKNOWN_SCALE = 0.01


def next_merges(
    prior: Mapping[tuple[str, str], float],
    methods: Sequence[str],
    measured: Mapping[Merge, float | None],
    count: int,
    metrics: pd.DataFrame | None = None,
) -> list[Merge]:
    """Return the merges to measure next, the most promising first.

    Without any measured merge these are all methods for the pair with the largest prior, which tells the methods apart.
    Everything is deterministic; of equally promising merges, the first in the order of pairs and methods is taken.

    Args:
        prior: what is expected of each pair before any merge, 0 where nothing is known.
        methods: names of the merge methods.
        measured: (method, model_a, model_b) -> score; None for a merge that was tried and has none.
        count: number of merges to choose; fewer are returned where fewer are left.
        metrics: a row for each pair, with the columns `LIKENESS`, as `MetricTable.to_pandas` returns them; None where
            they are not known.

    >>> prior = {("a", "b"): 0.5, ("a", "c"): 0.7, ("b", "c"): 0.6}
    >>> next_merges(prior, ["ties", "tsv"], {}, 2)
    [('ties', 'a', 'c'), ('tsv', 'a', 'c')]
    >>> next_merges(prior, ["ties", "tsv"], {("ties", "a", "c"): 0.6, ("tsv", "a", "c"): 0.8}, 2)
    [('tsv', 'b', 'c'), ('tsv', 'a', 'b')]
    """
    pairs = sorted(prior, key=lambda pair: -prior[pair])
    merges = [(method, *pair) for pair, method in product(pairs, methods)]
    if not measured:
        return merges[: min(count, len(methods))]
    process = _Process(merges, methods, _scaled(metrics, pairs), np.array([prior[a, b] for _, a, b in merges]))
    at = {merge: place for place, merge in enumerate(merges)}
    known = {at[merge]: score for merge, score in measured.items() if score is not None}
    left = np.ones(len(merges), dtype=bool)
    left[[at[merge] for merge in measured]] = False
    best = max(known.values(), default=-np.inf)
    chosen: list[Merge] = []
    believed: dict[int, float] = {}
    scale = process.scale(known)
    while left.any() and len(chosen) < count:
        mean, sd = process.posterior(known | believed)
        worth = np.where(left, _improvement(mean, scale * sd, best), -np.inf)
        # Of those that differ by rounding only, the first.
        place = int(np.argmax(worth >= worth.max() - 1e-12 * abs(worth.max())))
        chosen.append(merges[place])
        believed[place] = float(mean[place])
        left[place] = False
    return chosen


def _scaled(metrics: pd.DataFrame | None, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return (pairs, metrics) values that are normal over the pairs; those that tell nothing are left out."""
    if metrics is None:
        return np.zeros((len(pairs), 0))
    columns = [name for name in LIKENESS if name in metrics]
    rows = metrics[columns].reindex(pd.MultiIndex.from_tuples(pairs)).to_numpy(dtype=np.float64)
    rows = rows[:, [bool(np.isfinite(column).all() and np.ptp(column) > 0) for column in rows.T]]
    return RankNormalScaler().fit_transform(rows) if rows.shape[1] else rows


def _improvement(mean: np.ndarray, sd: np.ndarray, best: float) -> np.ndarray:
    """Return how far each merge is expected to exceed the best one: the mean of max(0, score - best)."""
    if not np.isfinite(best):
        return mean
    z = (mean - best) / sd
    return (mean - best) * norm.cdf(z) + sd * norm.pdf(z)


class _Process:
    """The Gaussian process of the scores of all merges, in residual standard deviations.

    Args:
        merges: all of them, for each pair by each method.
        methods: their names.
        metrics: (pairs, metrics) scaled values.
        prior: expected score of each merge.
    """

    def __init__(self, merges: Sequence[Merge], methods: Sequence[str], metrics: np.ndarray, prior: np.ndarray) -> None:
        names = {name: number for number, name in enumerate(sorted({name for merge in merges for name in merge[1:]}))}
        self._method = np.array([methods.index(merge[0]) for merge in merges])
        self._models = np.array([[names[merge[1]], names[merge[2]]] for merge in merges])
        self._metrics = np.repeat(metrics, len(methods), axis=0)
        self._prior = prior

    def posterior(self, scores: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of the score of every merge, given some by their places, and its standard deviation."""
        places, weights, factor = self._solved(scores)
        to_places = self._covariance(np.arange(len(self._prior)), places)
        of_metrics = (METRICS + METRICS_AND_METHOD) * bool(self._metrics.shape[1])
        own = MEAN + METHOD + 2 * (TASK + TASK_AND_METHOD) + PAIR + of_metrics + 1
        variance = own - (to_places * cho_solve(factor, to_places.T).T).sum(1)
        return self._prior + to_places @ weights, np.sqrt(np.maximum(variance, 1e-9))

    def scale(self, scores: Mapping[int, float]) -> float:
        """Return the standard deviation of a residual, as the measured merges tell it."""
        if len(scores) < 2:
            return UNKNOWN_SCALE
        places, weights, _ = self._solved(scores)
        differences = np.array(list(scores.values())) - self._prior[places]
        return max(float(np.sqrt(max(differences @ weights, 0.0) / (len(places) - 1))), 1e-9)

    def _solved(self, scores: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, bool]]:
        """Return the places of the scores, their weights in a prediction, and the factor of their covariance."""
        places = np.array(list(scores), dtype=int)
        factor = cho_factor(self._covariance(places, places) + np.eye(len(places)))
        return places, cho_solve(factor, np.array(list(scores.values())) - self._prior[places]), factor

    def _covariance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the (m, n) covariances of merges, given by their places; without residuals."""
        a, b = self._models[first][:, None], self._models[second][None]
        shared = (a[..., :, None] == b[..., None, :]).sum((-1, -2))
        same_method = self._method[first][:, None] == self._method[second][None]
        found = MEAN + same_method * (METHOD + TASK_AND_METHOD * shared) + TASK * shared + PAIR * (shared == 2)
        if not self._metrics.shape[1]:
            return found
        apart = ((self._metrics[first][:, None] - self._metrics[second][None]) ** 2).mean(-1)
        return found + np.exp(-apart / 2) * (METRICS + METRICS_AND_METHOD * same_method)
