"""What is known of pairs of two unmeasured models from 10 samples a task, and what decisions cost: on zoos made here.

    mergekern study STUDY --architecture cnn                        # for each architecture, first
    python python/probe_study.py STUDY [STUDY ...] [--page docs/prediction.md]

Each STUDY is a folder that mergekern study wrote, or its zoo/, metrics.parquet and scores.csv. The models,
the base and merges of all pairs are run on the zoo's calibration samples, which give no scores; the result is kept in
STUDY/known.parquet. Printed are, for each study, means over its merge methods of r with the normalised accuracy within
40 random halves of its models, of predictors fitted to the other halves or to nothing; and what choosing a method for
each pair costs in points of accuracy, after m measured merges, by `recommend` and by always taking the method that was
best on these. The fixed weights of `probes+metrics` were chosen on such zoos. What weights are worth that saw nothing
of a zoo is the row of those that are best, of 26, on the other studies.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from threadpoolctl import threadpool_limits

import mergekern
from marked_tables import write_table
from mergekern.prediction import (
    ConformalIntervals,
    IncompletePairsWarning,
    LeaveTasksOut,
    MergePredictor,
    PairFolds,
    cross_validate_pairs,
    make_predictor,
    recommend,
)
from mergekern.prediction.correlation import pearson_r
from mergekern.prediction.probe_sum import SOLO, WITH_METRICS, own_columns, probe_weights
from mergekern.study.stages import TARGET, read_calibration, scores_by_method

HALVES = LeaveTasksOut(n_repeats=40)
# Columns beside solo and base losses, and weights of them that are tried.
BESIDE = [name for name in WITH_METRICS if name not in SOLO]
TRIED = list(product((0.0, 0.5, 1.0), repeat=len(BESIDE)))[1:]
BUDGETS, DRAWS = (10, 20, 40), 10
OWN, BASE = "own_accuracy_mean", "base_accuracy_mean"
MARKS = "<!-- probes: begin (python/probe_study.py) -->", "<!-- probes: end -->"


def known_scores(study: Path, methods: list[str]) -> pd.DataFrame:
    """Return model scores and merge probes of a study's pairs, measured on its calibration samples."""
    path = study / "known.parquet"
    if not path.exists():
        mergekern.merge_probes(
            study / "zoo", calibration=read_calibration(study, equal=False), methods=methods, direct=True,
            model_scores=True, device="cpu", statistics=study / "probe_statistics",
        ).save(path)  # fmt: skip
    return mergekern.MetricTable.load(path).to_pandas()


def unseen_r(table: pd.DataFrame, scores: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return predictors × methods: mean r within halves of the models that have no measured merge."""
    pairs = np.array(table.index.tolist())
    halves = [fold.test for fold in HALVES.folds(pairs)]
    found: dict[str, list[float]] = {}
    for method, y in scores.items():
        solo, direct = (
            table[[name for name in map(str, table) if name.startswith(kind) and name.endswith(f"[{method}]")]]
            for kind in ("solo", "direct")
        )
        metrics = table[[name for name in table if name in mergekern.CATALOGUE]]
        fitted = cross_validate_pairs(
            make_predictor("linear"), metrics.join(solo), y, splitter=HALVES, baselines=False, n_resamples=0
        )
        ours = table[own_columns(map(str, table), method)]
        cold = ours.drop(columns=direct.columns)
        ranked = {
            "own accuracy, no fit": table[OWN],
            "prior": pd.Series(make_predictor("prior", target=TARGET).fit(table).predict(table), table.index),
            "probes, solo and base": _sum_of(solo.join(table["base_loss_mean"])),
            "probes+metrics": _sum_of(cold, "probes+metrics"),
            "probes, direct": _sum_of(direct),
        }
        found.setdefault("metrics+solo, fitted to the other half", []).append(fitted.folds["val_r"].mean())
        for name, values in ranked.items():
            found.setdefault(name, []).append(_within(halves, values, y))
        for name, columns in {"probes+metrics": cold, "probes+metrics, direct": ours}.items():
            corrected = cross_validate_pairs(
                make_predictor("probes+metrics"), columns, y, splitter=HALVES, baselines=False, n_resamples=0
            )
            found.setdefault(f"{name}, corrected by the other half", []).append(corrected.folds["val_r"].mean())
        for weights, values in zip(TRIED, _tried(cold, method), strict=True):
            found.setdefault(str(weights), []).append(_within(halves, values, y))
    return pd.DataFrame(found, list(scores)).T


def _within(halves: list[np.ndarray], values: pd.Series, y: pd.Series) -> float:
    """Return the mean r within halves of the models."""
    return float(np.nan_to_num([pearson_r(values.to_numpy()[rows], y.to_numpy()[rows]) for rows in halves]).mean())


def _sum_of(probes: pd.DataFrame, kind: str = "probes") -> pd.Series:
    """Return a predictor of probes without any measured merge; a pair without a value has the mean of a column."""
    values = probes.fillna(probes.mean()).fillna(0.0)
    return pd.Series(make_predictor(kind).fit(values).predict(values), probes.index)


def _tried(columns: pd.DataFrame, method: str) -> list[pd.Series]:
    """Return the sums with each of `TRIED` in place of the weights of `probes+metrics`."""
    names = [*probe_weights(map(str, columns), method, metrics=True)]
    values = columns[names].fillna(columns[names].mean()).fillna(0.0)
    fitted = make_predictor("probes+metrics").fit(values)
    terms = fitted.contributions(values) / fitted.weights_of_columns_
    probes = [name.partition("[")[0] for name in names]
    found = []
    for tried in TRIED:
        size = {**SOLO, **dict(zip(BESIDE, tried, strict=True))}
        weights = [np.sign(WITH_METRICS[probe]) * abs(size[probe]) for probe in probes]
        found.append(pd.Series(terms @ weights, columns.index))
    return found


def weights_of_others(unseen: dict[str, pd.DataFrame]) -> None:
    """Replace the rows of `TRIED` by one with the weights that are best on the other studies, where there are any."""
    means = pd.DataFrame({study: found.loc[list(map(str, TRIED))].mean(axis=1) for study, found in unseen.items()})
    for study, found in unseen.items():
        left = found.drop(index=means.index)
        if len(unseen) > 1:
            best = str(means.drop(columns=study).mean(axis=1).idxmax())
            left.loc["probes+metrics, weights of the other zoos"] = found.loc[best]
        unseen[study] = left


def choice_costs(table: pd.DataFrame, scores: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return m × ways: mean shortfall of the chosen method from the best one, in points, over the unmeasured pairs."""
    Y = pd.DataFrame(scores)
    costs = {}
    for m in BUDGETS:
        if len(Y) - m < 5:
            continue
        draws = []
        for draw in range(DRAWS):
            rows = np.random.default_rng([m, draw]).permutation(len(Y))[:m]
            left = np.setdiff1d(np.arange(len(Y)), rows)
            found = recommend([light_predictor(table, Y[method], rows) for method in Y], table.iloc[left])
            rest = Y.loc[found.index].to_numpy()
            chosen = rest[np.arange(len(rest)), [list(Y).index(name) for name in found["method"]]]
            always = rest[:, int(Y.iloc[rows].mean().to_numpy().argmax())]
            draws.append([100 * (rest.max(1) - way).mean() for way in (chosen, always)])
        costs[m] = np.mean(draws, axis=0)
    return pd.DataFrame(costs, ["recommend", "always the best"]).T


def light_predictor(table: pd.DataFrame, y: pd.Series, rows: np.ndarray) -> MergePredictor:
    """Return a predictor with held-out predictions, without the intervals and validation that choose no method."""
    X = table[[OWN, BASE]].iloc[rows]
    target = y.to_numpy()[rows]
    held_out = pd.Series(np.nan, X.index)
    for train, test in PairFolds().split(X):
        held_out.iloc[test] = make_predictor("prior+additive").fit(X.iloc[train], target[train]).predict(X.iloc[test])
    return MergePredictor(
        kind="prior+additive", method=str(y.name), target="accuracy", metrics=(OWN, BASE),
        estimator=make_predictor("prior+additive").fit(X, target), ranges={}, measured=pd.Series(target, X.index),
        intervals=ConformalIntervals(0.8, dict.fromkeys(range(3)), dict.fromkeys(range(3), 0)),
        validation={"both unseen": {}}, held_out=held_out, dropped={}, provenance={},
    )  # fmt: skip


def as_markdown(unseen: Mapping[str, pd.DataFrame], costs: Mapping[str, pd.DataFrame]) -> str:
    """Return both tables: a column for each study, and a row for each predictor, and for each m."""
    lines = [f"| r, both models unmeasured | {' | '.join(unseen)} |", "|---|" + "---|" * len(unseen)]
    for name in next(iter(unseen.values())).index:
        means = (found.loc[name].mean() for found in unseen.values())
        lines.append(f"| {name} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    lines += ["", f"| points lost by `recommend`; by always the best | {' | '.join(costs)} |"]
    lines.append("|---|" + "---|" * len(costs))
    for m in BUDGETS:
        cells = ["; ".join(f"{v:.2f}" for v in found.loc[m]) if m in found.index else "-" for found in costs.values()]
        lines.append(f"| {m} measured merges | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("studies", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(studies: tuple[Path, ...], page: Path | None) -> None:
    """Print the tables; see the module's docstring."""
    warnings.simplefilter("ignore", IncompletePairsWarning)
    unseen, costs = {}, {}
    with threadpool_limits(1):  # these matrices are too small to share
        for study in studies:
            scores = pd.read_csv(study / "scores.csv")
            metrics = mergekern.MetricTable.load(study / "metrics.parquet").to_pandas()
            known = known_scores(study, list(scores["method"].unique()))
            table = metrics.join(known.reindex(metrics.index))
            normalised, accuracy = (
                {method: y.reindex(table.index) for method, y in scores_by_method(scores, target).items()}
                for target in (TARGET, "accuracy")
            )
            unseen[study.name], costs[study.name] = unseen_r(table, normalised), choice_costs(table, accuracy)
    weights_of_others(unseen)
    found = as_markdown(unseen, costs)
    Console().print(found, soft_wrap=True)
    if page is not None:
        write_table(page, MARKS, found)


if __name__ == "__main__":
    main()
