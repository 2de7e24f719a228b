"""Predictors beside what they cost: r in both regimes against seconds on this machine, as a table and as a picture."""

from __future__ import annotations

import io
from math import comb

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from study.analysis import CANDIDATES, Candidate
from study.probing import MERGES, Timings

REGIMES = {"partner known": "r_partner_known", "both unseen": "r_both_unseen"}
COLOURS = {"metrics": "#0072b2", "probes": "#d55e00", "metrics and probes": "#cc79a7", "merges": "#009e73"}
COLOURS |= {"merges and others": "#e69f00"}


def compare(validation: pd.DataFrame, timings: Timings, models: int) -> pd.DataFrame:
    """Return what every predictor costs and how well it predicts.

    Args:
        validation: of `analyse`.
        timings: of metrics, probes and merges.
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
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (regime, column) in zip(panels, REGIMES.items(), strict=True):
        seen = set()
        for name, row in frame.iterrows():
            what = kind(CANDIDATES[str(name)])
            label = None if what in seen else what
            seen.add(what)
            axes.plot(row["seconds"], row[column], "o", color=COLOURS[what], markersize=5, label=label)
            axes.annotate(str(name), (row["seconds"], row[column]), (4, 2), textcoords="offset points", fontsize=6.5)
        axes.set_xscale("log")
        axes.set_title(regime, fontsize=10)
        axes.set_xlabel("seconds for the whole zoo")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("r on held-out pairs, mean of the methods")
    panels[0].legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    # The same bytes for the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "mergekern", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
