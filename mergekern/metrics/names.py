"""Names of metrics: those that a user asks for, and those of a table's columns, looked up in the catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mergekern.errors import OptionError, did_you_mean
from mergekern.metrics.catalogue import ADDITIONAL, CATALOGUE, MERGE_PROBES, MODEL_SCORES
from mergekern.metrics.metric import BOTTOM, Metric

# Metrics that are computed from statistics, and all whose names are those of columns.
_OF_STATISTICS = {**CATALOGUE, **ADDITIONAL}
_COLUMNS = {**_OF_STATISTICS, **MODEL_SCORES}


def is_metric(column: str) -> bool:
    """Tell whether a table's column is a metric of the catalogue, a model score, or a merge probe of some method.

    >>> [is_metric(name) for name in ("stable_rank", "solo_loss_mean[tsv]", "solo_loss_mean", "accuracy")]
    [True, True, False, False]
    """
    probe, bracket, method = column.partition("[")
    return column in _COLUMNS or (probe in MERGE_PROBES and bracket == "[" and method.endswith("]"))


def metric_of(column: str) -> Metric:
    """Return the entry of a table's column; that of a merge probe has the name of the column.

    Raises:
        OptionError: no metric has this name.

    >>> metric_of("solo_loss_mean[tsv]").more_mergeable
    'lower'
    """
    if column in _COLUMNS:
        return _COLUMNS[column]
    if not is_metric(column):
        raise OptionError(f"no metric {column!r}{did_you_mean(column, [*_COLUMNS, *MERGE_PROBES])}")
    return dataclasses.replace(MERGE_PROBES[column.partition("[")[0]], name=column)


def in_order(columns: Iterable[str]) -> list[str]:
    """Return those columns of a table that are metrics, in the catalogue's order; last model scores and merge probes.

    >>> in_order(["solo_loss_mean[tsv]", "accuracy", "stable_rank", "effective_rank"])
    ['effective_rank', 'stable_rank', 'solo_loss_mean[tsv]']
    """
    places = {name: place for place, name in enumerate((*_COLUMNS, *MERGE_PROBES))}
    return sorted(filter(is_metric, columns), key=lambda column: places[column.partition("[")[0]])


def as_names(metrics: str | Iterable[str]) -> list[str]:
    """Return the names in an argument that may be one name or several.

    Raises:
        OptionError: it is neither.

    >>> as_names("all")
    ['all']
    """
    if isinstance(metrics, str):
        return [metrics]
    try:
        return [str(name) for name in metrics]
    except TypeError:
        raise OptionError(f"metrics must be 'all', a name or several names, not {metrics!r}") from None


def select(metrics: str | Iterable[str] = "all") -> list[Metric]:
    """Return the metrics of these names, in catalogue order.

    Args:
        metrics: "all" (those of the study), one name, or several; a category's name stands for all metrics of it.

    Raises:
        OptionError: an unknown name, or none at all.

    >>> [metric.name for metric in select(["stable_rank", "effective_rank"])]
    ['effective_rank', 'stable_rank']
    """
    wanted = set()
    for name in as_names(metrics):
        matching = {m.name for m in _OF_STATISTICS.values() if name in (m.name, m.category)}
        matching |= set(CATALOGUE) if name == "all" else set()
        if any(name in (m.name, m.category) for m in MERGE_PROBES.values()):
            raise OptionError(
                f"{name}: merge probes are measured by mergekern.merge_probes (--merge-probes on the command line)"
            )
        if any(name in (m.name, m.category) for m in MODEL_SCORES.values()):
            raise OptionError(f"{name}: model scores come from a list of models, by mergekern.model_scores")
        if not matching:
            raise OptionError(
                f"unknown metric {name!r}{did_you_mean(name, _OF_STATISTICS)}; `mergekern metrics --list` lists all"
            )
        wanted |= matching
    if not wanted:
        raise OptionError("no metrics asked for; give names, or 'all'")
    return [metric for metric in _OF_STATISTICS.values() if metric.name in wanted]


def why_exact_only(name: str) -> str:
    """Return what svd="randomized" lacks for a metric of `EXACT_ONLY`.

    >>> why_exact_only("singular_task_interference")
    'does not tell how far single singular vectors are off'
    """
    return "finds leading vectors only" if name in BOTTOM else "does not tell how far single singular vectors are off"
