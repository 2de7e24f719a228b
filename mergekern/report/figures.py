"""Contents as figures for a paper, by matplotlib: one PDF with a page for each, or one PNG for each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from mergekern.metrics import metric_of
from mergekern.report.contents import QUANTILES, Contents, metric_title
from mergekern.report.outcomes import Outcome, Outcomes

MARKS = "osD^Px"
BEST_PAIRS = 20
NAMED_MODELS = 60
# Okabe and Ito's colours, which readers with colour-vision deficiency tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Text stays text in a PDF, and no date makes two files of the same contents differ.
SETTINGS: Any = {"pdf.fonttype": 42, "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
NAMES: dict[str, Any] = {"parse_math": False}  # a dollar sign in a model's name is a dollar sign


def draw(contents: Contents) -> dict[str, Figure]:
    """Return the figures by name: pairs, heatmap, layers (where the metric has them), correlations; of merges,
    accuracy, budgets, coefficients and effects.
    """
    with matplotlib.rc_context(SETTINGS):
        figures = {"pairs": _pairs(contents), "heatmap": _heatmap(contents)}
        if contents.first in contents.spread:
            figures["layers"] = _layers(contents)
        if len(contents.table.metrics) > 1:
            figures["correlations"] = _correlations(contents)
        if contents.outcomes:
            figures |= _outcomes(contents.outcomes)
    return figures


def as_pdf(figures: dict[str, Figure]) -> bytes:
    """Return one PDF with a page for each figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS), PdfPages(buffer, metadata={"CreationDate": None}) as pages:
        for figure in figures.values():
            pages.savefig(figure)
    return buffer.getvalue()


def as_png(figure: Figure) -> bytes:
    """Return one figure as a PNG of 300 dots an inch."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(buffer, format="png", dpi=300)
    return buffer.getvalue()


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _pairs(contents: Contents) -> Figure:
    """Draw the pairs that the first metric finds most mergeable."""
    best = contents.table.ranked(contents.first)[contents.first].dropna().head(BEST_PAIRS)
    figure, axes = _new(5.5, 0.8 + 0.2 * len(best))
    places = np.arange(len(best))
    axes.plot(best.to_numpy(), places, "o", color=COLOURS[0], markersize=4)
    axes.set_yticks(places, [f"{a}, {b}" for a, b in best.index], **NAMES)
    axes.invert_yaxis()
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel(_label(contents.first))
    return figure


def _heatmap(contents: Contents) -> Figure:
    name = contents.first
    order = contents.orders[name][0]
    matrix = contents.table.matrix(name)[np.ix_(order, order)]
    np.fill_diagonal(matrix, np.nan)
    figure, axes = _new(6.0, 5.2)
    image = axes.imshow(matrix, interpolation="nearest", **_scale(name, matrix))
    names = [contents.table.models[model] for model in order]
    _name_cells(axes, names if len(names) <= NAMED_MODELS else [])
    figure.colorbar(image, label=_label(name), shrink=0.8)
    return figure


def _scale(name: str, matrix: np.ndarray) -> dict[str, Any]:
    """Return the colours: around 0 for a metric with a sign, else brighter for what is more mergeable."""
    metric = metric_of(name)
    if metric.range[0] < 0:
        most = np.fmax.reduce(np.abs(matrix), axis=None)
        return {"cmap": "PuOr_r", "vmin": -most, "vmax": most}
    return {"cmap": "cividis" if metric.more_mergeable == "higher" else "cividis_r"}


def _layers(contents: Contents) -> Figure:
    spread = contents.spread[contents.first]
    places = np.arange(spread.shape[1])
    figure, axes = _new(7.0, 3.6)
    for low, high, label, alpha in ((0.1, 0.9, "80 % of the pairs", 0.2), (0.25, 0.75, "half of the pairs", 0.35)):
        axes.fill_between(places, spread.loc[low], spread.loc[high], color=COLOURS[0], alpha=alpha, lw=0, label=label)
    axes.plot(places, spread.loc[QUANTILES[2]], color=COLOURS[0], label="median")
    step = -(-len(places) // 50)
    axes.set_xticks(places[::step], list(spread.columns[::step]), rotation=90, fontsize=6, **NAMES)
    axes.set_ylabel(_label(contents.first))
    axes.legend(frameon=False)
    return figure


def _correlations(contents: Contents) -> Figure:
    correlation = contents.correlations["pearson"]
    figure, axes = _new(6.8, 6.0)
    image = axes.imshow(correlation.to_numpy(), cmap="PuOr_r", vmin=-1, vmax=1)
    _name_cells(axes, [metric_title(str(name)) for name in correlation])
    figure.colorbar(image, label="Pearson correlation over the pairs", shrink=0.8)
    return figure


def _outcomes(outcomes: Outcomes) -> dict[str, Figure]:
    """Draw what merges gave, where enough of them were measured."""
    validated = [outcome for outcome in outcomes.methods if outcome.validation is not None]
    if not validated:
        return {}
    figures = {"accuracy": _accuracy(validated, outcomes.target)}
    if curves := [outcome for outcome in validated if outcome.budget is not None and len(outcome.budget)]:
        figures["budgets"] = _budgets(curves, outcomes.target)
    coefficients = {o.method: found for o in validated if (found := o.coefficients) is not None}
    if coefficients:
        means = pd.DataFrame({method: found["mean"] for method, found in coefficients.items()})
        spread = pd.DataFrame({method: found["sd"] for method, found in coefficients.items()})
        label = "coefficient, mean and standard deviation over the folds"
        figures["coefficients"] = _rows(means.rename(index=metric_title), spread, label)
    effects = pd.DataFrame({o.method: o.variance.effects for o in validated if o.variance is not None})
    figures["effects"] = _rows(effects, None, f"effect of the model on {outcomes.target}")
    return figures


def _accuracy(outcomes: Sequence[Outcome], target: str) -> Figure:
    figure, axes = _new(4.5, 4.5)
    for index, outcome in enumerate(outcomes):
        assert outcome.validation is not None
        label = f"{outcome.method}, r = {outcome.validation.score:.2f}"
        held_out, colour = outcome.held_out, COLOURS[index % 6]
        x, y = held_out["prediction"], held_out["y"]
        axes.plot(x, y, MARKS[index % 6], color=colour, markersize=2, label=label)
    axes.axline((held_out["y"].iloc[0],) * 2, slope=1, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel(f"{target} predicted without one of the two models")
    axes.set_ylabel(f"{target} measured")
    _legend(axes)
    return figure


def _budgets(outcomes: Sequence[Outcome], target: str) -> Figure:
    """Draw r and regret of the predictions by the number of measured merges."""
    figure = Figure(figsize=(6.5, 3.0), layout="constrained")
    for axes, name, label in zip(figure.subplots(1, 2), ("r", "regret"), ("r", f"regret, in {target}"), strict=True):
        for index, outcome in enumerate(outcomes):
            assert outcome.budget is not None
            curve = outcome.budget.loc[outcome.budget.index.unique(0)[0], name]
            style = {"color": COLOURS[index % 6], "markersize": 3, "label": outcome.method}
            axes.plot(curve.index, curve, f"-{MARKS[index % 6]}", **style)
        axes.set_xlabel("measured merges")
        axes.set_ylabel(label)
    _legend(figure.axes[0])
    return figure


def _rows(values: pd.DataFrame, spread: pd.DataFrame | None, label: str) -> Figure:
    """Draw a row for each row of the frame, its columns beside each other."""
    figure, axes = _new(6.5, 1.0 + 0.18 * len(values))
    places = np.arange(len(values))
    count = values.shape[1]
    for index, method in enumerate(values):
        shift = (index - (count - 1) / 2) * min(0.14, 0.7 / count)
        errors = None if spread is None else spread[method].to_numpy()
        axes.errorbar(
            values[method], places + shift, xerr=errors, fmt=MARKS[index % 6], color=COLOURS[index % 6], markersize=3,
            elinewidth=0.7, label=str(method),
        )  # fmt: skip
    axes.axvline(0, color="grey", linewidth=0.7)
    axes.set_yticks(places, [str(name) for name in values.index], **NAMES)
    axes.invert_yaxis()
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel(label)
    _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)


def _name_cells(axes: Axes, names: Sequence[str]) -> None:
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=6, **NAMES)
    axes.set_yticks(places, names, fontsize=6, **NAMES)


def _label(metric: str) -> str:
    return f"{metric_title(metric)} ({metric_of(metric).more_mergeable} is more mergeable)"
