"""How often conformal intervals of predicted merges cover what was measured, by prediction and by size of the zoo.

    python python/interval_coverage.py FOLDER [--draws 100] [--kind additive] [--page docs/prediction.md]

FOLDER holds the study's accuracy_vit_b16.csv and models_vit_b16.csv (arXiv 2601.22285). Zoos are drawn from the study's
20 models and four methods, and simulated: once with errors that grow with what a merge loses, once with errors that do
not. In each draw, random merges are measured and all others predicted, with 80 % intervals. Printed is the share of
pairs inside their interval, for each tenth of the pairs by prediction. With --page the table is written into a page of
the documentation, between its marks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pandas as pd
from rich.console import Console
from threadpoolctl import threadpool_limits

from marked_tables import write_table
from mergekern.prediction import conformal_intervals, make_predictor, model_scores
from mergekern.prediction.refits import fit_estimator, predict_pairs, predicted_sd

# (models, measured merges)
SIZES = ((8, 10), (12, 20), (20, 20), (20, 40))
KINDS = ("prior+additive", "additive")
LEVEL, TENTHS = 0.8, 10
MARKS = "<!-- coverage: begin (python/interval_coverage.py) -->", "<!-- coverage: end -->"


class Zoo(NamedTuple):
    """Model scores of pairs, what their merges score, and which merges are measured."""

    X: pd.DataFrame
    y: np.ndarray
    measured: np.ndarray

    @staticmethod
    def draw(X: pd.DataFrame, y: np.ndarray, merges: int, random: np.random.Generator) -> Zoo:
        """Return a zoo of which random merges are measured."""
        measured = np.zeros(len(y), dtype=bool)
        measured[random.choice(len(y), merges, replace=False)] = True
        return Zoo(X[["own_accuracy_mean", "base_accuracy_mean"]], y, measured)


def study_zoos(folder: Path, models: int, merges: int, draws: int) -> Iterator[Zoo]:
    """Yield zoos of random models of the study, its four methods in turn."""
    listed = pd.read_csv(folder / "models_vit_b16.csv")
    scores = pd.read_csv(folder / "accuracy_vit_b16.csv").dropna(subset="accuracy")
    methods = sorted(scores["method"].unique())
    for draw in range(draws):
        random = np.random.default_rng([draw, models, merges])
        chosen = sorted(random.choice(listed["model"], models, replace=False))
        of_method = scores[scores["method"] == methods[draw % len(methods)]]
        names = of_method[["model_a", "model_b"]]
        of_method = of_method[names.isin(chosen).all(axis=1)]
        y = {frozenset(row[:2]): row[2] for row in of_method[["model_a", "model_b", "accuracy"]].to_numpy()}
        X = model_scores(chosen, listed)
        X = X[[frozenset(pair) in y for pair in X.index]]
        yield Zoo.draw(X, np.array([y[frozenset(pair)] for pair in X.index]), merges, random)


def simulated_zoos(models: int, merges: int, draws: int, errors_grow: bool) -> Iterator[Zoo]:
    """Yield zoos whose models lose something by being merged, the more, the less the base knows of their task."""
    for draw in range(draws):
        random = np.random.default_rng([draw, models, merges, int(errors_grow)])
        names = [f"m{number:02d}" for number in range(models)]
        own = 1 - np.clip(random.gamma(2, 0.05, models), 0.005, 0.5)
        base = own * random.uniform(0.3, 0.95, models)
        lost = random.gamma(1.5, 0.03, models) + 0.08 * (1 - base / own) * random.uniform(0.5, 1.5, models)
        X = model_scores(names, pd.DataFrame({"model": names, "own_accuracy": own, "base_accuracy": base}))
        by_name = dict(zip(names, lost, strict=True))
        of_pair = np.array([by_name[a] + by_name[b] for a, b in X.index])
        noise = random.standard_normal(len(X))
        ratio = 1 - of_pair * np.exp(0.25 * noise) if errors_grow else 1 - of_pair + 0.012 * noise
        yield Zoo.draw(X, np.clip(X["own_accuracy_mean"].to_numpy() * ratio, 0, 1), merges, random)


def covered(zoo: Zoo, kind: str) -> pd.DataFrame:
    """Return tenth (0 for the lowest predictions), inside and width of the interval of each pair that is not measured.

    A pair whose interval is not known is NaN in both.
    """
    estimator = make_predictor(kind)
    X = zoo.X if kind.startswith("prior") else zoo.X[[]].assign(no_metric=0.0)
    pairs = np.array(X.index.tolist())
    known, others = zoo.measured, ~zoo.measured
    intervals = conformal_intervals(estimator, X[known], zoo.y[known], pairs[known], level=LEVEL)
    intervals = replace(intervals, limits=(0.0, 1.0))
    fitted = fit_estimator(estimator, X[known], zoo.y[known], pairs[known])
    found = np.clip(predict_pairs(fitted, X[others], pairs[others]), 0, 1)
    models = np.isin(pairs[others], pairs[known]).sum(1)
    low, high = intervals.around(found, predicted_sd(fitted, X[others], pairs[others]), models)
    inside = np.where(np.isnan(low), np.nan, (low <= zoo.y[others]) & (zoo.y[others] <= high))
    rank = found.argsort(kind="stable").argsort(kind="stable")
    return pd.DataFrame({"tenth": rank * TENTHS // len(found), "inside": inside, "width": high - low})


def coverage(folder: Path | None, draws: int, kinds: tuple[str, ...] = KINDS) -> pd.DataFrame:
    """Return coverage of each tenth and of all pairs, the mean width, and the share of pairs whose interval is known.

    The index is (zoos, predictor, models, merges); the study's are among the zoos where its folder is given.
    """
    rows = {}
    for kind in kinds:
        for models, merges in SIZES:
            sources = {
                "simulated, errors grow": simulated_zoos(models, merges, draws, True),
                "simulated, errors do not": simulated_zoos(models, merges, draws, False),
            }
            if folder is not None:
                sources = {"the study": study_zoos(folder, models, merges, draws), **sources}
            for source, zoos in sources.items():
                pairs = pd.concat([covered(zoo, kind) for zoo in zoos])
                inside = pairs["inside"]
                rows[source, kind, models, merges] = {
                    **inside.groupby((pairs["tenth"] + 1).astype(str)).mean().to_dict(),
                    "all": inside.mean(),
                    "width": pairs["width"].mean(),
                    "known": inside.notna().mean(),
                }
    found = pd.DataFrame(rows).T.rename_axis(["zoos", "predictor", "models", "merges"])
    return found.sort_index(level=["predictor", "zoos"], ascending=[False, False], sort_remaining=False, kind="stable")


def as_markdown(found: pd.DataFrame) -> str:
    """Return the table for a page."""
    tenths = [str(number + 1) for number in range(TENTHS)]
    head = ["zoos", "predictor", "models", "merges", *tenths, "all", "mean width"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    # A tenth is empty where fewer than ten pairs are left.
    shares = found.reindex(columns=[*tenths, "all"])
    for names, row, width in zip(found.index, shares.to_numpy(), found["width"], strict=True):
        cells = [*map(str, names), *("-" if share != share else f"{share:.2f}" for share in row), f"{width:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--draws", default=100, show_default=True, type=click.IntRange(min=1))
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS[:1], show_default=True)
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(folder: Path, draws: int, kinds: tuple[str, ...], page: Path | None) -> None:
    """Print the table; see the module's docstring."""
    with threadpool_limits(1):  # these matrices are too small to share
        found = coverage(folder, draws, kinds)
    Console().print(as_markdown(found), soft_wrap=True)
    if page is not None:
        write_table(page, MARKS, as_markdown(found))


if __name__ == "__main__":
    main()
