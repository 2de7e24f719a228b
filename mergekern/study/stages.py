"""The stages of the study, each of which continues from the files of an earlier run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from mergekern._internal.files import write_atomically
from mergekern.api import compute_all
from mergekern.errors import OutputError
from mergekern.functional.calibration import Calibration
from mergekern.prediction import MergePredictor, budget_curve, model_scores
from mergekern.prediction.pairs import pair_key
from mergekern.progress import Progress as MeasurementProgress
from mergekern.study.analysis import analyse
from mergekern.study.comparison import compare, draw
from mergekern.study.probing import Timings, probe_merges, time_others
from mergekern.study.scoring import score_alone, score_merges
from mergekern.study.zoos.encoders import build
from mergekern.study.zoos.making import make_zoo
from mergekern.tables.metric_table import MetricTable

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


def read_calibration(out: Path, equal: bool) -> Calibration:
    """Return the calibration samples of a study's zoo: all, or equally many a task, as input gradients need it."""
    config = json.loads((out / "zoo" / "model.json").read_text())
    model = partial(build, config["encoder"], config["architecture"])
    calibration = Calibration.from_folder(out / "zoo" / "calibration", model)
    fewest = min(task.size for task in calibration.tasks.values())
    if not equal or all(task.size == fewest for task in calibration.tasks.values()):
        return calibration
    tasks = {name: (task.inputs[:fewest], task.labels[:fewest], task.head) for name, task in calibration.tasks.items()}
    return replace(calibration, tasks=tasks)


def compute_metrics(out: Path, bar: Progress, statistics: Path | None) -> MetricTable:
    """Return the metrics of a study's zoo; what was measured before is used again, where `statistics` has it."""
    task = bar.add_task("computing metrics", total=None)

    def show(progress: MeasurementProgress) -> None:
        bar.update(task, completed=progress.tensors_done, total=progress.tensors_total, description="computing metrics")

    table = compute_all(
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
    table: MetricTable, scores: Mapping[str, pd.Series], out: Path, bar: Progress
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
    of_pairs = model_scores(known["model"], known)
    of_pairs.index = of_pairs.index.map(pair_key)  # scores may name the models of a pair the other way round
    curves = {}
    for method, y in scores_by_method(scores, target).items():
        X = of_pairs.reindex(y.index.map(pair_key)).set_axis(y.index)
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
        OutputError: there has, and `force` is not set; with it, its files are removed.
    """
    path = out / "study.json"
    if path.exists() and json.loads(path.read_text()) != options:
        if not force:
            raise OutputError(f"{out} has a study with other options ({path}); give another folder, or --force")
        for name in ("zoo", "statistics", "probes", "analysis", "predictors"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (
            "scores.csv", "alone.csv", "metrics.parquet", "timings.csv", "comparison.csv", "comparison.svg",
            "findings.md", "report.html", "budget.csv",
        ):  # fmt: skip
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{json.dumps(options, indent=2)}\n".encode())
