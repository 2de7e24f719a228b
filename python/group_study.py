"""Groups of more than two models: whether metrics of the group tell how well n models merge.

The paper (arXiv 2601.22285) leaves that open.

    mergekern study out
    python python/group_study.py out

For n = 2 to 8, groups are drawn from the zoo of a study, merged by every method and measured on the held-out data of
all n tasks; `mergekern.group_metrics` gives their metrics from the study's statistics, without reading a weight. The
folder of the study gets

    groups/scores.csv         method, models (joined by "+"), accuracy, normalized_accuracy
    groups/metrics.csv        the metrics of each group
    groups/correlations.csv   for each method and n: Pearson's r of every group metric with normalized_accuracy, and
                              that of "model effects": the mean of each model's own effect, from the study's pairs

A run that was stopped continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

import mergekern
from mergekern._internal.files import write_atomically
from mergekern.cli.group import Program
from mergekern.cli.parameters import parse_methods
from mergekern.cli.study import progress_bar
from mergekern.prediction import variance_components
from mergekern.study.scoring import score_merges
from mergekern.study.stages import TARGET, scores_by_method

EFFECTS = "model effects"
METHODS = "weight_average,task_arithmetic,ties,tsv,isotropic"


def draw_groups(names: Sequence[str], size: int, count: int, random_state: int) -> list[tuple[str, ...]]:
    """Return so many different groups of a size, or all there are; the same for the same arguments.

    >>> draw_groups("abcd", 3, 2, 0)
    [('a', 'b', 'd'), ('b', 'c', 'd')]
    """
    if comb(len(names), size) <= count:
        return list(combinations(names, size))
    random = np.random.default_rng([random_state, size])
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        chosen = np.sort(random.choice(len(names), size, replace=False))
        found[tuple(names[position] for position in chosen)] = None
    return sorted(found, key=lambda group: [names.index(name) for name in group])


def effects_of_models(scores: pd.DataFrame) -> pd.DataFrame:
    """Return t of y_ab = μ + t_a + t_b from merged pairs: model × method."""
    return pd.DataFrame({m: variance_components(y, y.index).effects for m, y in scores_by_method(scores).items()})


def correlate(scores: pd.DataFrame, metrics: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """Return r of each group metric, and of the mean of the models' effects, with the accuracy of each method and n."""
    rows = {}
    for method, of_method in scores.groupby("method", sort=False):
        y = of_method.set_index("models")[TARGET]
        sizes = y.index.str.count(r"\+") + 1
        alone = [effects.loc[group.split("+"), str(method)].mean() for group in y.index]
        values = metrics.loc[y.index].assign(**{EFFECTS: alone})
        for size in sorted(set(sizes)):
            chosen = values[sizes == size]
            # A metric that does not vary correlates with nothing.
            chosen = chosen.loc[:, chosen.std(ddof=0) > 1e-12 * chosen.abs().max()]
            rows[method, size] = chosen.corrwith(y[sizes == size]).reindex(values.columns)
    return pd.DataFrame(rows).T.rename_axis(["method", "n"])


def show(scores: pd.DataFrame, correlations: pd.DataFrame) -> None:
    """Print accuracy by method and n, and the metrics that correlate most, mean over the methods."""
    console = Console(width=150)
    sizes = scores["models"].str.count(r"\+") + 1
    means = scores.groupby(["method", sizes], sort=False)[TARGET].mean().unstack()
    table = Table("normalised accuracy", *(f"n = {n}" for n in means.columns), box=None)
    for method, row in means.iterrows():
        table.add_row(str(method), *(f"{value:.3f}" for value in row))
    console.print(table)
    r = correlations.groupby(level="n").mean()
    best = r.drop(columns=EFFECTS).abs().mean().sort_values(ascending=False).index[:8]
    table = Table("r, mean of the methods", *(f"n = {n}" for n in r.index), box=None)
    for name in (EFFECTS, "effective_rank", *best):
        table.add_row(str(name), *(f"{value:+.2f}" for value in r[name]))
    console.print(table)


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="STUDY", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--largest", type=click.IntRange(3), default=8, show_default=True, help="n goes from 2 to this.")
@click.option("--groups", "count", type=click.IntRange(3), default=40, show_default=True, help="Of each n.")
@click.option("--methods", default=METHODS, callback=parse_methods, show_default=True)
@click.option("--random-state", default=0, show_default=True, help="Of the groups drawn.")
def main(folder: Path, largest: int, count: int, methods: list[str], random_state: int) -> None:
    """Relate the metrics of groups to the accuracy of n-way merges, for the zoo of a study in the folder STUDY."""
    try:
        statistics = mergekern.ZooStatistics.load(folder / "statistics")
        pairs = pd.read_csv(folder / "scores.csv")
        alone = pd.read_csv(folder / "alone.csv", index_col="model")["accuracy"]
    except (OSError, mergekern.StatisticsError) as error:
        raise click.ClickException(f"{folder} is not the folder of a study that is finished: {error}") from error
    if lacking := sorted(set(methods) - set(pairs["method"])):
        raise click.ClickException(f"the study in {folder} has no merges by {', '.join(lacking)}; give other --methods")
    sizes = range(2, min(largest, len(statistics.models)) + 1)
    groups = {size: draw_groups(statistics.models, size, count, random_state) for size in sizes}
    every = [group for size in sizes for group in groups[size]]
    out = folder / "groups"
    out.mkdir(exist_ok=True)
    metrics = mergekern.group_metrics(statistics, every).set_axis(["+".join(group) for group in every])
    write_atomically(out / "metrics.csv", metrics.to_csv(index_label="models").encode())
    with progress_bar() as bar:
        scores = score_merges(folder / "zoo", every, methods, alone, out / "scores.csv", bar)
    correlations = correlate(scores, metrics, effects_of_models(pairs))
    write_atomically(out / "correlations.csv", correlations.to_csv().encode())
    show(scores, correlations)
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
