"""The report of a table, as one page for a browser or as figures for a paper.

>>> import tempfile, mergekern, numpy as np
>>> zoo = {name: {"w": np.eye(3)[[index]]} for index, name in enumerate("abc")}
>>> table = mergekern.compute_all(zoo, base={"w": np.zeros((1, 3))})
>>> with tempfile.TemporaryDirectory() as folder:
...     [path.name for path in write_report(table, Path(folder) / "report.html")]
['report.html']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mergekern._internal.extras import needs
from mergekern._internal.files import check_output, write_output
from mergekern.errors import OptionError, OutputError
from mergekern.report.answer import Answer
from mergekern.report.contents import Contents, gather
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    import pandas as pd

    from mergekern.prediction import MergePredictor

SUFFIXES = {".html": "one page for a browser", ".pdf": "figures, one a page", ".png": "figures, one a file"}


def write_report(
    table: MetricTable,
    out: str | Path,
    *,
    scores: Mapping[str, pd.Series] | None = None,
    predictors: Iterable[MergePredictor] = (),
    metric: str | None = None,
    title: str | None = None,
    answer: Answer | None = None,
) -> list[Path]:
    """Write a report of a table and return the files written.

    Args:
        table: from `compute_all`, or `MetricTable.load`.
        out: .html for the page; .pdf for the figures, one a page; .png for the figures, one a file, named for example
            report-heatmap.png.
        scores: what was measured of merged pairs, for each merge method as `mergekern.prediction.read_scores` gives it.
        predictors: from `MergePredictor.fit` or `load`, one for a merge method at most.
        metric: the one shown first [default: task_vector_cosine_similarity, where the table has it].
        title: heading of the page [default: the number of models].
        answer: what the page says first [default: what the contents tell]; figures have no place for it.

    Raises:
        OptionError: another suffix, a metric that the table does not have, or an extra that is not installed.
        PredictionError: scores of models that are not in the table, or a predictor of metrics that are not.
        OutputError: no such folder, or it cannot be written.
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        kinds = ", ".join(f"{suffix} ({what})" for suffix, what in SUFFIXES.items())
        raise OptionError(f"{out}: a report is written as {kinds}")
    if not out.resolve().parent.is_dir():
        raise OutputError(f"{out}: there is no such folder")
    check_output(out)
    contents = gather(table, metric, scores, predictors)
    title = title or f"Mergeability of {len(table.models)} models"
    files = _page(contents, out, title, answer) if out.suffix == ".html" else _figures(contents, out)
    for path, content in files.items():
        write_output(path, content)
    return list(files)


def _page(contents: Contents, out: Path, title: str, answer: Answer | None) -> dict[Path, bytes]:
    try:
        from mergekern.report.page import render
    except ImportError as error:
        raise _missing(error) from error
    return {out: render(contents, title, answer).encode()}


def _figures(contents: Contents, out: Path) -> dict[Path, bytes]:
    try:
        from mergekern.report import figures
    except ImportError as error:
        raise _missing(error) from error
    drawn = figures.draw(contents)
    if out.suffix == ".pdf":
        return {out: figures.as_pdf(drawn)}
    return {out.with_stem(f"{out.stem}-{name}"): figures.as_png(figure) for name, figure in drawn.items()}


def _missing(error: ImportError) -> OptionError:
    return OptionError(needs("a report", "report", error))
