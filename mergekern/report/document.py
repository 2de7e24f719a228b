"""What the scripts of a page know: a JSON document, and the arrays that it names."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd

from mergekern.metrics import metric_of
from mergekern.report.answer import Answer
from mergekern.report.contents import CORRELATIONS, QUANTILES, Contents, metric_title
from mergekern.report.outcomes import Outcome, Outcomes
from mergekern.report.words import about
from mergekern.tables.metric_table import MetricTable

# Whole-model values keep every bit, and predictions their reasons, up to so many pairs. Above, values keep seven
# digits, and reasons are left out, or the page of 200 models would take 10 MB.
EXACT_PAIRS = 5_000


def is_exact(pairs: int) -> bool:
    """Return whether a page of so many pairs keeps every bit of the values of whole models."""
    return pairs <= EXACT_PAIRS


class Arrays:
    """The arrays of a page, each by its name as (dtype, base64); a browser decodes one when it is first drawn."""

    def __init__(self) -> None:
        self.encoded: dict[str, tuple[str, str]] = {}

    def add(self, name: str, values: Any, dtype: str) -> str:
        """Keep values as little-endian numbers of a dtype such as "f4", in C order, and return their name."""
        content = np.ascontiguousarray(values, dtype=f"<{dtype}").tobytes()
        self.encoded[name] = (dtype, base64.b64encode(content).decode())
        return name


def describe(contents: Contents, arrays: Arrays, answer: Answer) -> dict[str, Any]:
    """Return what the page's scripts know, all but the arrays, which are added to `arrays`."""
    table = contents.table
    tensors = list(dict.fromkeys(str(tensor) for layers in contents.layers.values() for tensor in layers))
    place = {tensor: index for index, tensor in enumerate(tensors)}
    return {
        "models": table.models,
        "tensors": tensors,
        "metrics": _describe_metrics(contents, place, arrays),
        "first": contents.first,
        "pair": answer.pair and [table.models.index(model) for model in answer.pair],
        "method": answer.method,
        "outcomes": contents.outcomes and _describe_outcomes(contents.outcomes, table, arrays),
        "quantiles": QUANTILES,
        "correlations": {
            kind: arrays.add(f"correlations/{kind}", contents.correlations[kind], "f8") for kind in CORRELATIONS
        },
    }


def _describe_metrics(contents: Contents, place: dict[str, int], arrays: Arrays) -> list[dict[str, Any]]:
    table = contents.table
    frame = table.to_pandas()
    dtype = _dtype(len(frame))
    pairs = np.triu_indices(len(table.models), 1)
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
            "values": arrays.add(f"values/{name}", frame[name], dtype),
            "orders": arrays.add(f"orders/{name}", contents.orders[name], "u2"),
            "tensors": [],
        }
        if name in table.estimated:
            entry["errors"] = arrays.add(f"errors/{name}", table.error(name)[pairs], "f4")
        if name in contents.layers:
            tensors = list(map(str, contents.layers[name]))
            entry["tensors"] = [place[tensor] for tensor in tensors]
            entry["spread"] = arrays.add(f"spread/{name}", contents.spread[name], "f8")
            if contents.with_layers:
                entry["layers"] = arrays.add(f"layers/{name}", contents.layers[name].T, "f4")
                if name in table.estimated:
                    errors = [table.error(name, tensor)[pairs] for tensor in tensors]
                    entry["layer_errors"] = arrays.add(f"layer_errors/{name}", errors, "f4")
        metrics.append(entry)
    return metrics


def _describe_outcomes(outcomes: Outcomes, table: MetricTable, arrays: Arrays) -> dict[str, Any]:
    pairs = table.to_pandas().index
    columns, remarks = [], []
    for index, outcome in enumerate(outcomes.methods):
        columns += _columns(outcome, outcomes.target, index, arrays)
        if outcome.predicted is not None and is_exact(len(pairs)):
            words = {name: outcome.predicted[name].fillna("").tolist() for name in ("drivers", "remarks")}
            remarks.append({"method": outcome.method, **words})
    # Predictions before measurements, methods in their order.
    columns.sort(key=lambda column: "low" not in column)
    validated = [(index, outcome) for index, outcome in enumerate(outcomes.methods) if outcome.validation is not None]
    return {
        "target": outcomes.target,
        "methods": [outcome.method for outcome in outcomes.methods],
        "columns": columns,
        "remarks": remarks,
        "accuracy": [_held_out(outcome, index, table, pairs, arrays) for index, outcome in validated],
        "coefficients": [
            found for index, outcome in validated if (found := _coefficients(outcome, index, table, arrays))
        ],
        "effects": [
            {
                "method": outcome.method,
                "values": arrays.add(f"effects/{index}", outcome.variance.effects.reindex(table.models), "f8"),
            }
            for index, outcome in validated
            if outcome.variance is not None
        ],
        "budgets": [found for index, outcome in validated if (found := _budget(outcome, index, arrays))],
    }


def _columns(outcome: Outcome, target: str, index: int, arrays: Arrays) -> list[dict[str, Any]]:
    """Return the columns that a method has in the table of pairs."""
    common = {"method": outcome.method, "category": target, "better": "higher"}
    columns = []
    dtype = _dtype(len(outcome.measured))
    if (predicted := outcome.predicted) is not None:
        ends = {
            name: arrays.add(f"{name}/{index}", predicted[column], dtype)
            for name, column in (("values", "prediction"), ("low", "low"), ("high", "high"))
        }
        what = f"{target} of {outcome.method} as predicted, and the interval that is to cover "
        what += f"{outcome.level:.0%} of the pairs"
        columns.append({"title": f"{outcome.method}, predicted", "about": what, **common, **ends})
    measured = arrays.add(f"measured/{index}", outcome.measured, dtype)
    what = f"{target} of the pair merged by {outcome.method}, as measured"
    columns.append({"title": f"{outcome.method}, measured", "about": what, **common, "values": measured})
    return columns


def _held_out(outcome: Outcome, index: int, table: MetricTable, pairs: pd.Index, arrays: Arrays) -> dict[str, Any]:
    held_out = outcome.held_out
    places = {"pairs": arrays.add(f"held_out/{index}/pairs", pairs.get_indexer(held_out.index), "u4")}
    for name, column in (("predicted", "prediction"), ("measured", "y")):
        places[name] = arrays.add(f"held_out/{index}/{name}", held_out[column], "f8")
    models = pd.Index(table.models).get_indexer(pd.Index(held_out["held_out"]))
    places["without"] = arrays.add(f"held_out/{index}/without", models, "u2")
    return {"method": outcome.method, **places}


def _coefficients(outcome: Outcome, index: int, table: MetricTable, arrays: Arrays) -> dict[str, Any] | None:
    if (found := outcome.coefficients) is None:
        return None
    rows = found.reindex(table.metrics)
    values = arrays.add(f"coefficients/{index}", rows["mean"], "f8")
    return {
        "method": outcome.method,
        "values": values,
        "spread": arrays.add(f"coefficients/{index}/sd", rows["sd"], "f8"),
    }


def _budget(outcome: Outcome, index: int, arrays: Arrays) -> dict[str, Any] | None:
    """Return the curves of the predictor, and the regret of a random pair, which it stands beside."""
    budget = outcome.budget
    if budget is None or not len(budget):
        return None
    curve = budget.loc[budget.index.unique(0)[0]]
    names = ("r", "rmse", "regret")
    figures = {name: arrays.add(f"budget/{index}/{name}", curve[name], "f8") for name in names}
    by_chance = budget.loc["random"].reindex(curve.index)["regret"]
    figures["random"] = arrays.add(f"budget/{index}/random", by_chance, "f8")
    return {"method": outcome.method, "merges": curve.index.tolist(), **figures}


def _dtype(pairs: int) -> str:
    return "f8" if is_exact(pairs) else "f4"
