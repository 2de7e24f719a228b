"""Contents as one HTML page that needs nothing but a browser: no network, no other file."""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mergekern._internal.versions import package_version
from mergekern.metrics import metric_of
from mergekern.metrics.catalogue import NOTATION, Metric
from mergekern.report.answer import Answer
from mergekern.report.conclusions import conclude
from mergekern.report.contents import Contents, metric_title
from mergekern.report.document import Arrays, describe, is_exact
from mergekern.report.words import number, percent, value_range

SCRIPTS = (
    "data.js", "downloads.js", "plots.js", "ranking.js", "pair.js", "heatmap.js", "layers.js", "correlations.js",
    "outcomes.js", "navigation.js",
)  # fmt: skip
TOO_MANY_LAYERS = (
    "the values of single tensors are too many for a page and are here as quantiles over the pairs only; the file of "
    "the table has them all"
)
TOO_MANY_PAIRS = (
    "the pairs are too many for a page with every digit: values of whole models are here with seven digits, and what "
    "moved each prediction is left out; the file of the table and `mergekern predict` have all of it"
)


def render(contents: Contents, title: str, answer: Answer | None = None) -> str:
    """Return the page as HTML.

    Args:
        contents: what it shows.
        title: its heading.
        answer: what it says first; methods and steps that it lacks are concluded from the contents, as the whole answer
            is without one.

    >>> import mergekern, numpy as np
    >>> from mergekern.report.contents import gather
    >>> zoo = {name: {"w": np.eye(3)[[index]]} for index, name in enumerate("abc")}
    >>> table = mergekern.compute_all(zoo, base={"w": np.zeros((1, 3))})
    >>> render(gather(table), "Three <models>").count("Three &lt;models&gt;") >= 1
    True
    """
    concluded = conclude(contents)
    answer = answer.completed(concluded) if answer else concluded
    arrays = Arrays()
    document = describe(contents, arrays, answer)
    models = len(contents.table.models)
    pairs = models * (models - 1) // 2
    return _environment().get_template("page.html.j2").render(
        title=title,
        answer=answer,
        contents=contents,
        table=contents.table,
        pairs=pairs,
        categories=_categories(contents),
        summary=contents.summary.to_dict("index"),
        largest_errors=contents.table.largest_errors,
        notation=NOTATION,
        notes=_notes(contents, pairs),
        exact=is_exact(pairs),
        outcomes=contents.outcomes,
        provenance=_flat(contents.table.provenance),
        version=package_version("mergekern"),
        # Within <script> no text may look like a tag, whatever a model is called.
        document=Markup(json.dumps(document, allow_nan=False).replace("<", "\\u003c")),
        arrays=arrays.encoded,
        style=_source("style.css"),
        plotly=_plotly(),
        plotly_notice=_plotly_notice(),
        scripts=[_source(name) for name in SCRIPTS],
    )  # fmt: skip


def _notes(contents: Contents, pairs: int) -> list[str]:
    notes = list(contents.table.notes)
    if not contents.with_layers:
        notes.append(TOO_MANY_LAYERS)
    if not is_exact(pairs):
        notes.append(TOO_MANY_PAIRS)
    return notes


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


@cache
def _plotly() -> str:
    """Return the compressed library in base64; the browser unpacks it."""
    return base64.b64encode(_compressed_plotly()).decode()


@cache
def _plotly_notice() -> str:
    """Return name, version, copyright and license of the library, from its first lines."""
    lines = gzip.decompress(_compressed_plotly())[:400].decode().splitlines()[1:5]
    return "; ".join(line.lstrip("* ").rstrip(". ") for line in lines)


def _compressed_plotly() -> bytes:
    return (files("mergekern.report") / "plotly" / "plotly-cartesian.min.js.gz").read_bytes()
