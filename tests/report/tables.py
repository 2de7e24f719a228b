"""Tables to report on, without a zoo behind them."""

import numpy as np

from mergekern import MetricTable
from mergekern.metrics import CATALOGUE

HOSTILE = "<img src=x onerror=alert(1)>"


def make_table(models=6, layers=3, seed=0, missing=(), names=None, all_have_layers=False, metrics=tuple(CATALOGUE)):
    """A table of every metric, without values for `missing`; as in truth, some metrics have no values of layers."""
    rng = np.random.default_rng(seed)

    def matrix():
        values = rng.standard_normal((models, models))
        return values + values.T

    values = {name: matrix() for name in metrics}
    for name, pairs in missing:
        for a, b in pairs:
            values[name][[a, b], [b, a]] = np.nan
    tensors = [f"blocks.{layer}.weight" for layer in range(layers)]
    alone = {
        name: {tensor: matrix() for tensor in tensors}
        if all_have_layers or metric.needs in ("inner products", "spectra", "encoder_gradients")
        else {}
        for name, metric in ((name, CATALOGUE[name]) for name in metrics)
    }
    names = names or [f"model_{index}" for index in range(models)]
    provenance = {"options": {"frozen": "exclude", "top_k": 10}, "backend": "cpu"}
    return MetricTable(names, values, alone if layers else None, ["a tensor & its <note>"], provenance)
