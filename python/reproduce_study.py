"""Reproduce the predictions of "Demystifying Mergeability" (arXiv 2601.22285) from the study's own measurements.

    python python/reproduce_study.py FOLDER [--n-repeats 10] [--out TABLES]

FOLDER holds metrics_vit_b16.csv, accuracy_vit_b16.csv, loto_results.csv, coefficients_l1_vit_b16_adamw.csv, and
models_vit_b16.csv with the accuracies of the models and of the base, without which the prior has no rows. Printed are,
beside each other, what the study published and what comes out here: its fits, in the spread of starts that it did not
fix; the same objectives solved exactly; fingerprints of merge methods; and how much of the accuracy after merging is
known without any metric, by the prior, and after some measured merges. With --out each table is also written there as a
CSV file.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from mergekern.metrics import CATALOGUE
from mergekern.prediction import (
    GreedySelector,
    IncompletePairsWarning,
    LeaveOneTaskOut,
    LeaveTasksOut,
    MeasuredPairs,
    PearsonRegressor,
    RankNormalScaler,
    budget_curve,
    complete_pairs,
    cross_validate_pairs,
    fingerprints,
    fit_exact,
    fit_published,
    make_predictor,
    mlp_baseline,
    model_scores,
    variance_components,
)
from mergekern.prediction.published import scale

STUDY = "arXiv v1: ViT-B/16, 4 methods"
ALPHAS = {"dense": None, "l1_0.3": 0.3, "l1_0.5": 0.5, "l1_1.0": 1.0, "l1_1.5": 1.5}
ABLATED = {
    "dense_no_subspace": "subspace overlap",
    "dense_no_gradient": "gradient",
    "dense_no_effective_rank": "effective rank",
    "dense_no_task_vector": "task-vector geometry",
    "dense_no_activation": "activation",
}
# The study's tables have this metric twice, once divided by √10.
REDUNDANT = "right_subspace_overlap"
CATEGORIES = {**{name: metric.category for name, metric in CATALOGUE.items()}, REDUNDANT: "subspace overlap"}
MEASURED = 40
MODELS = "models_vit_b16.csv"
COLUMNS = ["train_r_mean", "val_r_mean", "val_r_std", "pooled_val_r", "nonzero_mean"]


@dataclass(frozen=True)
class Study:
    """The study's measurements: metrics (pairs × 28) and accuracy (pairs × methods), with gaps, of the same pairs."""

    metrics: pd.DataFrame
    accuracy: pd.DataFrame

    @staticmethod
    def read(folder: Path) -> Study:
        """Read metrics_vit_b16.csv and accuracy_vit_b16.csv."""
        metrics = pd.read_csv(folder / "metrics_vit_b16.csv").set_index(["model_a", "model_b"])
        accuracy = pd.read_csv(folder / "accuracy_vit_b16.csv").set_index(["model_a", "model_b"])
        return Study(metrics, accuracy.pivot(columns="method", values="accuracy").reindex(metrics.index))

    def as_fitted(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the 29 metrics and the accuracies of the pairs complete in every file, as the study fitted them."""
        complete = self.metrics.notna().all(axis=1) & self.accuracy.notna().all(axis=1)
        metrics = self.metrics[complete].copy()
        after = metrics.columns.tolist().index("subspace_overlap")
        metrics.insert(after + 1, REDUNDANT, metrics["right_subspace_overlap_top_k"] / np.sqrt(10))
        return metrics, self.accuracy[complete]


def training_masks(pairs: pd.Index[Any]) -> np.ndarray:
    """Return the (folds, n) training pairs of leave-one-task-out."""
    masks = np.zeros((LeaveOneTaskOut().get_n_splits(groups=pairs), len(pairs)), dtype=bool)
    for mask, (train, _) in zip(masks, LeaveOneTaskOut().split(None, groups=pairs), strict=True):
        mask[train] = True
    return masks


def evaluate(coefficients: np.ndarray, X: np.ndarray, Y: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Return the study's figures for each target and start, from (folds, targets, starts, metrics) coefficients.

    As published: the pooled r is of predictions each in the arbitrary units of its fold.
    """
    predictions = np.stack([c @ scale(X, mask).T for c, mask in zip(coefficients, masks, strict=True)])
    known = masks[:, None, None, :]
    train, val = (_correlate(predictions, Y[None, :, None, :], part) for part in (known, ~known))
    fold, pair = np.nonzero(~masks)
    pooled = np.moveaxis(predictions[fold, :, :, pair], 0, -1)
    return {
        "train_r_mean": train.mean(0),
        "val_r_mean": val.mean(0),
        "val_r_std": val.std(0),
        "pooled_val_r": _correlate(pooled, Y[:, None, pair], np.ones(len(pair), dtype=bool)),
        "nonzero_mean": (coefficients != 0).sum(-1).mean(0),
    }


def _correlate(a: np.ndarray, b: np.ndarray, part: np.ndarray) -> np.ndarray:
    centred = [
        np.where(part, v - np.where(part, v, 0).sum(-1, keepdims=True) / part.sum(-1, keepdims=True), 0) for v in (a, b)
    ]
    return (centred[0] * centred[1]).sum(-1) / np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))


def reproduce(
    study: Study, published: pd.DataFrame, n_repeats: int, fits: Sequence[str] = (*ALPHAS, *ABLATED)
) -> pd.DataFrame:
    """Return the published value and ours over starts, for every published fit and figure that the folder's data allow.

    Columns: fit, method, figure, published, mean, sd, low, high (over starts), t (of the published value among ours,
    as one more draw: Student's with n_repeats - 1 degrees of freedom).
    """
    X, accuracy = study.as_fitted()
    masks = training_masks(X.index)
    rows = published[published["study"] == STUDY].set_index(["fit", "method"])
    out = []
    for fit in fits:
        kept = X.loc[:, [CATEGORIES[name] != ABLATED.get(fit) for name in X.columns]].to_numpy()
        methods = rows.loc[fit].index
        Y = accuracy[methods].to_numpy().T
        figures = evaluate(fit_published(kept, Y, masks, range(n_repeats), ALPHAS.get(fit)), kept, Y, masks)
        for number, method in enumerate(methods):
            for figure in COLUMNS:
                was, ours = rows.loc[(fit, method), figure], figures[figure][number]
                if np.isnan(was):
                    continue
                spread = ours.std(ddof=1) * np.sqrt(1 + 1 / n_repeats)
                t = (was - ours.mean()) / spread if spread > 0 else float("nan")
                out.append([fit, method, figure, was, ours.mean(), ours.std(ddof=1), ours.min(), ours.max(), t])
    return pd.DataFrame(out, columns=["fit", "method", "figure", "published", "mean", "sd", "low", "high", "t"])


def solve_exactly(study: Study, published: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Return the published figures beside those of the exact solver, and the seconds that all its fits took."""
    X, accuracy = study.as_fitted()
    masks = training_masks(X.index)
    rows = published[published["study"] == STUDY].set_index(["fit", "method"])
    out, seconds = [], 0.0
    for fit, alpha in ALPHAS.items():
        methods = rows.loc[fit].index
        Y = accuracy[methods].to_numpy().T
        start = time.perf_counter()
        coefficients = fit_exact(X.to_numpy(), Y, masks, alpha)
        seconds += time.perf_counter() - start
        figures = evaluate(coefficients[:, :, None], X.to_numpy(), Y, masks)
        for number, method in enumerate(methods):
            values = [v for figure in COLUMNS for v in (rows.loc[(fit, method), figure], figures[figure][number, 0])]
            out.append([fit, method, *values])
    names = [f"{figure}{suffix}" for figure in COLUMNS for suffix in ("", " (exact)")]
    return pd.DataFrame(out, columns=["fit", "method", *names]), seconds


def leave_one_task_out(study: Study) -> pd.DataFrame:
    """Return the mean val_r of leave-one-task-out of several estimators on each method's complete pairs."""
    estimators = {
        "PearsonRegressor, no penalty": PearsonRegressor(penalty=None),
        "PearsonRegressor, L1 1.0": PearsonRegressor(alpha=1.0),
        "forward selection, least squares": make_pipeline(GreedySelector("forward"), PearsonRegressor(penalty=None)),
        "backward elimination, least squares": make_pipeline(
            GreedySelector("backward"), PearsonRegressor(penalty=None)
        ),
        "the study's network": mlp_baseline(),
        "linear": make_predictor("linear"),
        "forest": make_predictor("forest"),
    }
    out: dict[str, dict[str, float]] = {}
    for method, X, y in _complete(study):
        for name, estimator in estimators.items():
            found = cross_validate_pairs(estimator, X, y, baselines=name == "forest", n_resamples=0)
            out.setdefault(name, {})[method] = found.score
            for baseline, validation in found.baselines.items():
                out.setdefault(f"{baseline}, no metric", {})[method] = validation.score
    table = pd.DataFrame(out).T
    return table.assign(mean=table.mean(axis=1))


def what_tasks_explain(study: Study) -> pd.DataFrame:
    """Return the share of the accuracy due to each task by itself, and r of predictors of the rest; a column a method.

    The residual of the additive model over all pairs is predicted for a tenth of them at a time.
    """
    out: dict[str, dict[str, float]] = {}
    for method, X, y in _complete(study):
        parts = variance_components(pd.Series(y, index=X.index))
        facts = {"pairs": float(len(y)), "variance explained by task effects": parts.tasks}
        facts["the same, adjusted"] = parts.adjusted_tasks
        for name, splitter, kinds in (
            (f"{MEASURED} pairs measured", MeasuredPairs(MEASURED), ("additive", "additive+metrics", "linear")),
            ("both tasks unseen", LeaveTasksOut(), ("linear", "forest")),
        ):
            for kind in kinds:
                estimator = make_predictor(kind)
                found = cross_validate_pairs(estimator, X, y, splitter=splitter, baselines=False, n_resamples=0)
                facts[f"{name}: {kind}"] = found.score
        folds = KFold(10, shuffle=True, random_state=0)
        ridge = make_pipeline(RankNormalScaler(), Ridge(10.0))
        for name, estimator in (("ridge", ridge), ("forest", make_predictor("forest"))):
            predicted = cross_val_predict(estimator, X, parts.residuals, cv=folds)
            facts[f"residual r, {name}"] = float(np.corrcoef(predicted, parts.residuals)[0, 1])
        out[method] = facts
    return pd.DataFrame(out)


def from_model_scores(study: Study, models: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what the prior knows of each method's accuracy: r where models are held out, and `budget_curve`.

    Args:
        study: the measurements; no metric is used.
        models: model, own_accuracy and base_accuracy of each model.
    """
    held_out: dict[str, dict[str, float]] = {}
    curves = {}
    for method in study.accuracy:
        y = study.accuracy[method].dropna()
        known = model_scores(models["model"], models)
        by_pair = {frozenset(pair): row for pair, row in zip(known.index, known.to_numpy(), strict=True)}
        X = pd.DataFrame([by_pair[frozenset(pair)] for pair in y.index], y.index, known.columns)
        curves[str(method)] = budget_curve(X, y)
        for kind in ("prior", "prior+additive"):
            for name, splitter in (("partner known", LeaveOneTaskOut()), ("both tasks unseen", LeaveTasksOut())):
                found = cross_validate_pairs(
                    make_predictor(kind), X, y, splitter=splitter, baselines=False, n_resamples=0
                )
                held_out.setdefault(f"{name}: {kind}", {})[str(method)] = found.score
    r = pd.DataFrame(held_out).T
    return r.assign(mean=r.mean(axis=1)), pd.concat(curves, names=["method"])


def _complete(study: Study) -> Iterator[tuple[str, pd.DataFrame, np.ndarray]]:
    for method in study.accuracy:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompletePairsWarning)
            data = complete_pairs(study.metrics, study.accuracy[method])
        yield str(method), data.X, data.y


def name_incomplete(study: Study) -> Iterator[str]:
    """Yield, for each method, the pairs that take no part."""
    for method in study.accuracy:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompletePairsWarning)
            dropped = complete_pairs(study.metrics, study.accuracy[method]).dropped
        yield f"{method}: {len(dropped)} incomplete: {', '.join(f'{a} and {b}' for a, b in dropped)}"


def show(console: Console, title: str, frame: pd.DataFrame, digits: int = 3) -> None:
    """Print a frame."""
    table = Table(title=title, title_justify="left")
    names = [name or "" for name in frame.index.names]
    shown = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index(names=names)
    for name in shown.columns:
        table.add_column(str(name), justify="left" if shown[name].dtype.kind not in "fi" else "right")
    for row in shown.itertuples(index=False):
        table.add_row(*("-" if v != v else f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row))
    console.print(table)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--n-repeats", default=10, show_default=True, type=click.IntRange(min=2), help="Fits of each published row."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="A folder for the tables as CSV files.")
def main(folder: Path, n_repeats: int, out: Path | None) -> None:
    """Print every table; see the module's docstring."""
    console = Console(width=None if Console().is_terminal else 160)
    study = Study.read(folder)
    published = pd.read_csv(folder / "loto_results.csv")
    for line in name_incomplete(study):
        console.print(line)
    console.print(f"complete in every file: {len(study.as_fitted()[0])} of {len(study.metrics)}\n")

    start = time.perf_counter()
    reproduced = reproduce(study, published, n_repeats)
    seconds = time.perf_counter() - start
    show(console, f"The study's fits, beside {n_repeats} fits of the same here", reproduced)
    inside = reproduced["published"].between(reproduced["low"], reproduced["high"])
    console.print(
        f"{inside.sum()} of {len(inside)} published figures lie within the range of {n_repeats} fits "
        f"(of one more draw, {(n_repeats - 1) / (n_repeats + 1):.0%} would); "
        f"largest |t| {reproduced['t'].abs().max():.1f}; {seconds:.0f} s\n"
    )
    exact, seconds = solve_exactly(study, published)
    show(console, "The study's fits, beside the exact solver", exact)
    console.print(f"{len(exact) * len(training_masks(study.as_fitted()[0].index))} exact fits took {seconds:.2f} s\n")

    coefficients = pd.read_csv(folder / "coefficients_l1_vit_b16_adamw.csv", index_col="metric")
    found = fingerprints(coefficients, k=5)
    console.print(
        f"Fingerprints of {len(coefficients.columns)} methods: top-5 overlap {found.topk_overlap:.1%} (published 64.0%)"
        f", sign agreement {found.sign_agreement:.1%} (published 79.3%), stable: {', '.join(found.stable_metrics)}\n"
    )
    loto = leave_one_task_out(study)
    show(console, "Leave-one-task-out: mean validation r", loto)
    tasks = what_tasks_explain(study)
    show(console, "What is each task by itself, and what is left for metrics", tasks)
    tables: dict[str, Any] = {"published": reproduced, "exact": exact, "leave_one_task_out": loto, "tasks": tasks}
    if (folder / MODELS).exists():
        tables["prior"], tables["budget"] = from_model_scores(study, pd.read_csv(folder / MODELS))
        show(console, "From accuracies of models and base: mean validation r", tables["prior"])
        mean = tables["budget"].groupby(level=["predictor", "merges"], sort=False).mean()
        show(console, "After so many measured merges, mean of the methods", mean)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(out / f"{name}.csv", index=not isinstance(table.index, pd.RangeIndex))


if __name__ == "__main__":
    main()
