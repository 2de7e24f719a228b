"""Predictors beside what they cost: r in both regimes against seconds on this machine, as a table and as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import comb

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mergekern.study.analysis import CANDIDATES, Candidate
from mergekern.study.probing import MERGES, Timings

REGIMES = {"partner known": "r_partner_known", "both unseen": "r_both_unseen"}
COLOURS = {"metrics": "#0072b2", "probes": "#d55e00", "metrics and probes": "#cc79a7", "merges": "#009e73"}
COLOURS |= {"merges and others": "#e69f00"}


def compare(validation: pd.DataFrame, timings: Timings, models: int) -> pd.DataFrame:
    """Return what every predictor costs and how well it predicts.

    Args:
        validation: result of `analyse`.
        timings: times of metrics, probes and merges.
        models: their number.

    Returns:
        (method, predictor) -> seconds, r_partner_known, r_both_unseen. The seconds are those of what a predictor sees
        of the whole zoo: metrics, probes, and measured merges if it knows effects of models. (Every predictor is fitted
        to measured merges of other tasks, which are not counted.) Where predictions are all alike, r is 0.
    """
    r = validation["val_r"].unstack("regime").fillna(0.0).rename(columns=REGIMES)[list(REGIMES.values())]
    pairs = comb(models, 2)
    costs = [_seconds(CANDIDATES[str(name)], str(method), timings, pairs) for method, name in r.index]
    r.insert(0, "seconds", costs)
    return r


def means(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the means over the methods: a row for each predictor, in the order of `CANDIDATES`."""
    found = comparison.groupby(level="predictor").mean()
    return found.reindex([name for name in CANDIDATES if name in found.index])


def _seconds(candidate: Candidate, method: str, timings: Timings, pairs: int) -> float:
    total = sum(timings.seconds(what, "" if what == "metrics" else method) for what in candidate.features)
    if candidate.effects:
        total += timings.seconds(MERGES, method, candidate.merges or pairs)
    return total


def kind(candidate: Candidate) -> str:
    """Return what a candidate sees, one of `COLOURS`."""
    probes = any("probes" in what for what in candidate.features)
    if candidate.effects:
        return "merges and others" if candidate.features else "merges"
    return ("metrics and probes" if "metrics" in candidate.features else "probes") if probes else "metrics"


def draw(comparison: pd.DataFrame, title: str) -> bytes:
    """Return the picture as SVG: means over the methods, r against seconds, a panel for each regime."""
    frame = means(comparison)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, (regime, column) in zip(panels, REGIMES.items(), strict=True):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(regime, fontsize=10)
        axes.set_xlabel("seconds for the whole zoo")
        axes.grid(alpha=0.3)
        ordered = frame.sort_values(column)
        low, high = ordered[column].iloc[[0, -1]]
        margin = 0.1 * max(high - low, 0.1)
        axes.set_ylim(low - margin, high + margin)
        places = spread(ordered[column].tolist(), low - margin, high + margin)
        for (name, row), place in zip(ordered.iterrows(), places, strict=True):
            colour = COLOURS[kind(CANDIDATES[str(name)])]
            axes.plot(row["seconds"], row[column], "o", color=colour, markersize=4)
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6}
            axes.annotate(
                str(name), (row["seconds"], row[column]), (1.03, place), textcoords=axes.get_yaxis_transform(),
                fontsize=7, color=colour, va="center", arrowprops=line, annotation_clip=False,
            )  # fmt: skip
    panels[0].set_ylabel("r on held-out pairs, mean of the methods")
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    # The same bytes for the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "mergekern", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def spread(values: Sequence[float], low: float, high: float) -> list[float]:
    """Return places for labels of ascending values: near to them, in order, and no two at one height.

    >>> spread([0.0, 0.0, 1.0], 0.0, 1.0)
    [0.0, 0.25, 1.0]
    """
    gap = (high - low) / (len(values) + 1)
    places = list(values)
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    # Down again, as far as they were pushed beyond the top.
    limit = high
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places
