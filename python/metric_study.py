"""What each of the 28 metrics says alone of how well pairs merge: on zoos made here, and on the published study.

    mergekern study STUDY --architecture cnn                        # for each architecture, first
    python python/metric_study.py STUDY [STUDY ...] [--published FOLDER] [--page docs/metrics.md]

Each STUDY is a folder that mergekern study wrote, or its metrics.parquet and scores.csv; FOLDER holds the published
metrics_vit_b16.csv and accuracy_vit_b16.csv (arXiv 2601.22285). Printed is Pearson's r of each metric with what merges
score, a mean over the merge methods, with the sign that the metric's authors expect: above 0 where "more mergeable"
pairs score more. All pairs take part, and nothing is fitted. The first metric is what pairs are ranked by.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console

from marked_tables import write_table
from mergekern.metrics import CATALOGUE, metric_of
from mergekern.prediction.pairs import pair_key
from mergekern.study.stages import scores_by_method
from mergekern.tables.metric_table import MetricTable

TARGETS = {"accuracy": "raw", "normalized_accuracy": "normalised"}
MARKS = "<!-- metrics alone: begin (python/metric_study.py) -->", "<!-- metrics alone: end -->"


def alone(metrics: pd.DataFrame, scores: pd.DataFrame, target: str) -> pd.DataFrame:
    """Return metric × method: r with the sign that the authors of the metric expect."""
    table = metrics.set_axis(metrics.index.map(pair_key))
    found = {}
    for method, of_pairs in scores_by_method(scores, target).items():
        y = of_pairs.dropna().set_axis(of_pairs.dropna().index.map(pair_key))
        X = table.reindex(y.index)
        found[method] = {
            name: (1 if metric_of(name).more_mergeable == "higher" else -1) * X[name].corr(y)
            for name in CATALOGUE
            if name in X
        }
    return pd.DataFrame(found)


def as_markdown(found: dict[tuple[str, str], pd.DataFrame]) -> str:
    """Return a row for each metric, the best mean first, and a column for each zoo and target."""
    means = pd.DataFrame({zoo: values.mean(axis=1) for zoo, values in found.items()})
    means["mean"] = means.mean(axis=1)
    heads = [*(f"{zoo}, {TARGETS[target]}" for zoo, target in found), "mean"]
    lines = [f"| metric | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name, row in means.sort_values("mean", ascending=False).iterrows():
        lines.append(f"| {name} | {' | '.join('-' if np.isnan(r) else f'{r:.2f}' for r in row)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("studies", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--published", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(studies: tuple[Path, ...], published: Path | None, page: Path | None) -> None:
    """Print the table; see the module's docstring."""
    zoos = {
        study.name: (MetricTable.load(study / "metrics.parquet").to_pandas(), pd.read_csv(study / "scores.csv"))
        for study in studies
    }
    if published is not None:
        metrics = MetricTable.load(published / "metrics_vit_b16.csv").to_pandas()
        scores = pd.read_csv(published / "accuracy_vit_b16.csv")
        four = scores[scores["method"].isin(["weight_avg", "arithmetic", "tsv", "isotropic"])]
        zoos["the study"] = metrics, four
    found = {(name, target): alone(*zoo, target) for name, zoo in zoos.items() for target in TARGETS}
    console = Console()
    for (name, target), values in found.items():
        first = values.loc[["task_vector_l2_distance", "task_vector_cosine_similarity"]].round(2)
        console.print(f"{name}, {target}\n{first.to_string()}", soft_wrap=True)
    table = as_markdown(found)
    console.print(table, soft_wrap=True)
    if page is not None:
        write_table(page, MARKS, table)


if __name__ == "__main__":
    main()
