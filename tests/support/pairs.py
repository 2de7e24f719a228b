"""Pairs of made-up models with metrics and scores, for tests."""

import itertools

import numpy as np
import pandas as pd


def all_pairs(tasks):
    """Return the pairs of T tasks as a two-level index."""
    names = [f"task{number:02d}" for number in range(tasks)]
    return pd.MultiIndex.from_tuples(itertools.combinations(names, 2), names=["model_a", "model_b"])


def make_pairs(tasks=8, metrics=4, noise=0.1, seed=0):
    """Return X, y: each metric sums effects of both tasks, their product and noise; y is the difference of two."""
    random = np.random.default_rng(seed)
    index = all_pairs(tasks)
    a, b = np.triu_indices(tasks, 1)
    of_tasks = random.standard_normal((tasks, metrics))
    X = of_tasks[a] + of_tasks[b] + of_tasks[a] * of_tasks[b] + random.standard_normal((len(index), metrics))
    y = 0.8 + 0.05 * (X[:, 0] - X[:, 1] + noise * random.standard_normal(len(index)))
    columns = [f"metric{number}" for number in range(metrics)]
    return pd.DataFrame(X, index=index, columns=columns), pd.Series(y, index=index)
