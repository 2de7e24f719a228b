"""Names of metrics: those computed from weights, and those that run models."""

from mergekern.metrics import CATALOGUE

OF_WEIGHTS = [name for name, metric in CATALOGUE.items() if not metric.runs_models]
OF_RUNS = [name for name, metric in CATALOGUE.items() if metric.runs_models]
