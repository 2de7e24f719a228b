"""How many samples do the activation and gradient metrics need? Repeat them for growing samples, and compare.

    python python/make_digits_zoo.py zoo
    python python/calibration_sensitivity.py zoo --model-fn python/make_digits_zoo.py:build_model --out sensitivity

For every number of samples a task and every random_state, samples are drawn anew, the ten metrics are computed for all
pairs, and the pairs are ranked. The result is the rank correlation (Spearman) with the largest number of samples, in
the draw of the next random_state, so that the largest number has a value too: how well it repeats itself. OUT gets

    sensitivity.csv    metric, samples, random_state, rank_correlation, pairs (that have a value in both)
    sensitivity.svg    the mean over the draws for each metric, and their spread

Samples are drawn from ZOO/calibration/TASK.safetensors: `inputs` and `labels`, and, where they are there, `test.inputs`
and `test.labels`. Where a task has fewer samples than the largest number, all that it has are the largest.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import safe_open
from scipy.stats import spearmanr

import mergekern
from mergekern.checkpoints import Zoo, open_zoo
from mergekern.cli.parameters import Function
from mergekern.functional.calibration import Task
from mergekern.metrics import CATALOGUE

SIZES = (2, 5, 10, 20, 50, 100, 200)
METRICS = [metric for metric in CATALOGUE.values() if metric.runs_models]


def with_test_samples(tasks: Mapping[str, Task], folder: Path) -> dict[str, Task]:
    """Return the tasks with the test samples that their files hold beside the others."""
    pools = {}
    for name, task in tasks.items():
        with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
            if "test.inputs" in file.keys() and isinstance(task.inputs, torch.Tensor):  # noqa: SIM118
                inputs = torch.cat([task.inputs, file.get_tensor("test.inputs")])
                task = Task(inputs, torch.cat([task.labels, file.get_tensor("test.labels").long()]), task.head)
        pools[name] = task
    return pools


def draw(tasks: Mapping[str, Task], count: int, random_state: int) -> dict[str, Task]:
    """Return `count` samples of each task, drawn without replacement; the same for the same arguments.

    >>> task = Task(torch.arange(4.0), torch.arange(4), (torch.ones(4, 1), None))
    >>> draw({"a": task}, 2, 0)["a"].labels.shape
    torch.Size([2])
    """
    drawn = {}
    for name, task in tasks.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{random_state} {count} {name}".encode()))
        rows = torch.randperm(task.size, generator=generator)[:count]
        inputs = {k: v[rows] for k, v in task.inputs.items()} if isinstance(task.inputs, dict) else task.inputs[rows]
        drawn[name] = Task(inputs, task.labels[rows], task.head)
    return drawn


def possible_sizes(sizes: Sequence[int], tasks: Mapping[str, Task]) -> list[int]:
    """Return the sizes that every task has samples for, in order; the largest is all that the smallest task has.

    >>> task = Task(torch.ones(30), torch.zeros(30), (torch.ones(1, 1), None))
    >>> possible_sizes([2, 20, 50], {"a": task})
    [2, 20, 30]
    """
    most = min(task.size for task in tasks.values())
    return sorted({min(size, most) for size in sizes})


def rank_correlation(one: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """Return Spearman's rank correlation over what is finite in both, and the number of that; NaN for fewer than three.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    (1.0, 3)
    """
    both = np.isfinite(one) & np.isfinite(other)
    count = int(both.sum())
    constant = count and (np.ptp(one[both]) == 0 or np.ptp(other[both]) == 0)
    return (float("nan") if count < 3 or constant else float(spearmanr(one[both], other[both]).statistic)), count


def repeat(
    zoo: Zoo,
    tasks: Mapping[str, Task],
    sizes: Sequence[int],
    n_repeats: int,
    make: Callable[[Mapping[str, Task]], mergekern.Calibration],
    progress: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Compute the metrics for every size and random_state, and return how they rank the pairs beside the largest size.

    Args:
        zoo: zoo that the models belong to.
        tasks: all samples there are.
        sizes: numbers of samples a task, ascending.
        n_repeats: number of draws of each.
        make: from tasks to a calibration.
        progress: called after every run.

    Returns:
        One row for each metric, size and random_state; the columns of sensitivity.csv.
    """
    tables = {}
    for size in sizes:
        for random_state in range(n_repeats):
            calibration = make(draw(tasks, size, random_state))
            names = [metric.name for metric in METRICS]
            tables[size, random_state] = mergekern.compute_all(zoo, metrics=names, calibration=calibration).to_pandas()
            progress()
    rows = []
    for (size, random_state), table in tables.items():
        largest = tables[sizes[-1], (random_state + 1) % n_repeats]
        for metric in METRICS:
            correlation, pairs = rank_correlation(table[metric.name].to_numpy(), largest[metric.name].to_numpy())
            rows.append((metric.name, size, random_state, correlation, pairs))
    return pd.DataFrame(rows, columns=["metric", "samples", "random_state", "rank_correlation", "pairs"])


def plot(results: pd.DataFrame, path: Path) -> None:
    """Draw the rank correlation of each metric against the number of samples, one panel a kind."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    kinds = ("activation", "encoder_gradient", "input_gradient")
    for axes, kind in zip(figure.subplots(1, 3, sharey=True), kinds, strict=True):
        for metric in METRICS:
            if not metric.name.startswith(kind):
                continue
            groups = results[results["metric"] == metric.name].groupby("samples")["rank_correlation"]
            label = metric.name.removeprefix(f"{kind}_").replace("_", " ")
            (line,) = axes.plot(list(groups.groups), groups.mean(), marker="o", markersize=4, label=label)
            axes.fill_between(list(groups.groups), groups.min(), groups.max(), alpha=0.15, color=line.get_color())
        sizes = sorted(results["samples"].unique())
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("samples a task")
        axes.set_title(kind.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("rank correlation with the largest")
    # No date and no random ids: the same results give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "mergekern"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def show(results: pd.DataFrame) -> None:
    """Print the mean rank correlation of each metric and number of samples."""
    means = results.pivot_table("rank_correlation", "metric", "samples", sort=False, dropna=False)
    table = Table("rank correlation with the largest", *(f"{size} samples" for size in means.columns), box=None)
    for name, values in means.iterrows():
        table.add_row(str(name), *(f"{value:.3f}" for value in values))
    Console(width=200).print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="ZOO", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--model-fn", "model", type=Function(), required=True, help="What builds the model, as in `mergekern metrics`."
)
@click.option("--calibration", "samples", type=click.Path(path_type=Path), help="[default: ZOO/calibration]")
@click.option("--sizes", default=",".join(map(str, SIZES)), show_default=True, help="Numbers of samples a task.")
@click.option("--n-repeats", type=click.IntRange(1), default=5, show_default=True, help="Draws of each number.")
@click.option("--batch-weighting", type=click.Choice(["published", "sample"]), default="published", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to.")
def main(
    folder: Path,
    model: Callable[[], Any],
    samples: Path | None,
    sizes: str,
    n_repeats: int,
    batch_weighting: Any,
    out: Path,
) -> None:
    """Repeat the activation and gradient metrics of ZOO for growing numbers of samples."""
    try:
        wanted = [int(size) for size in sizes.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{sizes!r} is not a list of numbers", param_hint="--sizes") from error
    if min(wanted) < 1:
        raise click.BadParameter("a number of samples is at least 1", param_hint="--sizes")
    samples = samples or folder / "calibration"
    try:
        zoo = open_zoo(folder)
        calibration = mergekern.Calibration.from_folder(samples, model, batch_weighting=batch_weighting)
        tasks = with_test_samples(calibration.tasks, samples)
        possible = possible_sizes(wanted, tasks)
        if left := sorted(set(wanted) - set(possible)):
            least = min(tasks, key=lambda name: tasks[name].size)
            text = f"{least} has {tasks[least].size} samples: {possible[-1]} instead of {', '.join(map(str, left))}"
            click.echo(text, err=True)

        def make(drawn: Mapping[str, Task]) -> mergekern.Calibration:
            return mergekern.Calibration(
                model, drawn, calibration.layer, batch_size=calibration.batch_size,
                activation_batch_size=calibration.activation_batch_size, batch_weighting=batch_weighting,
                token_dim=calibration.token_dim, input_layer=calibration.input_layer, dtype=calibration.dtype,
            )  # fmt: skip

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("running models", total=len(possible) * n_repeats)
            results = repeat(zoo, tasks, possible, n_repeats, make, lambda: bar.advance(task))
    except mergekern.MergekernError as error:
        raise click.ClickException(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    results.to_csv(out / "sensitivity.csv", index=False)
    plot(results, out / "sensitivity.svg")
    show(results)
    click.echo(f"wrote {out}/sensitivity.csv and sensitivity.svg")


if __name__ == "__main__":
    main()
