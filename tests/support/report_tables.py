"""Made-up tables and scores for reports."""

import numpy as np
import pandas as pd

from mergekern import MetricTable
from mergekern.metrics import CATALOGUE
from tests.support.measurements import within

HOSTILE = "<img src=x onerror=alert(1)>"


def make_table(models=6, layers=3, seed=0, missing=(), names=None, all_have_layers=False, metrics=tuple(CATALOGUE)):
    """Return a table of every metric, without values for `missing`. As in a real table, some have none per layer."""
    rng = np.random.default_rng(seed)

    def matrix(name):
        values = rng.standard_normal((models, models))
        return within(values + values.T, *CATALOGUE[name].range)

    values = {name: matrix(name) for name in metrics}
    for name, pairs in missing:
        for a, b in pairs:
            values[name][[a, b], [b, a]] = np.nan
    tensors = [f"blocks.{layer}.weight" for layer in range(layers)]
    alone = {
        name: {tensor: matrix(name) for tensor in tensors}
        if all_have_layers or metric.needs in ("inner products", "spectra", "encoder_gradients")
        else {}
        for name, metric in ((name, CATALOGUE[name]) for name in metrics)
    }
    names = names or [f"model_{index}" for index in range(models)]
    provenance = {"options": {"frozen": "exclude", "top_k": 10}, "backend": "cpu"}
    return MetricTable(names, values, alone if layers else None, ["a tensor & its <note>"], provenance)


def make_scores(table, methods=("ties", "tsv"), seed=0, unmeasured=3):
    """Return accuracies by method and pair: an effect of each model, a share of the first metric, and noise."""
    rng = np.random.default_rng(seed)
    frame = table.to_pandas()
    scores = {}
    for method in methods:
        effects = dict(zip(table.models, 0.05 * rng.standard_normal(len(table.models)), strict=True))
        values = [0.8 + effects[a] + effects[b] for a, b in frame.index]
        values += 0.02 * frame[table.metrics[0]].to_numpy() + 0.005 * rng.standard_normal(len(frame))
        scores[method] = pd.Series(values, index=frame.index, name="accuracy")
        scores[method].iloc[rng.choice(len(frame), unmeasured, replace=False)] = np.nan
    return scores


def write_scores(scores, path):
    """Write scores as CSV in the study's format."""
    frame = pd.concat(scores, names=["method"]).rename("accuracy")
    frame.to_csv(path)
    return path
