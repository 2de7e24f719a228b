"""Numbers and metrics in words, as the page writes them."""

from __future__ import annotations

import math

from mergekern.metrics.catalogue import Metric


def about(metric: Metric) -> str:
    """Return formula, range and direction of a metric in a line.

    >>> from mergekern.metrics import metric_of
    >>> about(metric_of("stable_rank"))
    '(Σs)² / Σs², 1 to 2, lower is more mergeable'
    """
    return f"{metric.formula}, {value_range(metric)}, {metric.more_mergeable} is more mergeable"


def value_range(metric: Metric) -> str:
    """Return a metric's range in words.

    >>> from mergekern.metrics import metric_of
    >>> value_range(metric_of("task_vector_l2_distance"))
    '0 and up'
    """
    low, high = metric.range
    if math.isinf(low):
        return "any number"
    return f"{low:g} and up" if math.isinf(high) else f"{low:g} to {high:g}"


def number(value: float) -> str:
    """Return a number with four significant digits, as the page's scripts write it.

    >>> [number(value) for value in (0.123456, 2.0, 0.0000123456, math.nan)]
    ['0.1235', '2.000', '1.235e-5', '—']
    """
    if not math.isfinite(value):
        return "—"
    size = abs(value)
    if size == 0:
        return "0"
    if not 1e-3 <= size < 1e5:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa}e{int(exponent):+d}"
    return f"{value:.0f}" if size >= 9999.5 else f"{value:#.4g}".rstrip(".")


def percent(share: float) -> str:
    """Return a share in percent.

    >>> percent(0.956), percent(math.nan)
    ('96 %', '—')
    """
    return f"{100 * share:.0f} %" if math.isfinite(share) else "—"


def count(number_of: int, thing: str) -> str:
    """Return a number and what is counted.

    >>> count(1, "pair"), count(1200, "pair")
    ('1 pair', '1,200 pairs')
    """
    return f"{number_of:,} {thing}{'' if number_of == 1 else 's'}"
