"""The metrics: pure functions from statistics to an (N, N) matrix, one module a category, listed in `catalogue`."""

from mergekern.metrics.catalogue import BOTTOM, CATALOGUE, MERGE_PROBES, MODEL_SCORES, RANKED_BY, Metric
from mergekern.metrics.names import as_names, in_order, is_metric, metric_of, select

__all__ = [
    "BOTTOM", "CATALOGUE", "MERGE_PROBES", "MODEL_SCORES", "RANKED_BY", "Metric", "as_names", "in_order", "is_metric",
    "metric_of", "select",
]  # fmt: skip
