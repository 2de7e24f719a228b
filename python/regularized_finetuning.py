"""Merge-aware fine-tuning: the study repeated for several weights of a regularizer on fine-tuning.

    python python/regularized_finetuning.py regularized
    python python/regularized_finetuning.py regularized-flat --regularizer gradient_magnitude --weights 0,0.001,0.01

For every weight λ the same tasks are fine-tuned from the same base with λ times one of `mergekern.regularizers` in the
loss, and all pairs merged by every method. The paper (arXiv 2601.22285) found 0.55 points of normalised accuracy
at λ = 1. The folder gets a study for each λ (see `mergekern study`), and

    accuracy.csv    method, weight, normalized_accuracy (mean over the pairs), gain (in points, over the smallest λ),
                    alone (mean accuracy of the single models), merged (that of the merges, not normalised)
    metrics.csv     metric, weight, mean (over the pairs), shift (from the smallest λ, in its standard deviations over
                    the pairs): which metrics moved

A run that was stopped continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.table import Table

from mergekern._internal.files import write_atomically
from mergekern.cli.group import Program
from mergekern.cli.parameters import parse_methods
from mergekern.cli.study import QUICK_TASKS, TASKS, progress_bar
from mergekern.study.stages import TARGET, check_options, run_study
from mergekern.study.zoos.encoders import CLASSES
from mergekern.study.zoos.making import REGULARIZERS, default_options

METHODS = "weight_average,task_arithmetic,ties,tsv,isotropic"
WEIGHTS = "0,0.001,0.01,0.1,1"


def compare_accuracy(scores: Mapping[float, pd.DataFrame], alone: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    """Return mean accuracies by method and weight, beside those of the smallest weight.

    >>> one, two = (pd.DataFrame({"method": ["ties"], "accuracy": [a], TARGET: [a]}) for a in (0.5, 0.75))
    >>> single = pd.DataFrame({"accuracy": [1.0]})
    >>> compare_accuracy({0: one, 1: two}, {0: single, 1: single})["gain"].to_dict()
    {('ties', 0): 0.0, ('ties', 1): 25.0}
    """
    means = {
        weight: frame.groupby("method", sort=False)[["accuracy", TARGET]].mean() for weight, frame in scores.items()
    }
    first: Any = means[min(means)]
    frames = []
    for weight, mean in means.items():
        gain, single = 100 * (mean[TARGET] - first[TARGET]), alone[weight]["accuracy"].mean()
        frame = pd.DataFrame({TARGET: mean[TARGET], "gain": gain, "alone": single, "merged": mean["accuracy"]})
        frames.append(frame.assign(weight=weight).set_index("weight", append=True))
    return pd.concat(frames).sort_index(level="method", sort_remaining=False, kind="stable")


def compare_metrics(metrics: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    """Return the mean of each metric by weight, and how many standard deviations it moved.

    >>> frames = {0: pd.DataFrame({"angle": [80.0, 90.0]}), 1: pd.DataFrame({"angle": [80.0, 80.0]})}
    >>> compare_metrics(frames).loc[("angle", 1)].to_dict()
    {'mean': 80.0, 'shift': -1.0}
    """
    first = metrics[min(metrics)]
    means = pd.DataFrame({weight: frame.mean() for weight, frame in metrics.items()})
    shifts = means.sub(first.mean(), axis=0).div(first.std(ddof=0), axis=0)
    frame = pd.DataFrame({"mean": means.stack(), "shift": shifts.stack()})
    return frame.rename_axis(["metric", "weight"])


def show(accuracy: pd.DataFrame, metrics: pd.DataFrame) -> None:
    """Print normalised accuracy by method and weight, and the metrics that moved most at the largest weight."""
    normalised, gain = accuracy[TARGET].unstack("method"), accuracy["gain"].unstack("method")
    table = Table("λ", "single models", *map(str, normalised.columns), box=None)
    for weight, row in normalised.iterrows():
        single = accuracy["alone"].unstack("weight")[weight].iloc[0]
        cells = (f"{value:.3f} ({points:+.2f})" for value, points in zip(row, gain.T[weight], strict=True))
        table.add_row(f"{weight:g}", f"{single:.3f}", *cells)
    console = Console(width=150)
    console.print(table)
    moved = metrics["shift"].unstack("weight")
    order = moved.iloc[:, -1].abs().sort_values(ascending=False).index[:10]
    table = Table("metric, shift in sd", *(f"λ = {weight:g}" for weight in moved.columns), box=None)
    for name in order:
        table.add_row(str(name), *(f"{value:+.2f}" for value in moved.loc[name]))
    console.print(table)


def parse_weights(ctx: click.Context, param: click.Parameter, value: str) -> list[float]:
    """Return the numbers in a list with commas between."""
    try:
        weights = sorted({float(part) for part in value.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers", ctx, param) from error
    if len(weights) < 2 or weights[0] < 0:
        raise click.BadParameter("two weights or more are compared, none below 0", ctx, param)
    return weights


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--regularizer", type=click.Choice(list(REGULARIZERS)), default="distance_from_base", show_default=True)
@click.option("--weights", default=WEIGHTS, callback=parse_weights, show_default=True, help="λ, several.")
@click.option("--architecture", type=click.Choice(list(CLASSES)), default="vit", show_default=True)
@click.option("--tasks", type=click.IntRange(3, TASKS), default=QUICK_TASKS, show_default=True)
@click.option("--methods", default=METHODS, callback=parse_methods, show_default=True)
@click.option("--random-state", default=0, show_default=True)
@click.option("--force", is_flag=True, help="Make everything anew, replacing what was made with other options.")
def main(
    out: Path, regularizer: str, weights: list[float], architecture: str, tasks: int, methods: list[str],
    random_state: int, force: bool,
) -> None:  # fmt: skip
    """Repeat the study for several weights of a regularizer on fine-tuning, in the folder OUT."""
    scores, metrics, alone = {}, {}, {}
    with progress_bar() as bar:
        for weight in weights:
            folder, options = out / f"{regularizer}={weight:g}", default_options(architecture)
            options["fine_tuning"]["regularizers"] = {regularizer: weight}
            check_options(
                folder, {"random_state": random_state, "tasks": tasks, "methods": methods, "zoo": options}, force
            )
            bar.console.print(f"λ = {weight:g}")
            metrics[weight], scores[weight] = run_study(folder, options, tasks, methods, random_state, bar)
            alone[weight] = pd.read_csv(folder / "alone.csv")
    accuracy, moved = compare_accuracy(scores, alone), compare_metrics(metrics)
    write_atomically(out / "accuracy.csv", accuracy.to_csv().encode())
    write_atomically(out / "metrics.csv", moved.to_csv().encode())
    show(accuracy, moved)
    click.echo(f"wrote {out}/accuracy.csv and metrics.csv")


if __name__ == "__main__":
    main()
