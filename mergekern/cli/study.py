"""`mergekern study`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import Progress

from mergekern._internal.extras import needs
from mergekern._internal.files import write_atomically
from mergekern.cli.display import NameTable, is_quiet, plain_console, say, show
from mergekern.cli.parameters import parse_methods
from mergekern.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

    from mergekern.study.findings import Finding

# They need packages of the extra "report".
DRAWING = ("mergekern.study.comparison", "mergekern.report.page")
ARCHITECTURES = ("vit", "cnn", "mlp", "text")
TASKS, QUICK_TASKS = 20, 10


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on standard error, and at the end how long everything took; nothing where quiet."""
    began = time.perf_counter()
    console = plain_console(stderr=True)
    console.quiet = is_quiet()
    with Progress(console=console, transient=True) as bar:
        yield bar
    if not is_quiet():
        say(f"{time.perf_counter() - began:.0f} s", err=True)


def show_study(
    findings: Sequence[Finding], scores: pd.DataFrame, comparison: pd.DataFrame, budgets: pd.DataFrame, target: str
) -> None:
    """Print the findings, the means of the scores, and the predictors beside what they and measured merges cost."""
    from mergekern.study.comparison import means

    by_method = scores.groupby("method", sort=False)[["accuracy", target]].agg(["mean", "min"])
    table = NameTable("method", "accuracy", "worst pair", "normalised", "worst pair")
    for method, row in by_method.iterrows():
        table.add_texts(str(method), *(f"{value:.3f}" for value in row))
    show(table)
    table = NameTable("predictor, mean of the methods", "seconds", "r, partner known", "r, both unseen")
    for name, row in means(comparison).iterrows():
        table.add_texts(str(name), f"{row['seconds']:.2f}", f"{row.iloc[1]:.3f}", f"{row.iloc[2]:.3f}")
    show(table)
    table = NameTable("predictor, mean of the methods", "merges", "r", "rmse", "regret of the best pair")
    of_methods = budgets.groupby(level=["predictor", "merges"], sort=False).mean()
    for names, figures in zip(of_methods.index, of_methods.to_numpy(), strict=True):
        table.add_texts(*map(str, names), *("-" if value != value else f"{value:.3f}" for value in figures))
    show(table)
    table = NameTable("question", "paper", "measured here", "")
    for finding in findings:
        table.add_texts(finding.question, finding.paper, finding.here, finding.verdict)
    show(table)


def _check_installed() -> None:
    """Raise OptionError, before anything is computed, where figures cannot be drawn."""
    try:
        for name in DRAWING:
            import_module(name)
    except ImportError as error:
        raise OptionError(needs("the study", "report", error)) from error


@click.command(
    help="""\
Study which pairs of a zoo merge well, and what predicts it, in the folder OUT.

It fine-tunes an encoder on 20 tasks, computes the 28 metrics of their 190 pairs, merges every pair by every method,
measures every merge, and validates what predicts that. Nothing is downloaded. A study that was stopped continues.
"""
)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--architecture", type=click.Choice(ARCHITECTURES), default="vit", show_default=True,
              help="Kind of the encoder: three read images of digits, and one reads texts.")  # fmt: skip
@click.option("--quick", is_flag=True, help=f"{QUICK_TASKS} tasks, if --tasks does not give another number.")
@click.option("--tasks", type=click.IntRange(5, TASKS), help=f"Fine-tune on so many tasks.  [default: {TASKS}]")
@click.option("--methods", default="all", callback=parse_methods, help="Methods.  [default: all that merge pairs]")
@click.option("--samples", type=click.IntRange(10, 200), default=10, show_default=True,
              help="Calibration samples a task, at most half of the held-out ones; others give scores.")  # fmt: skip
@click.option("--random-state", default=0, show_default=True, help="Decides all random numbers.")
@click.option("--force", is_flag=True, help="Make everything anew, replacing a study with other options.")
def study(
    out: Path, architecture: str, quick: bool, tasks: int | None, methods: list[str], samples: int, random_state: int,
    force: bool,
) -> None:  # fmt: skip
    from threadpoolctl import threadpool_limits

    _check_installed()
    from mergekern.prediction import read_scores
    from mergekern.report import write_report
    from mergekern.study import stages
    from mergekern.study.comparison import means
    from mergekern.study.findings import as_markdown, find
    from mergekern.study.zoos.making import DOMAINS, default_options
    from mergekern.tables.metric_table import MetricTable

    count = tasks or (QUICK_TASKS if quick else TASKS)
    options = default_options(architecture) | {"calibration_samples": samples}
    names = [task.name for task in DOMAINS[architecture].tasks[:count]]
    stages.check_options(out, {"random_state": random_state, "tasks": names, "methods": methods, "zoo": options}, force)
    with progress_bar() as bar:
        metrics, scores = stages.run_study(out, options, count, methods, random_state, bar)
        frames, comparison = stages.compare_costs(out, metrics, scores, methods, bar)
        measured = {method: read_scores(out / "scores.csv", method, stages.TARGET) for method in methods}
        table = MetricTable.load(out / "metrics.parquet")
        with threadpool_limits(1):
            budgets = stages.budget_curves(out, scores)
        predictors = stages.fit_predictors(table, measured, out / "predictors", bar)
    findings = find(scores, frames, means(comparison))
    write_atomically(out / "findings.md", as_markdown(findings, means(comparison)).encode())
    with threadpool_limits(1):
        title = f"{count} tasks, {architecture}"
        write_report(table, out / "report.html", scores=measured, predictors=predictors, title=title)
    show_study(findings, scores, comparison, budgets, stages.TARGET)
    say(f"wrote {out}")
