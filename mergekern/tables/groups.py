"""group_metrics: metrics of groups of any size, from the statistics of a zoo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from mergekern.errors import OptionError, did_you_mean
from mergekern.metrics import metric_of
from mergekern.metrics.effective_rank import (
    gap_of_values,
    layerwise_rank,
    rank_of_values,
    ratio_of_values,
    score_of_rank,
    stable_rank_of_values,
    stack_values,
)
from mergekern.metrics.geometry import Geometry
from mergekern.metrics.subspace import Frozen, SmallTensors
from mergekern.statistics import ZooStatistics
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    import pandas as pd

FROM_SINGULAR_VALUES = {
    "effective_rank": rank_of_values,
    "effective_rank_mergeability_score": lambda values: score_of_rank(rank_of_values(values), values.shape[-1]),
    "stable_rank": stable_rank_of_values,
    "spectral_gap": gap_of_values,
    "singular_value_ratio": ratio_of_values,
}
LAYERWISE = "layerwise_effective_rank"
LAYERWISE_SCORE = "layerwise_effective_rank_mergeability_score"
STACK_METRICS = (*FROM_SINGULAR_VALUES, LAYERWISE, LAYERWISE_SCORE)
# Elements of the Gram matrices of as many groups as are in memory together (times 8 bytes and about 6 arrays).
BLOCK = 1 << 20


def group_metrics(
    statistics: ZooStatistics,
    groups: Iterable[Sequence[str]],
    metrics: str | Iterable[str] = "all",
    *,
    frozen: Frozen = "exclude",
    small_tensors: SmallTensors = "include",
) -> pd.DataFrame:
    """Compute metrics of groups of two or more models from the statistics of a zoo; no weights are read.

    The effective-rank metrics have a meaning for any n: s₁ ≥ … ≥ s_n are the singular values of the n×D stack of task
    vectors, p = s/Σs. Every pairwise metric is summed up over the n(n−1)/2 pairs of the group.

    Args:
        statistics: from `mergekern.measure` or `ZooStatistics.load`.
        groups: names of the models of each group; sizes may differ, the order of the names does not matter.
        metrics, frozen, small_tensors: as for `MetricTable.from_statistics`.

    Returns:
        A row for each group, as given; the index "group" has the tuples of names. float64 columns:

        effective_rank: exp(−Σ p ln p), in [1, n]; layerwise_effective_rank: Σ_l w_l er_l / Σ_l w_l with w_l the sum of
        the n lengths ‖τ_i^l‖, over the tensors where all are ≥ 1e-10; …_mergeability_score: (n − rank)/(n − 1) clipped
        to [0, 1]; stable_rank: (Σs)²/Σs², in [1, n]; spectral_gap: (s₁ − s₂)/s₁; singular_value_ratio: s_n/s₁.

        mean_METRIC, worst_METRIC, spread_METRIC, for each metric: over the pairs, the mean, the value that promises the
        worst merge (the lowest where higher is more mergeable, otherwise the highest), and the standard deviation.

        For a group of two they are the metrics of the pair, exactly, with no spread. NaN where a pair of the group has
        no value; the notes of `MetricTable.from_statistics` say why. Units and ranges are those of the catalogue.

    Raises:
        OptionError: an unknown model, a group of fewer than two or with a model twice, a group given twice, none at
            all; metrics as for `MetricTable.from_statistics`.

    >>> import mergekern
    >>> models = {name: {"w": row} for name, row in zip("abc", np.eye(3))}
    >>> statistics = mergekern.measure(models, base={"w": np.zeros(3)})
    >>> frame = group_metrics(statistics, [("a", "b"), ("a", "b", "c")], ["effective_rank", "weight_space_angle"])
    >>> frame[["effective_rank", "mean_weight_space_angle"]].round(6).reset_index().values.tolist()
    [[('a', 'b'), 2.0, 90.0], [('a', 'b', 'c'), 3.0, 90.0]]
    """
    import pandas as pd

    groups = [group if isinstance(group, str) else tuple(group) for group in groups]
    members = _positions(statistics.models, groups)
    table = MetricTable.from_statistics(statistics, metrics, frozen=frozen, small_tensors=small_tensors)
    index = pd.Index(groups, tupleize_cols=False, name="group")
    frame = pd.DataFrame(index=index, columns=_columns(table.metrics), dtype=np.float64)
    by_size: dict[int, list[int]] = {}
    for row, group in enumerate(members):
        by_size.setdefault(len(group), []).append(row)
    for size, every in by_size.items():
        together = max(1, BLOCK // size**2)
        for start in range(0, len(every), together):
            rows = every[start : start + together]
            block = np.array([members[row] for row in rows])
            values = _pair_columns(table, block) | _stack_columns(statistics, table, block)
            frame.iloc[rows] = np.stack([values[column] for column in frame.columns], axis=1)
    return frame


def _positions(models: Sequence[str], groups: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    at = {name: position for position, name in enumerate(models)}
    found: dict[tuple[int, ...], None] = {}
    for group in groups:
        if isinstance(group, str) or len(set(group)) != len(group) or len(group) < 2:
            raise OptionError(f"a group is two or more different model names, not {group!r}")
        for name in group:
            if name not in at:
                raise OptionError(f"no model {name!r} in these statistics{did_you_mean(name, models)}; group {group!r}")
        positions = tuple(sorted(at[name] for name in group))
        if positions in found:
            raise OptionError(f"the group {group!r} is given twice (the order of the names does not matter)")
        found[positions] = None
    if not found:
        raise OptionError("no groups given; a group is two or more model names")
    return list(found)


def _columns(metrics: Sequence[str]) -> list[str]:
    stack_metrics = [name for name in metrics if name in STACK_METRICS]
    return stack_metrics + [f"{how}_{name}" for name in metrics for how in ("mean", "worst", "spread")]


def _pair_columns(table: MetricTable, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean, worst and spread of every metric over the pairs of groups (G, n)."""
    i, j = np.array(list(combinations(range(groups.shape[1]), 2))).T
    found: dict[str, np.ndarray] = {}
    for name in table.metrics:
        values = table.matrix(name)[groups[:, i], groups[:, j]]
        worst = values.min if metric_of(name).more_mergeable == "higher" else values.max
        found |= {f"mean_{name}": values.mean(axis=1), f"worst_{name}": worst(axis=1)}
        found[f"spread_{name}"] = values.std(axis=1)
    return found


def _stack_columns(statistics: ZooStatistics, table: MetricTable, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Return the effective-rank metrics of the n×D stacks of groups (G, n)."""
    size = groups.shape[1]
    wanted = [name for name in STACK_METRICS if name in table.metrics]
    if size == 2:
        return {name: table.matrix(name)[groups[:, 0], groups[:, 1]] for name in wanted}
    values = stack_values(Geometry.from_statistics(statistics), groups)
    found = {name: FROM_SINGULAR_VALUES[name](values) for name in wanted if name in FROM_SINGULAR_VALUES}
    if LAYERWISE in wanted or LAYERWISE_SCORE in wanted:
        rank = layerwise_rank(
            statistics,
            lambda geometry: rank_of_values(stack_values(geometry, groups)),
            lambda norm: norm[groups].sum(axis=1),
        )
        found |= {LAYERWISE: rank, LAYERWISE_SCORE: score_of_rank(rank, size)}
    return found
