"""The study of "Demystifying Mergeability" (arXiv 2601.22285) on models made here: which pairs merge, and what tells.

    python python/mergeability_study.py study
    python python/mergeability_study.py study-text --architecture text
    python python/mergeability_study.py study-quick --quick

fine-tunes an encoder on 20 tasks, computes the 28 metrics of their 190 pairs, merges every pair by every method,
measures each merge on the held-out data of both tasks, validates what predicts that, and says what was found beside
what the paper says. Nothing is downloaded. Stopped at any moment and started again, it continues, and ends with the
same files:

    zoo/                models, their samples and heads (see make_digits_zoo.py)
    statistics/         what the metrics are computed from
    metrics.parquet     28 metrics of every pair, also for every tensor alone
    alone.csv           accuracy of each model on its own task
    scores.csv          method, model_a, model_b, accuracy (mean of both tasks), normalized_accuracy (mean of the ratios
                        to the single models)
    analysis/           validation, variance components, ablation, coefficients and fingerprints of the methods
    findings.md         what was found, beside what the paper says
    report.html         pairs, metrics and scores as one page for a browser
    study.json          the options of the run

`--quick` has 10 tasks (45 pairs) in place of 20 (190), and leaves out nothing else.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mergekern
from mergekern.files import write_atomically
from mergekern.prediction import read_scores
from mergekern.report import write_report
from study.analysis import analyse
from study.findings import Finding, as_markdown, find
from study.scoring import score_alone, score_merges
from zoos.encoders import CLASSES, build
from zoos.making import DOMAINS, default_options, make_zoo

TASKS, QUICK_TASKS = 20, 10
TARGET = "normalized_accuracy"


def run_study(
    out: Path, options: dict[str, Any], count: int, methods: Sequence[str], seed: int, bar: Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make a zoo, compute its metrics and score its merges, or what of that is not yet there.

    Args:
        out: folder of the study.
        options: of the zoo, from `default_options`.
        count: of tasks.
        methods: of merging.
        seed: of the zoo.
        bar: shows how far it is.

    Returns:
        Metrics (a row for each pair), and scores (a row for each method and pair).
    """
    zoo = out / "zoo"
    make_zoo(zoo, options, count, seed, bar)
    metrics = compute_metrics(out, bar)
    alone = score_alone(zoo, out / "alone.csv")["accuracy"]
    pairs = list(combinations(metrics.models, 2))
    return metrics.to_pandas(), score_merges(zoo, pairs, methods, alone, out / "scores.csv", bar)


def compute_metrics(out: Path, bar: Progress) -> mergekern.MetricTable:
    """Return, and write, the metrics of a study's zoo; what was measured before is used again."""
    config = json.loads((out / "zoo" / "model.json").read_text())
    model = partial(build, config["encoder"], config["architecture"])
    calibration = mergekern.Calibration.from_folder(out / "zoo" / "calibration", model)
    task = bar.add_task("computing metrics", total=None)

    def show(progress: mergekern.Progress) -> None:
        bar.update(task, completed=progress.tensors_done, total=progress.tensors_total, description="computing metrics")

    table = mergekern.compute_all(
        out / "zoo", calibration=calibration, per_layer=True, device="cpu", statistics=out / "statistics", progress=show
    )
    bar.remove_task(task)
    table.save(out / "metrics.parquet")
    return table


def scores_by_method(scores: pd.DataFrame, target: str = TARGET) -> dict[str, pd.Series]:
    """Return the scores of each method as a series over pairs."""
    pairs = scores.set_index(["model_a", "model_b"])
    return {str(method): rows[target] for method, rows in pairs.groupby("method", sort=False)}


def check_options(out: Path, options: dict[str, Any], force: bool) -> None:
    """Write the options of a run to its folder, where no run with others has been.

    Raises:
        click.ClickException: there has, and `force` is not set; with it, its files are removed.
    """
    path = out / "study.json"
    if path.exists() and json.loads(path.read_text()) != options:
        if not force:
            raise click.ClickException(
                f"{out} has a study with other options ({path}); give another folder, or --force"
            )
        for name in ("zoo", "statistics", "analysis"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("scores.csv", "alone.csv", "metrics.parquet", "findings.md", "report.html"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{json.dumps(options, indent=2)}\n".encode())


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on standard error, and at the end how long everything took."""
    began = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield bar
    click.echo(f"{time.perf_counter() - began:.0f} s", err=True)


def parse_methods(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    """Return the names in a list of merge methods with commas between."""
    names = [name.strip() for name in value.split(",")]
    if unknown := [name for name in names if name not in mergekern.METHODS]:
        raise click.BadParameter(f"no method {unknown[0]!r}; there are {', '.join(mergekern.METHODS)}", ctx, param)
    return names


def show(findings: list[Finding], scores: pd.DataFrame) -> None:
    """Print the findings and the means of the scores."""
    console = Console(width=150)
    means = scores.groupby("method", sort=False)[["accuracy", TARGET]].agg(["mean", "min"])
    table = Table("method", "accuracy", "worst pair", "normalised", "worst pair", box=None)
    for method, row in means.iterrows():
        table.add_row(str(method), *(f"{value:.3f}" for value in row))
    console.print(table)
    table = Table("", "paper", "measured here", "", show_lines=True)
    for finding in findings:
        table.add_row(finding.question, finding.paper, finding.here, finding.verdict)
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--architecture", type=click.Choice(list(CLASSES)), default="vit", show_default=True)
@click.option("--quick", is_flag=True, help=f"{QUICK_TASKS} tasks, if --tasks does not say another number.")
@click.option("--tasks", type=click.IntRange(5, TASKS), help=f"Fine-tune on so many tasks.  [default: {TASKS}]")
@click.option(
    "--methods", default=",".join(mergekern.METHODS), callback=parse_methods, help="Of merging.  [default: all]"
)
@click.option("--seed", default=0, show_default=True)
@click.option("--force", is_flag=True, help="Make everything anew, replacing a study with other options.")
def main(
    out: Path, architecture: str, quick: bool, tasks: int | None, methods: list[str], seed: int, force: bool
) -> None:
    """Study which pairs of a zoo merge well, and what predicts it, in the folder OUT."""
    count = tasks or (QUICK_TASKS if quick else TASKS)
    zoo_options = default_options(architecture)
    names = [task.name for task in DOMAINS[architecture].tasks[:count]]
    check_options(out, {"seed": seed, "tasks": names, "methods": methods, "zoo": zoo_options}, force)
    with progress_bar() as bar:
        metrics, scores = run_study(out, zoo_options, count, methods, seed, bar)
        frames = analyse(metrics, scores_by_method(scores), out / "analysis", bar)
    findings = find(scores, frames)
    write_atomically(out / "findings.md", as_markdown(findings).encode())
    measured = {method: read_scores(out / "scores.csv", method, TARGET) for method in methods}
    title = f"{count} tasks, {architecture}"
    write_report(mergekern.MetricTable.load(out / "metrics.parquet"), out / "report.html", scores=measured, title=title)
    show(findings, scores)
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
