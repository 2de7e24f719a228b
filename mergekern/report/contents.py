"""Contents of a report: every number in it, computed from a table before anything is drawn.

>>> import mergekern
>>> zoo = {"a": {"w": np.array([3.0, 4.0])}, "b": {"w": np.array([3.0, -4.0])}, "c": {"w": np.array([0.0, 5.0])}}
>>> table = mergekern.compute_all(zoo, base={"w": np.zeros(2)}, metrics="task_vector_cosine_similarity")
>>> gather(table).summary[["lowest", "highest", "best_a", "best_b"]].to_dict("index")
{'task_vector_cosine_similarity': {'lowest': -0.8, 'highest': 0.8, 'best_a': 'a', 'best_b': 'c'}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage

from mergekern.errors import OptionError, did_you_mean
from mergekern.metrics import RANKED_BY, metric_of
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    from mergekern.prediction import MergePredictor
    from mergekern.report.outcomes import Outcomes

# mergekern.prediction, whose libraries take seconds to import, is imported where it is used.

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
CORRELATIONS: tuple[Literal["pearson", "spearman"], ...] = ("pearson", "spearman")
# Leaves are put in the best order up to here: 14 ms for 200 models, and it grows with the third power.
ORDERED_MODELS = 200
# The variance of metrics is split between models and pairs up to here.
SPLIT_MODELS = 200
# A page with more values of single tensors than this, 16 MB of text, keeps only their quantiles.
LAYER_VALUES = 3_000_000


@dataclass(frozen=True)
class Contents:
    """The numbers of a report on the P pairs of N models.

    Attributes:
        table: what is reported.
        first: the metric by which pairs are ranked and which is drawn until another is chosen.
        summary: a row for each metric: lowest, median, highest, missing (pairs without a value), best_a and best_b (the
            pair it finds most mergeable; None where no pair has a value).
        model_shares: share of each metric's variance over pairs that one number for each model explains, beyond what as
            many numbers would explain of noise; NaN where pairs are too few, or models more than SPLIT_MODELS.
        correlations: "pearson" and "spearman": (metrics, metrics), over the pairs that have both values.
        orders: for each metric, (1 + tensors, N) models in the order of a clustering by its values: of the whole
            models, then of each tensor in `layers`.
        layers: for each metric that has them, the values of every tensor alone, pairs × tensors.
        spread: the same as quantiles over the pairs, QUANTILES × tensors.
        with_layers: whether a page has room for `layers`, or for `spread` alone.
        outcomes: measured and predicted scores of merges; None without any.
    """

    table: MetricTable
    first: str
    summary: pd.DataFrame
    model_shares: pd.Series
    correlations: dict[str, pd.DataFrame]
    orders: dict[str, np.ndarray]
    layers: dict[str, pd.DataFrame]
    spread: dict[str, pd.DataFrame]
    outcomes: Outcomes | None

    @property
    def with_layers(self) -> bool:
        return sum(frame.size for frame in self.layers.values()) <= LAYER_VALUES


def gather(
    table: MetricTable,
    first: str | None = None,
    scores: Mapping[str, pd.Series] | None = None,
    predictors: Iterable[MergePredictor] = (),
) -> Contents:
    """Compute everything that a report shows.

    Args:
        table: metrics of two models or more, at least one metric.
        first: the metric shown first [default: RANKED_BY, where the table has it].
        scores: what was measured of merged pairs, for each merge method.
        predictors: predictors of such scores, at most one for a method.

    Raises:
        OptionError: the table has no metric, or not this one; predictors or scores that do not go together.
        PredictionError: scores of models that are not in the table, or a predictor of metrics that are not.
    """
    if not table.metrics:
        raise OptionError("this table has no metric of the catalogue; there is nothing to report")
    if first is None:
        first = RANKED_BY if RANKED_BY in table.metrics else table.metrics[0]
    elif first not in table.metrics:
        raise OptionError(f"no metric {first!r} in this table{did_you_mean(first, table.metrics)}")
    from mergekern.report.outcomes import gather_outcomes

    outcomes = gather_outcomes(table, scores, predictors)
    values = table.to_pandas()
    layers = {}
    if table.has_layers:
        layers = {name: frame for name in table.metrics if (frame := table.per_layer(name)).shape[1]}
    contents = Contents(
        table,
        first,
        summarise(values),
        _model_shares(values, len(table.models)),
        {kind: values.corr(method=kind, min_periods=3) for kind in CORRELATIONS},
        {},
        layers,
        {name: frame.quantile(list(QUANTILES)) for name, frame in layers.items()},
        outcomes,
    )
    contents.orders.update(_orders(values, layers if contents.with_layers else {}, len(table.models)))
    return contents


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """Return what `Contents.summary` holds, from one column a metric and one row a pair."""
    rows = {}
    for name, column in values.items():
        best: Any = (None, None)
        if column.notna().any():
            best = column.idxmax() if metric_of(str(name)).more_mergeable == "higher" else column.idxmin()
        rows[name] = [column.min(), column.median(), column.max(), int(column.isna().sum()), *best]
    types = {"lowest": float, "median": float, "highest": float, "missing": int}
    columns = [*types, "best_a", "best_b"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=object).astype(types)


def _model_shares(values: pd.DataFrame, models: int) -> pd.Series:
    from mergekern.errors import PredictionError
    from mergekern.prediction import variance_components

    shares = pd.Series(np.nan, index=values.columns)
    for name in shares.index if models <= SPLIT_MODELS else ():
        try:
            shares[name] = max(0.0, variance_components(values[name]).adjusted_tasks)
        except PredictionError:  # all values are equal, or missing: there is nothing to split
            continue
    return shares


def metric_title(name: str) -> str:
    """Return a metric's name as words.

    >>> metric_title("task_vector_l2_distance")
    'Task vector L2 distance'
    >>> metric_title("solo_loss_mean[weight_average]")
    'Solo loss mean, weight_average'
    """
    metric, of_method, method = name.removesuffix("]").partition("[")
    words = metric.replace("_", " ").replace(" l2 ", " L2 ")
    return words[:1].upper() + words[1:] + (f", {method}" if of_method else "")


def leaf_order(values: np.ndarray, models: int, more_mergeable: str) -> np.ndarray:
    """Return the models in an order that puts those beside each other which a metric finds mergeable.

    The leaves of average-linkage clustering, two models being as far apart as their value is from the most mergeable
    one; a pair without a value is as far apart as the least mergeable one.

    Args:
        values: (P,) of the pairs, in the order of the table.
        models: their number N.
        more_mergeable: "higher" or "lower".

    >>> leaf_order(np.array([0.1, 0.9, 0.2]), 3, "higher").tolist()  # the first and the last belong together
    [1, 2, 0]
    """
    known = np.isfinite(values)
    if models < 3 or not known.any():
        return np.arange(models)
    best = values[known].max() if more_mergeable == "higher" else values[known].min()
    distance = np.abs(best - values)
    distance[~known] = distance[known].max()
    return leaves_list(linkage(distance, "average", optimal_ordering=models <= ORDERED_MODELS))


def _orders(values: pd.DataFrame, layers: Mapping[str, pd.DataFrame], models: int) -> dict[str, np.ndarray]:
    orders = {}
    for name in map(str, values):
        columns = [values[name].to_numpy()]
        if name in layers:
            columns += list(layers[name].to_numpy().T)
        more = metric_of(name).more_mergeable
        orders[name] = np.stack([leaf_order(column, models, more) for column in columns])
    return orders
