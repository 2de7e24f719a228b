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
    probes/             merge probes by each method (see mergekern.merge_probes), on samples that give no scores
    analysis/           validation, variance components, ablation, coefficients and fingerprints of the methods
    predictors/         a fitted predictor of each method's scores
    timings.csv         what, method, count, seconds: what metrics, probes and measured merges cost on this machine
    budget.csv          method, predictor, merges: r, rmse and regret of predicting all other pairs from so many merges,
                        with alone.csv as what is known before the first
    comparison.csv      method, predictor, seconds, and r with partners known and with both models unseen
    comparison.svg      the means over the methods
    findings.md         what was found, beside what the paper says, and the comparison
    report.html         pairs, metrics, scores and predictions as one page for a browser
    study.json          the options of the run

Seconds are never the same twice: the first ones that were measured are kept, and nothing but timings.csv, the two
comparisons and findings.md depends on them. `--quick` has 10 tasks (45 pairs) in place of 20 (190), and leaves out
nothing else.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from threadpoolctl import threadpool_limits

import mergekern
from mergekern._internal.files import write_atomically
from mergekern.cli.parameters import parse_methods
from mergekern.prediction import MergePredictor, budget_curve, model_scores, read_scores
from mergekern.report import write_report
from study.analysis import analyse
from study.comparison import compare, draw, means
from study.findings import Finding, as_markdown, find
from study.probing import Timings, probe_merges, time_others
from study.scoring import score_alone, score_merges
from zoos.encoders import CLASSES, build
from zoos.making import CALIBRATION_SAMPLES, DOMAINS, default_options, make_zoo

TASKS, QUICK_TASKS = 20, 10
TARGET = "normalized_accuracy"


def run_study(
    out: Path, options: dict[str, Any], count: int, methods: Sequence[str], random_state: int, bar: Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make a zoo, compute its metrics and score its merges, or what of that is not yet there.

    Args:
        out: folder of the study.
        options: options of the zoo, from `default_options`.
        count: number of tasks.
        methods: names of merge methods.
        random_state: decides all random numbers of the zoo.
        bar: shows how far it is.

    Returns:
        Metrics (a row for each pair), and scores (a row for each method and pair).
    """
    zoo = out / "zoo"
    make_zoo(zoo, options, count, random_state, bar)
    metrics = compute_metrics(out, bar, out / "statistics")
    metrics.save(out / "metrics.parquet")
    alone = score_alone(zoo, out / "alone.csv")["accuracy"]
    pairs = list(combinations(metrics.models, 2))
    return metrics.to_pandas(), score_merges(zoo, pairs, methods, alone, out / "scores.csv", bar)


def read_calibration(out: Path, equal: bool) -> mergekern.Calibration:
    """Return the calibration samples of a study's zoo: all, or equally many a task, as input gradients need it."""
    config = json.loads((out / "zoo" / "model.json").read_text())
    model = partial(build, config["encoder"], config["architecture"])
    calibration = mergekern.Calibration.from_folder(out / "zoo" / "calibration", model)
    fewest = min(task.size for task in calibration.tasks.values())
    if not equal or all(task.size == fewest for task in calibration.tasks.values()):
        return calibration
    tasks = {name: (task.inputs[:fewest], task.labels[:fewest], task.head) for name, task in calibration.tasks.items()}
    return replace(calibration, tasks=tasks)


def compute_metrics(out: Path, bar: Progress, statistics: Path | None) -> mergekern.MetricTable:
    """Return the metrics of a study's zoo; what was measured before is used again, where `statistics` has it."""
    task = bar.add_task("computing metrics", total=None)

    def show(progress: mergekern.Progress) -> None:
        bar.update(task, completed=progress.tensors_done, total=progress.tensors_total, description="computing metrics")

    table = mergekern.compute_all(
        out / "zoo", calibration=read_calibration(out, equal=True), per_layer=True, device="cpu", statistics=statistics,
        progress=show,
    )  # fmt: skip
    bar.remove_task(task)
    return table


def compare_costs(
    out: Path, metrics: pd.DataFrame, scores: pd.DataFrame, methods: Sequence[str], bar: Progress
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Probe merges, validate all predictors, and write them beside what they cost.

    Returns:
        The frames of `analyse`, and the comparison.
    """
    timings = Timings(out / "timings.csv")
    alone = pd.read_csv(out / "alone.csv", index_col="model")["accuracy"]
    probes = probe_merges(out / "zoo", read_calibration(out, equal=False), methods, out / "probes", timings, bar)
    time_others(out / "zoo", partial(compute_metrics, out, bar, None), methods, alone, timings, bar)
    frames = analyse(pd.concat([metrics, probes], axis=1), scores_by_method(scores), out / "analysis", bar)
    comparison = compare(frames["validation"], timings, len(alone))
    write_atomically(out / "comparison.csv", comparison.to_csv().encode())
    title = f"{len(alone)} models, {len(methods)} merge methods: what predicts how well a pair merges, and its cost"
    write_atomically(out / "comparison.svg", draw(comparison, title))
    return frames, comparison


def fit_predictors(
    table: mergekern.MetricTable, scores: Mapping[str, pd.Series], out: Path, bar: Progress
) -> list[MergePredictor]:
    """Return a fitted predictor of each method's scores; those in the folder `out` that were fitted to the same."""
    out.mkdir(exist_ok=True)
    predictors = []
    for method, of_pairs in bar.track(scores.items(), len(scores), description="fitting predictors"):
        path = out / f"{method}.json"
        kept = MergePredictor.load(path) if path.exists() else None
        wanted = of_pairs.to_dict()
        if kept is None or kept.provenance["table"] != table.provenance or kept.measured.to_dict() != wanted:
            with threadpool_limits(1):  # these matrices are too small to share
                MergePredictor.fit(table, of_pairs, method).save(path)
        # As it is read back, in a first run and in any other.
        predictors.append(MergePredictor.load(path))
    return predictors


def budget_curves(out: Path, scores: pd.DataFrame, target: str = TARGET) -> pd.DataFrame:
    """Return, and write as CSV, what is known of each method's scores after so many measured merges."""
    alone = pd.read_csv(out / "alone.csv", dtype={"model": str})
    known = alone.rename(columns={"accuracy": "own_accuracy"})
    curves = {}
    for method, y in scores_by_method(scores, target).items():
        models = dict.fromkeys(name for pair in y.index for name in pair)  # in the order of the pairs
        X = model_scores(models, known).reindex(y.index)
        curves[method] = budget_curve(X, y, target=target)
    found = pd.concat(curves, names=["method"])
    write_atomically(out / "budget.csv", found.to_csv().encode())
    return found


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
        for name in ("zoo", "statistics", "probes", "analysis", "predictors"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (
            "scores.csv", "alone.csv", "metrics.parquet", "timings.csv", "comparison.csv", "comparison.svg",
            "findings.md", "report.html", "budget.csv",
        ):  # fmt: skip
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


def show(findings: list[Finding], scores: pd.DataFrame, comparison: pd.DataFrame, budgets: pd.DataFrame) -> None:
    """Print the findings, the means of the scores, and the predictors beside what they and measured merges cost."""
    console = Console(width=150)
    by_method = scores.groupby("method", sort=False)[["accuracy", TARGET]].agg(["mean", "min"])
    table = Table("method", "accuracy", "worst pair", "normalised", "worst pair", box=None)
    for method, row in by_method.iterrows():
        table.add_row(str(method), *(f"{value:.3f}" for value in row))
    console.print(table)
    table = Table("predictor, mean of the methods", "seconds", "r, partner known", "r, both unseen", box=None)
    for name, row in means(comparison).iterrows():
        table.add_row(str(name), f"{row['seconds']:.2f}", f"{row.iloc[1]:.3f}", f"{row.iloc[2]:.3f}")
    console.print(table)
    table = Table("predictor, mean of the methods", "merges", "r", "rmse", "regret of the best pair", box=None)
    of_methods = budgets.groupby(level=["predictor", "merges"], sort=False).mean()
    for names, figures in zip(of_methods.index, of_methods.to_numpy(), strict=True):
        table.add_row(*map(str, names), *("-" if value != value else f"{value:.3f}" for value in figures))
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
@click.option("--methods", default="all", callback=parse_methods, help="Of merging.  [default: all that merge pairs]")
@click.option("--samples", type=click.IntRange(10, 200), default=CALIBRATION_SAMPLES, show_default=True,
              help="Calibration samples a task, at most half of the held-out ones; others give scores.")  # fmt: skip
@click.option("--random-state", default=0, show_default=True)
@click.option("--force", is_flag=True, help="Make everything anew, replacing a study with other options.")
def main(
    out: Path, architecture: str, quick: bool, tasks: int | None, methods: list[str], samples: int, random_state: int,
    force: bool,
) -> None:  # fmt: skip
    """Study which pairs of a zoo merge well, and what predicts it, in the folder OUT."""
    count = tasks or (QUICK_TASKS if quick else TASKS)
    zoo_options = default_options(architecture) | {"calibration_samples": samples}
    names = [task.name for task in DOMAINS[architecture].tasks[:count]]
    check_options(out, {"random_state": random_state, "tasks": names, "methods": methods, "zoo": zoo_options}, force)
    with progress_bar() as bar:
        metrics, scores = run_study(out, zoo_options, count, methods, random_state, bar)
        frames, comparison = compare_costs(out, metrics, scores, methods, bar)
        measured = {method: read_scores(out / "scores.csv", method, TARGET) for method in methods}
        table = mergekern.MetricTable.load(out / "metrics.parquet")
        with threadpool_limits(1):
            budgets = budget_curves(out, scores)
        predictors = fit_predictors(table, measured, out / "predictors", bar)
    findings = find(scores, frames, means(comparison))
    write_atomically(out / "findings.md", as_markdown(findings, means(comparison)).encode())
    title = f"{count} tasks, {architecture}"
    with threadpool_limits(1):
        write_report(table, out / "report.html", scores=measured, predictors=predictors, title=title)
    show(findings, scores, comparison, budgets)
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
