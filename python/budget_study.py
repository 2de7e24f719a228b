"""What m measured merges are worth: r, errors and regrets of predicting all others, beside what needs no fit.

    python python/budget_study.py --published FOLDER [STUDY ...] [--page docs/study.md]

FOLDER holds the published accuracy_vit_b16.csv, models_vit_b16.csv and metrics_vit_b16.csv (arXiv 2601.22285). Each
STUDY is a folder as python/probe_study.py takes it: accuracies of the models and of the base are of its calibration
samples, which give no scores. The m merges are drawn at random, ten times; the figures are means over draws and over
the methods. Regrets are points of the score that the best choice has more than the chosen one: the best pair
of all that were not measured, the best partner of each model among them, and the best method of each such pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from threadpoolctl import threadpool_limits

from marked_tables import write_table
from mergekern.prediction import IncompletePairsWarning, make_predictor, model_scores, recommend
from mergekern.prediction.correlation import pearson_r
from mergekern.prediction.figures import choice_regrets, random_regrets
from mergekern.prediction.pairs import pair_key
from mergekern.prediction.refits import fit_estimator, predict_pairs
from mergekern.study.stages import scores_by_method
from mergekern.tables.metric_table import MetricTable
from probe_study import BASE, OWN, known_scores, light_predictor

BUDGETS, DRAWS = (0, 5, 10, 20, 40), 10
L2, COSINE = "task_vector_l2_distance", "task_vector_cosine_similarity"
TARGETS = {"accuracy": "Accuracy", "normalized_accuracy": "Normalised accuracy"}
WAYS = ("prior+additive", "additive", "own accuracy, no fit", "L2 distance", "cosine", "random", "oracle")
MARKS = "<!-- budgets: begin (python/budget_study.py) -->", "<!-- budgets: end -->"


def draws(pairs: int, m: int) -> list[np.ndarray]:
    """Return the rows of the measured pairs, (m,) each; one draw where none is measured."""
    return [np.random.default_rng([m, draw]).permutation(pairs)[:m] for draw in range(DRAWS if m else 1)]


def of_target(table: pd.DataFrame, scores: Mapping[str, pd.Series], target: str) -> pd.DataFrame:
    """Return (way, m) -> r, rmse, regret of the best pair and of the best partner: means over methods and draws.

    Args:
        table: model scores and metrics of pairs.
        scores: of each method, for the same pairs or some of them.
        target: accuracy or normalized_accuracy.
    """
    rows: dict[tuple[str, int], list[list[float]]] = {}
    for of_pairs in scores.values():
        y = of_pairs.dropna()
        X = table.loc[y.index]
        for m in BUDGETS:
            for measured in draws(len(y), m):
                left = np.setdiff1d(np.arange(len(y)), measured)
                ways = predictions(X, y.to_numpy(), measured, target)
                for way, found in ways.items():
                    rows.setdefault((way, m), []).append(figures(y.iloc[left], found[left], way in WAYS[:2]))
                rows.setdefault(("random", m), []).append(
                    [np.nan, np.nan, *_points(random_regrets(_held_out(y.iloc[left])))]
                )
                rows.setdefault(("oracle", m), []).append([1.0, 0.0, 0.0, 0.0])
    means = {key: pd.DataFrame(values).mean().tolist() for key, values in rows.items()}  # of what is defined
    return pd.DataFrame(means, ["r", "rmse", "pair", "partner"]).T


def predictions(X: pd.DataFrame, y: np.ndarray, measured: np.ndarray, target: str) -> dict[str, np.ndarray]:
    """Return (pairs,) predictions or ranks of each way that can say something after these merges."""
    pairs = np.array(X.index.tolist())
    found = {
        "own accuracy, no fit": X[OWN].to_numpy(),
        "L2 distance": -X[L2].to_numpy(),
        "cosine": X[COSINE].to_numpy(),
    }
    for kind in WAYS[:2] if len(measured) else WAYS[:1]:
        columns = X[[OWN, BASE]]
        estimator = make_predictor(kind, target=target if kind != "additive" else None)
        fitted = fit_estimator(estimator, columns.iloc[measured], y[measured], pairs[measured])
        found[kind] = predict_pairs(fitted, columns, pairs)
    return found


def figures(y: pd.Series, found: np.ndarray, predicts: bool) -> list[float]:
    """Return r, rmse (where a way predicts scores, and not only ranks) and both regrets, all but r in points."""
    error = 100 * float(np.sqrt(((found - y) ** 2).mean())) if predicts else np.nan
    return [pearson_r(found, y.to_numpy()), error, *_points(choice_regrets(_held_out(y), found))]


def _held_out(y: pd.Series) -> pd.DataFrame:
    return y.rename("y").rename_axis(["model_a", "model_b"]).reset_index().assign(fold=0)


def _points(regrets: Mapping[str, float | None]) -> list[float]:
    return [100 * float(regrets[which] or 0.0) for which in ("best pair", "best partner")]


def of_methods(table: pd.DataFrame, scores: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return way × m: mean points that the method of each pair that was not measured falls short of the best one."""
    Y = pd.DataFrame(scores).dropna()
    found: dict[int, dict[str, float]] = {}
    for m in BUDGETS[1:]:
        costs: dict[str, list[float]] = {}
        for measured in draws(len(Y), m):
            left = np.setdiff1d(np.arange(len(Y)), measured)
            X, rest = table.loc[Y.index], Y.iloc[left]
            fitted = [light_predictor(X, Y[method], measured) for method in Y]
            predicted = np.column_stack([each.estimator.predict(X[[OWN, BASE]].iloc[left]) for each in fitted])
            names = recommend(fitted, X.iloc[left])["method"].reindex(rest.index)
            chosen = {
                "`recommend`": [list(Y).index(name) for name in names],
                "largest prediction": predicted.argmax(1),
                "always the best measured": np.full(len(rest), int(Y.iloc[measured].mean().to_numpy().argmax())),
            }
            values = rest.to_numpy()
            for way, places in chosen.items():
                cost = values.max(1) - values[np.arange(len(rest)), places]
                costs.setdefault(way, []).append(100 * cost.mean())
            costs.setdefault("random method", []).append(100 * (values.max(1) - values.mean(1)).mean())
            costs.setdefault("oracle", []).append(0.0)
        found[m] = {way: float(np.mean(values)) for way, values in costs.items()}
    return pd.DataFrame(found)


def as_markdown(name: str, by_target: Mapping[str, pd.DataFrame], methods: pd.DataFrame) -> str:
    """Return a table for each target, whose cells are r · rmse · regret of the pair · regret of the partner."""
    lines = []
    for target, found in by_target.items():
        lines += [f"| {name}: {TARGETS[target].lower()} | {' | '.join(f'm = {m}' for m in BUDGETS)} |"]
        lines.append("|---|" + "---|" * len(BUDGETS))
        known = dict(zip(found.index.tolist(), found.to_numpy().tolist(), strict=True))
        for way in WAYS:
            cells = [
                " · ".join("-" if np.isnan(value) else f"{value:.2f}" for value in known.get((way, m), [np.nan]))
                for m in BUDGETS
            ]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(f"| {name}: regret of the method | {' | '.join(f'm = {m}' for m in methods)} |")
    lines.append("|---|" + "---|" * methods.shape[1])
    for chosen, row in methods.iterrows():
        lines.append(f"| {chosen} | {' | '.join(f'{value:.2f}' for value in row)} |")
    return "\n".join(lines)


def published(folder: Path) -> tuple[pd.DataFrame, dict[str, dict[str, pd.Series]]]:
    """Return model scores and metrics of the study's pairs, and scores of its four methods by target."""
    metrics = MetricTable.load(folder / "metrics_vit_b16.csv").to_pandas()[[L2, COSINE]]
    listed = pd.read_csv(folder / "models_vit_b16.csv")
    known = model_scores(listed["model"], listed)
    table = known.join(
        metrics.set_axis(metrics.index.map(pair_key)).reindex(known.index.map(pair_key)).set_axis(known.index)
    )
    scores = pd.read_csv(folder / "accuracy_vit_b16.csv")
    scores = scores[scores["method"].isin(["weight_avg", "arithmetic", "tsv", "isotropic"])]
    return _keyed(table), {target: _by_method(scores, target) for target in TARGETS}


def made_here(study: Path) -> tuple[pd.DataFrame, dict[str, dict[str, pd.Series]]]:
    """Return the same of a zoo that mergekern study made."""
    scores = pd.read_csv(study / "scores.csv")
    metrics = MetricTable.load(study / "metrics.parquet").to_pandas()[[L2, COSINE]]
    known = known_scores(study, list(scores["method"].unique()))[[OWN, BASE]]
    return _keyed(metrics.join(known)), {target: _by_method(scores, target) for target in TARGETS}


def _keyed(table: pd.DataFrame) -> pd.DataFrame:
    names = [tuple(sorted(map(str, pair))) for pair in table.index]
    return table.set_axis(pd.MultiIndex.from_tuples(names, names=["model_a", "model_b"]))


def _by_method(scores: pd.DataFrame, target: str) -> dict[str, pd.Series]:
    return {method: y.set_axis(_keyed(y.to_frame()).index) for method, y in scores_by_method(scores, target).items()}


@click.command(help=__doc__)
@click.argument("studies", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--published", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(studies: tuple[Path, ...], folder: Path | None, page: Path | None) -> None:
    """Print the tables; see the module's docstring."""
    warnings.simplefilter("ignore", IncompletePairsWarning)
    zoos = {"the study": published(folder)} if folder is not None else {}
    zoos |= {study.name: made_here(study) for study in studies}
    parts = []
    with threadpool_limits(1):  # these matrices are too small to share
        for name, (table, scores) in zoos.items():
            by_target = {target: of_target(table, scores[target], target) for target in TARGETS}
            parts.append(as_markdown(name, by_target, of_methods(table, scores["accuracy"])))
            Console().print(parts[-1], soft_wrap=True)
    if page is not None:
        write_table(page, MARKS, "\n\n".join(parts))


if __name__ == "__main__":
    main()
