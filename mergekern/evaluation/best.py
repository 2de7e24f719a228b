"""best_merge: from a folder of models to the best merge of two of them, with as many measured merges as are allowed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mergekern._internal.extras import needs
from mergekern._internal.files import write_atomically
from mergekern._internal.locks import locked
from mergekern._internal.validation import positive_integer
from mergekern.api import compute_all
from mergekern.checkpoints import Zoo
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import EvaluationError, OptionError, OutputError, PredictionError
from mergekern.evaluation.evaluator import Evaluator, Tasks, as_evaluator, tasks_of
from mergekern.evaluation.files import Files
from mergekern.evaluation.heads import hash_of_heads, open_with_heads, without_heads
from mergekern.evaluation.measure import MeasuredMerges
from mergekern.evaluation.measurement import Measurement
from mergekern.evaluation.models import ModelLike
from mergekern.evaluation.pace import Measuring
from mergekern.evaluation.rows import MERGE, normalized
from mergekern.merging.gathered import check_samples
from mergekern.merging.merge import merge_all
from mergekern.merging.owners import EACH
from mergekern.merging.registry import find_methods
from mergekern.prediction.model import MergePredictor
from mergekern.prediction.model_scores import model_scores
from mergekern.prediction.prior import BASE_WEIGHT, OWN_WEIGHT
from mergekern.prediction.search import LIKENESS, Merge, next_merges
from mergekern.progress import Progress
from mergekern.report import write_report
from mergekern.report.answer import Answer, Step
from mergekern.tables.metric_table import MetricTable

# What the study merges by, but for one that is like another.
METHODS = ("weight_average", "task_arithmetic", "ties", "tsv")
# Merges that are chosen at a time, and made in one pass over the zoo.
AT_A_TIME = 4
ROWS = 10
SCORES, MODELS, METRICS, SEARCH, PAGE = "scores.csv", "models.csv", "metrics.parquet", "search.json", "report.html"
PREDICTOR, STATISTICS, MERGED = "predictor.json", "statistics", "merged"


@dataclass(frozen=True)
class BestMerge:
    """The best merge that was found.

    Attributes:
        method: by which it is made.
        models: the names of its two models.
        score: what was measured of it.
        path: the merged checkpoint; or the folder with that of each of the two models, where they have heads of their
            own.
        scores: a row for each measured merge, the best first; see `MeasuredMerges`.
        answer: what was found, in sentences.
        failures: why a model or a merge has no score, by its name.
    """

    method: str
    models: tuple[str, str]
    score: float
    path: Path
    scores: pd.DataFrame
    answer: list[str]
    failures: dict[str, str]


def best_merge(
    checkpoints: Any,
    base: Any = None,
    *,
    evaluate: Evaluator | Callable[[Any, str], Any],
    out: str | os.PathLike[str],
    budget: int = 20,
    methods: str | Iterable[str] = METHODS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    target: str | None = None,
    metrics: str | Iterable[str] = "all",
    tasks: Tasks = None,
    model: ModelLike = None,
    page: bool = True,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress | Measuring], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
    heads: str | None = None,
    head_tensors: str | Sequence[str] | None = None,
    calibration: Any = None,
) -> BestMerge:
    """Find the best merge of two models of a zoo, measuring some of all merges, and make it.

    The base and each model are measured on the models' tasks. The merges of the pair that these promise most are
    measured by all methods, and then those that are expected to improve most on the best one so far
    (`mergekern.prediction.search`), until the budget is spent. The best measured merge is the answer. A run that is
    stopped goes on, and ends with the same bytes; one with a larger budget goes on from a smaller one.

    Args:
        checkpoints, base, on_mismatch, io, rename: as for `merge`.
        evaluate, tasks, model, options, device, max_memory, heads, head_tensors: as for `measure_merges`. With heads
            that are each task's own, the metrics are those of the bodies.
        out: a folder for all that is found: merged/METHOD/first+second.safetensors (a folder without the suffix where
            the base is a folder, or where models have heads of their own: then it holds one result for each of the
            two, by its name), scores.csv, models.csv, metrics.parquet, statistics/, predictor.json of the best
            method, report.html, and search.json, by which a run knows whether it goes on.
        budget: number of merges to measure; the base and the models come on top.
        methods: names of `METHODS` to choose from.
        target: the column of scores.csv to make as large as possible: the score ("accuracy"), or "normalized_accuracy",
            the mean of the ratios to the single models.
        metrics: names of metrics or categories, as for `compute_all`, for the page and the predictor; the search needs
            two of the task-vector geometry, which are always among them.
        page: whether report.html and predictor.json are written.
        progress: called with a `Progress` for each tensor and a `Measuring` for each model and merge.
        calibration: samples of the task of each model, a `mergekern.Calibration`, for regmean and fisher among the
            methods.

    Raises:
        EvaluationError: as for `measure_merges`; no merge could be measured.
        OptionError: fewer merges in the budget than methods; an unknown target; as for `merge_all`.
        OutputError: `out` has the search in other models, or by other methods, or cannot be written.
        CheckpointError, MismatchError, NonFiniteError: as for `merge`.

    >>> import tempfile
    >>> zoo = {name: {"w": torch.full((2, 2), float(value))} for value, name in enumerate("abcd")}
    >>> aims = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 9.0}
    >>> near = lambda state, task: float(1 - (state["w"] - aims[task]).square().mean() / 81)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = best_merge(zoo, {"w": torch.zeros(2, 2)}, evaluate=near, out=folder, budget=6, page=False,
    ...                        methods=["weight_average", "task_arithmetic"])
    >>> found.method, found.models, round(found.score, 3)
    ('weight_average', ('a', 'b'), 0.997)
    """
    budget = positive_integer("budget", budget)
    evaluator = as_evaluator(evaluate)
    chosen = [method for method, _ in find_methods(methods, options)]
    check_samples(chosen, calibration)
    names = [method.name for method in chosen]
    target = target or evaluator.score
    if target not in (evaluator.score, normalized(evaluator.score)):
        raise OptionError(f"target is {evaluator.score!r} or {normalized(evaluator.score)!r}, not {target!r}")
    if budget < len(names):
        raise OptionError(
            f"a budget of {budget} does not allow to try {len(names)} methods: give fewer methods (--methods), or a "
            f"budget of {len(names)} or more"
        )
    if page:
        _check_page()
    zoo, heads = open_with_heads(
        checkpoints, base, heads=heads, head_tensors=head_tensors, on_mismatch=on_mismatch, io=io, rename=rename
    )
    of_model = tasks_of(zoo.model_names, tasks, evaluator)
    how: dict[str, Any] = {"evaluate": evaluator, "tasks": of_model, "model": model, "options": options}
    how |= {"device": device, "max_memory": max_memory, "calibration": calibration, "heads": heads}
    search = _Search(zoo, Path(out), names, target, budget, how, progress)
    with locked(Path(out)):
        prepared = search.prepare()
        table = search.metrics_of(metrics)
        asked = {"evaluator": evaluator.name, "tasks": of_model, "options": options or {}}
        if calibration is not None:
            asked["calibration"] = calibration.content_hash(calibration.build())
        if heads is not None:
            asked["heads"] = {"of": heads, "tensors": sorted(zoo.heads), "hash": hash_of_heads(zoo)}
        search.check_same(asked, table)
        found = search.run(*prepared, table.to_pandas())
        best = search.answer(found)
        paths = merge_all(
            zoo, methods=best.method, groups=[best.models], options=_options_of(best.method, options),
            output=search.folder / MERGED, device=device, max_memory=max_memory, heads=heads,
            calibration=calibration if find_methods(best.method, None)[0][0].needs else None,
        )  # fmt: skip
        best = replace(best, path=paths[0].parent if heads == EACH else paths[0])
        if page:
            search.write_page(table, found, best)
    return best


@dataclass
class _Search:
    """The search in one zoo, and its folder."""

    zoo: Zoo
    folder: Path
    methods: list[str]
    target: str
    budget: int
    how: dict[str, Any]
    progress: Callable[[Progress | Measuring], None] | None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(combinations(self.zoo.model_names, 2))

    def metrics_of(self, metrics: Any) -> MetricTable:
        """Return the table of metrics, those of the search among them, and write it."""
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        metrics = names if "all" in names else list(dict.fromkeys([*names, *LIKENESS]))
        table = compute_all(
            without_heads(self.zoo), metrics=metrics, statistics=self.folder / STATISTICS, device=self.how["device"],
            max_memory=self.how["max_memory"], progress=self.progress,
        )  # fmt: skip
        table.save(self.folder / METRICS)
        return table

    def check_same(self, search: dict[str, Any], table: MetricTable) -> None:
        """Write what this search is of, unless the folder has another one.

        Raises:
            OutputError: it has.
        """
        said = {"target": self.target, "methods": self.methods, **search}
        said["models"] = table.provenance["content_hashes"]
        said = json.loads(json.dumps(said, default=str))
        path = self.folder / SEARCH
        if path.exists():
            try:
                before = json.loads(path.read_text("utf-8"))
                other = [name for name in said if before.get(name) != said[name]]
            except (ValueError, AttributeError):
                other = [SEARCH]
            if other:
                raise OutputError(f"{self.folder}: has a search with other {', '.join(other)}; give another folder")
        write_atomically(path, f"{json.dumps(said, indent=2)}\n".encode())

    def prepare(self) -> tuple[Files, Measurement]:
        """Return the files and what measures, so that what cannot be evaluated is found before metrics are computed."""
        evaluator = self.how["evaluate"]
        files = Files(self.folder / SCORES, self.folder / MODELS, evaluator.score, self.zoo.model_names)
        return files, Measurement(
            self.zoo, files, evaluator, self.how["tasks"], self.how["model"], heads=self.how["heads"],
            device=self.how["device"], max_memory=self.how["max_memory"], progress=self.progress,
            calibration=self.how["calibration"],
        )  # fmt: skip

    def run(self, files: Files, measurement: Measurement, metrics: pd.DataFrame) -> MeasuredMerges:
        """Measure models and merges, and return all that was measured."""
        options = self.how["options"] or {}
        measurement.expect(min(self.budget, len(self.pairs) * len(self.methods)))
        measurement.measure_models()
        prior = self._prior(files.frames()[1])
        # A run that goes on takes the same way again: what is measured already is known only once it is chosen.
        tried: dict[Merge, float | None] = {}
        while len(tried) < self.budget:
            chosen = next_merges(prior, self.methods, tried, AT_A_TIME, metrics)[: self.budget - len(tried)]
            if not chosen:
                break
            rows = files.want(None, chosen, options)
            measurement.expect(len(rows) - len(chosen))
            measurement.measure_merges(rows)
            scores = files.frames()[0].set_index(list(MERGE))[self.target]
            tried |= {merge: None if np.isnan(score := scores[merge]) else float(score) for merge in chosen}
        return MeasuredMerges(*files.frames(), files.failures)

    def _prior(self, models: pd.DataFrame) -> dict[tuple[str, str], float]:
        """Return what the scores of models and base promise of each pair: see `PriorRegressor`."""
        known = models.set_index("model")
        own, base = known["own_accuracy"], known["base_accuracy"].fillna(known["own_accuracy"])
        promise = OWN_WEIGHT * own + BASE_WEIGHT * base
        if self.target != self.how["evaluate"].score:
            promise = promise / own.where(own > 0)
        promise = promise.fillna(promise.mean()).fillna(0.0)
        return {pair: float(promise[list(pair)].mean()) for pair in self.pairs}

    def answer(self, found: MeasuredMerges) -> BestMerge:
        """Return the best measured merge, without a path.

        Raises:
            EvaluationError: none has a score.
        """
        scores = found.scores.sort_values(self.target, ascending=False, kind="stable", na_position="last")
        scores = scores[scores[self.target].notna()].reset_index(drop=True)
        if scores.empty:
            why = next(iter(found.failures.values()), "no scores of single models to divide by")
            raise EvaluationError(f"no merge could be measured: {why}")
        best = scores.iloc[0]
        pair = (str(best["model_a"]), str(best["model_b"]))
        sentences = _sentences(self.target, self.how["evaluate"].score, scores, found)
        total = len(self.pairs) * len(self.methods)
        sentences.append(
            f"{len(found.scores)} of {total} merges were measured: those of {len(self.pairs)} pairs by "
            f"{', '.join(self.methods)}."
        )
        if self.how["heads"] == EACH:
            sentences.append(
                "Heads are not merged: each task was measured with the head of its own model, and the merge is written "
                "once with each of the two."
            )
        return BestMerge(
            str(best["method"]), pair, float(best[self.target]), self.folder, scores, sentences, found.failures
        )

    def _steps(self, found: MeasuredMerges, best: BestMerge) -> list[Step]:
        """Return what to do next."""
        steps = [
            Step(f"Take the merge: it is made, and lies beside this page as {os.path.relpath(best.path, self.folder)}.")
        ]
        left = len(self.pairs) * len(self.methods) - len(found.scores)
        if left:
            text = f"Give the same command a larger --budget to search on: {left} merges were not measured."
            steps.append(Step(text))
        return steps

    def write_page(self, table: MetricTable, found: MeasuredMerges, best: BestMerge) -> None:
        """Fit a predictor to the scores of the best method, and write the page."""
        by_pair = best.scores.set_index(["model_a", "model_b"])
        scores = {str(method): rows[self.target] for method, rows in by_pair.groupby("method", sort=False)}
        sentences, predictors = list(best.answer), []
        try:
            fitted = _fitted(table, scores[best.method], best.method, found.models, self.how["evaluate"].score)
            fitted.save(self.folder / PREDICTOR)
            predictors = [MergePredictor.load(self.folder / PREDICTOR)]
        except PredictionError as error:
            sentences.append(f"The other pairs are not predicted: {error}.")
        headers = [*MERGE, *map(str, best.scores.select_dtypes("float"))]
        rows = [
            [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row]
            for row in best.scores[headers].head(ROWS).itertuples(index=False)
        ]
        caption = f"The {len(rows)} best of the {len(best.scores)} measured merges"
        if predictors and predictors[0].metrics and not set(predictors[0].metrics) <= set(table.metrics):
            table = table.join(model_scores(table.models, found.models))
        answer = Answer(
            sentences, [name.replace("_", " ") for name in headers], rows, caption,
            steps=self._steps(found, best), pair=best.models, method=best.method,
        )  # fmt: skip
        write_report(
            table, self.folder / PAGE, scores=scores, predictors=predictors, answer=answer,
            title=f"The best merge of two of {len(table.models)} models",
        )  # fmt: skip


def _sentences(target: str, score: str, scores: pd.DataFrame, found: MeasuredMerges) -> list[str]:
    """Return the answer in words."""
    best = scores.iloc[0]
    pair = [best["model_a"], best["model_b"]]
    name = target.replace("_", " ")
    known = found.models.set_index("model").loc[pair]
    on_tasks = " and ".join(
        f"{best[f'{score}_{side}']:.4f} on the task of {model}" for side, model in zip("ab", pair, strict=True)
    )
    sentences = [
        f"Merge {pair[0]} and {pair[1]} by {best['method']}: {name} {best[target]:.4f}; {score.replace('_', ' ')} "
        f"{on_tasks}.",
        f"Alone, each on its own task, the two models have {known['own_accuracy'].mean():.4f} on average, and the base "
        f"{known['base_accuracy'].mean():.4f}.",
    ]
    if best[score] <= known["base_accuracy"].mean():
        sentences.append("So it is no better than the base: other models, or other methods, may merge better.")
    if len(scores) > 1:
        second = scores.iloc[1]
        which = "Just as good is" if second[target] == best[target] else "The second best of those measured is"
        sentences.append(
            f"{which} {second['method']} of {second['model_a']} and {second['model_b']}, with {second[target]:.4f}."
        )
    if found.failures:
        sentences.append(f"{len(found.failures)} models or merges have no score; scores.csv and models.csv say why.")
    return sentences


def _fitted(table: MetricTable, scores: pd.Series, method: str, models: pd.DataFrame, score: str) -> MergePredictor:
    """Return the predictor that suits what is known."""
    known = models[["own_accuracy", "base_accuracy"]].to_numpy(dtype=np.float64)
    if not ((known >= 0) & (known <= 1) | np.isnan(known)).all():
        return MergePredictor.fit(table, scores, method)
    table = table.join(model_scores(table.models, models))
    if score == "accuracy":
        return MergePredictor.fit(table, scores, method)
    # The rule of the prior holds for other shares too.
    target = "accuracy" if scores.name == score else "normalized_accuracy"
    return MergePredictor.fit(table, scores, method, "prior+additive", options={"target": target})


def _options_of(method: str, options: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    return {method: options[method]} if options and method in options else {}


def _check_page() -> None:
    """Raise OptionError, before anything is measured, where a page cannot be made."""
    try:
        import_module("mergekern.report.page")
    except ImportError as error:
        raise OptionError(f"{needs('the page', 'report', error)}, or take none: page=False (--no-page)") from error
