"""The metrics: pure functions from statistics to an (N, N) matrix, one module a category, listed in `catalogue`."""

from mergekern.metrics.catalogue import ADDITIONAL, CATALOGUE, MERGE_PROBES, MODEL_SCORES, RANKED_BY
from mergekern.metrics.metric import BOTTOM, EXACT_ONLY, OF_MATRICES, Metric
from mergekern.metrics.names import as_names, in_order, is_metric, metric_of, select, why_exact_only

__all__ = [
    "ADDITIONAL", "BOTTOM", "CATALOGUE", "EXACT_ONLY", "MERGE_PROBES", "MODEL_SCORES", "OF_MATRICES", "RANKED_BY",
    "Metric", "as_names", "in_order", "is_metric", "metric_of", "select", "why_exact_only",
]  # fmt: skip
