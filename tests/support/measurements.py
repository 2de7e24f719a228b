"""Metrics and scores of pairs: made up, or the study's own where its files are at hand."""

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mergekern.metrics import CATALOGUE
from mergekern.tables.metric_table import MetricTable

PUBLISHED = Path(os.environ.get("MERGEKERN_PUBLISHED", Path(__file__).parents[3] / "shared" / "published"))
METHODS = ("weight_avg", "tsv", "arithmetic", "isotropic")
needs_published = pytest.mark.skipif(
    not (PUBLISHED / "accuracy_vit_b16.csv").is_file(), reason="the study's measurements are not at hand"
)


def make_table(tasks=10, metrics=5, seed=0):
    """Return a table of metrics, each a sum of effects of the two models and of the pair."""
    random = np.random.default_rng(seed)
    values = {}
    for name in list(CATALOGUE)[:metrics]:
        own = random.standard_normal(tasks)
        pair = random.standard_normal((tasks, tasks))
        values[name] = within(own[:, None] + own[None, :] + 0.7 * (pair + pair.T), *CATALOGUE[name].range)
    return MetricTable([f"task{number}" for number in range(tasks)], values)


def within(values, low, high):
    """Return values moved and scaled into the range of a metric."""
    if np.isinf(low):
        return values
    part = (values - values.min()) / (values.max() - values.min())
    return low + (1.0 if np.isinf(high) else high - low) * part


def make_scores(table, metric_share=0.0, noise=0.01, seed=0):
    """Return scores named accuracy: effects of the models, a share of the first metric, and noise."""
    random = np.random.default_rng(seed)
    effects = dict(zip(table.models, 0.05 * random.standard_normal(len(table.models)), strict=True))
    frame = table.to_pandas()
    own = np.array([effects[a] + effects[b] for a, b in frame.index])
    y = 0.8 + own + metric_share * frame.iloc[:, 0].to_numpy() + noise * random.standard_normal(len(frame))
    return pd.Series(y, index=frame.index, name="accuracy")


def published_table():
    """Return the study's 28 metrics of 190 pairs."""
    return MetricTable.load(PUBLISHED / "metrics_vit_b16.csv")


def write_scores(path, scores, method="tsv"):
    """Write scores in the study's format."""
    frame = scores.rename("accuracy").rename_axis(["model_a", "model_b"]).reset_index()
    frame.insert(0, "method", method)
    frame.to_csv(path, index=False)
    return path


def all_pairs(names):
    """Return (n, 2) pairs of names."""
    return np.array(list(combinations(names, 2)))
