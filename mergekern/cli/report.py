"""`mergekern report`."""

from __future__ import annotations

from pathlib import Path

import click

from mergekern.cli.display import say
from mergekern.metrics import RANKED_BY
from mergekern.tables.metric_table import MetricTable


@click.command(
    help="""\
Write what the file TABLE says as one page that a browser opens without a network.

TABLE is what `mergekern metrics --out` wrote: .parquet, .csv or .json.
"""
)
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--scores", type=click.Path(path_type=Path),
              help="What was measured: a CSV file with the columns method, model_a, model_b and accuracy.")  # fmt: skip
@click.option("--target", default="accuracy", show_default=True, help="Which column of the scores.")
@click.option("--predictor", "predictor_files", type=click.Path(path_type=Path), multiple=True,
              help="A file of `mergekern fit`; may be repeated, one for a merge method.")  # fmt: skip
@click.option("--metric", help=f"The metric shown first [default: {RANKED_BY}].")
@click.option("--title", help="Title of the page.")
@click.option("--static", is_flag=True, help="Figures for a paper: a .pdf (one a page) or a .png (one a file).")
@click.option("--out", type=click.Path(path_type=Path),
              help="Write here [default: report.html, with --static report.pdf].")  # fmt: skip
def report(
    table: Path, scores: Path | None, target: str, predictor_files: tuple[Path, ...], metric: str | None,
    title: str | None, static: bool, out: Path | None,
) -> None:  # fmt: skip
    from mergekern.prediction import MergePredictor, read_methods, read_scores
    from mergekern.report import write_report

    out = out or Path("report.pdf" if static else "report.html")
    if static != (out.suffix in (".pdf", ".png")):
        raise click.BadParameter(f"{out}: a .pdf or a .png with --static, else an .html", param_hint="--out")
    measured = {}
    if scores is not None:
        measured = {method: read_scores(scores, method, target) for method in read_methods(scores, target)}
    predictors = [MergePredictor.load(path) for path in predictor_files]
    loaded = MetricTable.load(table)
    for path in write_report(loaded, out, scores=measured, predictors=predictors, metric=metric, title=title):
        say(f"wrote {path}")
