"""The metrics: pure functions from statistics to an (N, N) matrix, one module a category, listed in `catalogue`."""

from mergekern.metrics.catalogue import CATALOGUE, RANKED_BY, Metric, as_names, select

__all__ = ["CATALOGUE", "RANKED_BY", "Metric", "as_names", "select"]
