"""Contents as one HTML page that needs nothing but a browser: no network, no other file."""

from __future__ import annotations

import base64
import json
import math
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mergekern._internal.versions import package_version
from mergekern.metrics import metric_of
from mergekern.metrics.catalogue import NOTATION, Metric
from mergekern.report.contents import CORRELATIONS, QUANTILES, Contents, metric_title
from mergekern.report.outcomes import Outcomes
from mergekern.tables.metric_table import MetricTable

SCRIPTS = ("data.js", "pairs.js", "charts.js", "metrics.js", "outcomes.js")
# Whole-model values keep every bit up to so many pairs; above, seven digits, or 1000 models would take 150 MB.
EXACT_PAIRS = 20_000
TOO_MANY_LAYERS = (
    "the values of single tensors are too many for a page and are here as quantiles over the pairs only; the file of "
    "the table has them all"
)


class Arrays:
    """The arrays of a page, each by its name as (dtype, base64); a browser decodes one when it is first drawn."""

    def __init__(self) -> None:
        self.encoded: dict[str, tuple[str, str]] = {}

    def add(self, name: str, values: np.ndarray, dtype: str) -> str:
        """Keep values as little-endian numbers of a dtype such as "f4", in C order, and return their name."""
        content = np.ascontiguousarray(values, dtype=f"<{dtype}").tobytes()
        self.encoded[name] = (dtype, base64.b64encode(content).decode())
        return name


def render(contents: Contents, title: str) -> str:
    """Return the page as HTML.

    >>> import mergekern
    >>> from mergekern.report.contents import gather
    >>> zoo = {name: {"w": np.eye(3)[[index]]} for index, name in enumerate("abc")}
    >>> table = mergekern.compute_all(zoo, base={"w": np.zeros((1, 3))})
    >>> render(gather(table), "Three <models>").count("Three &lt;models&gt;") >= 1
    True
    """
    arrays = Arrays()
    document = describe(contents, arrays)
    environment = _environment()
    models = len(contents.table.models)
    pairs = models * (models - 1) // 2
    return environment.get_template("page.html.j2").render(
        title=title,
        contents=contents,
        table=contents.table,
        pairs=pairs,
        categories=_categories(contents),
        summary=contents.summary.to_dict("index"),
        largest_errors=contents.table.largest_errors,
        notation=NOTATION,
        notes=contents.table.notes if contents.with_layers else [*contents.table.notes, TOO_MANY_LAYERS],
        exact=pairs <= EXACT_PAIRS,
        outcomes=contents.outcomes,
        provenance=_flat(contents.table.provenance),
        version=package_version("mergekern"),
        # Within <script> no text may look like a tag, whatever a model is called.
        document=Markup(json.dumps(document, allow_nan=False).replace("<", "\\u003c")),
        arrays=arrays.encoded,
        style=_source("style.css"),
        plotly=Markup(get_plotlyjs()),
        scripts=[_source(name) for name in SCRIPTS],
    )


def describe(contents: Contents, arrays: Arrays) -> dict[str, Any]:
    """Return what the page's scripts know, all but the arrays, which are added to `arrays`."""
    table = contents.table
    frame = table.to_pandas()
    dtype = "f8" if len(frame) <= EXACT_PAIRS else "f4"
    tensors = list(dict.fromkeys(tensor for layers in contents.layers.values() for tensor in layers))
    place = {tensor: index for index, tensor in enumerate(tensors)}
    metrics = []
    for name in table.metrics:
        metric = metric_of(name)
        entry: dict[str, Any] = {
            "name": name,
            "title": metric_title(name),
            "category": metric.category,
            "about": about(metric),
            "better": metric.more_mergeable,
            "signed": metric.range[0] < 0,
            "values": arrays.add(f"values/{name}", frame[name].to_numpy(), dtype),
            "orders": arrays.add(f"orders/{name}", contents.orders[name], "u2"),
            "tensors": [],
        }
        if name in contents.layers:
            entry["tensors"] = [place[tensor] for tensor in contents.layers[name]]
            entry["spread"] = arrays.add(f"spread/{name}", contents.spread[name].to_numpy(), "f8")
            if contents.with_layers:
                entry["layers"] = arrays.add(f"layers/{name}", contents.layers[name].to_numpy().T, "f4")
        metrics.append(entry)
    return {
        "models": table.models,
        "tensors": tensors,
        "metrics": metrics,
        "first": contents.first,
        "outcomes": contents.outcomes and _describe_outcomes(contents.outcomes, table, arrays),
        "quantiles": QUANTILES,
        "correlations": {
            kind: arrays.add(f"correlations/{kind}", contents.correlations[kind].to_numpy(), "f8")
            for kind in CORRELATIONS
        },
    }


def _describe_outcomes(outcomes: Outcomes, table: MetricTable, arrays: Arrays) -> dict[str, Any]:
    columns, accuracy, coefficients, effects, remarks, budgets = [], [], [], [], [], []
    pairs = table.to_pandas().index
    with_words = len(pairs) * len(outcomes.methods) <= EXACT_PAIRS
    for index, outcome in enumerate(outcomes.methods):
        common = {"category": outcomes.target, "better": "higher"}
        if (predicted := outcome.predicted) is not None:
            ends = {
                name: arrays.add(f"{name}/{index}", predicted[column].to_numpy(), "f8")
                for name, column in (("values", "prediction"), ("low", "low"), ("high", "high"))
            }
            about = f"{outcomes.target} of {outcome.method} as predicted, and the interval that is to cover "
            about += f"{outcome.level:.0%} of the pairs"
            columns.append({"title": f"{outcome.method}, predicted", "about": about, **common, **ends})
            if with_words:
                words = {name: predicted[name].fillna("").tolist() for name in ("drivers", "remarks")}
                remarks.append({"method": outcome.method, **words})
        measured = arrays.add(f"measured/{index}", outcome.measured.to_numpy(), "f8")
        about = f"{outcomes.target} of the pair merged by {outcome.method}, as measured"
        columns.append({"title": f"{outcome.method}, measured", "about": about, **common, "values": measured})
        if outcome.validation is None:
            continue
        held_out = outcome.held_out
        places = {"pairs": arrays.add(f"held_out/{index}/pairs", pairs.get_indexer(held_out.index), "u4")}
        for name, column in (("predicted", "prediction"), ("measured", "y")):
            places[name] = arrays.add(f"held_out/{index}/{name}", held_out[column].to_numpy(), "f8")
        models = pd.Index(table.models).get_indexer(pd.Index(held_out["held_out"]))
        places["without"] = arrays.add(f"held_out/{index}/without", models, "u2")
        accuracy.append({"method": outcome.method, **places})
        if (found := outcome.coefficients) is not None:
            rows = found.reindex(table.metrics)
            values = arrays.add(f"coefficients/{index}", rows["mean"].to_numpy(), "f8")
            spread = arrays.add(f"coefficients/{index}/sd", rows["sd"].to_numpy(), "f8")
            coefficients.append({"method": outcome.method, "values": values, "spread": spread})
        if outcome.variance is not None:
            in_order = outcome.variance.effects.reindex(table.models).to_numpy()
            effects.append({"method": outcome.method, "values": arrays.add(f"effects/{index}", in_order, "f8")})
        if (budget := outcome.budget) is not None and len(budget):
            curve = budget.loc[budget.index.unique(0)[0]]
            names = ("r", "rmse")
            figures = {name: arrays.add(f"budget/{index}/{name}", curve[name].to_numpy(), "f8") for name in names}
            budgets.append({"method": outcome.method, "merges": curve.index.tolist(), **figures})
    # Predictions before measurements, methods in their order.
    columns.sort(key=lambda column: "low" not in column)
    return {
        "target": outcomes.target,
        "columns": columns,
        "remarks": remarks,
        "accuracy": accuracy,
        "coefficients": coefficients,
        "effects": effects,
        "budgets": budgets,
    }


def about(metric: Metric) -> str:
    """Return formula, range and direction of a metric in a line.

    >>> about(metric_of("stable_rank"))
    '(Σs)² / Σs², 1 to 2, lower is more mergeable'
    """
    return f"{metric.formula}, {value_range(metric)}, {metric.more_mergeable} is more mergeable"


def value_range(metric: Metric) -> str:
    """Return a metric's range in words.

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


def _categories(contents: Contents) -> dict[str, list[Metric]]:
    categories: dict[str, list[Metric]] = {}
    for name in contents.table.metrics:
        metric = metric_of(name)
        categories.setdefault(metric.category, []).append(metric)
    return categories


def _flat(provenance: Any, prefix: str = "") -> dict[str, str]:
    """Return nested provenance as one level: dotted keys and text."""
    if isinstance(provenance, dict) and provenance:
        flat: dict[str, str] = {}
        for key, value in provenance.items():
            flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    text = provenance if isinstance(provenance, str) else json.dumps(provenance, ensure_ascii=False)
    return {prefix: text} if prefix else {}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mergekern.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "percent": percent, "title": metric_title, "range": value_range}
    return environment


def _source(name: str) -> Markup:
    """Return a file of ours that stands on the page as it is."""
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])
