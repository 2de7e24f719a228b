"""Outcomes of merges, measured and predicted: the part of a report that scores and predictors make."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from mergekern.errors import OptionError, PredictionError
from mergekern.prediction import (
    IncompletePairsWarning,
    MergePredictor,
    PairValidation,
    align_scores,
    budget_curve,
    cross_validate_pairs,
    failure_signatures,
    fingerprints,
    make_predictor,
    recommend,
    variance_components,
)
from mergekern.prediction.analysis import Fingerprints, VarianceComponents
from mergekern.prediction.figures import read_columns
from mergekern.prediction.predictors import DEFAULT_KIND, PREDICTORS, available_kind
from mergekern.tables.metric_table import MetricTable

# What the coefficients are of.
METRICS_ALONE = "sparse"
LARGEST = 5
BUDGET_REPEATS = 5


@dataclass(frozen=True)
class Outcome:
    """Scores of the merges by one method, and their predictions.

    Attributes:
        method: its name.
        measured: scores of the table's P pairs in their order, NaN where there is none.
        kind: name of the predictor that was given, or else of the one that DEFAULT_KIND takes; `validation` validates
            it. DEFAULT_KIND itself where nothing can be fitted.
        predicted: prediction, low, high, drivers and remarks of the P pairs; None without a predictor.
        level: share of pairs that the conformal intervals are to cover.
        validation: leave-one-task-out validation on the measured pairs, beside the baselines.
        metrics_alone: the same validation of the study's L1 fit, which knows metrics alone; its coefficients are the
            fingerprint.
        variance: shares of the scores' variance that are due to the models and to the pairs.
        budget: `budget_curve` of what predicts the other pairs from so many measured merges.
        warnings: why to doubt the predictions, or why there is no validation, in words.
    """

    method: str
    measured: pd.Series
    kind: str = DEFAULT_KIND
    predicted: pd.DataFrame | None = None
    level: float | None = None
    validation: PairValidation | None = None
    metrics_alone: PairValidation | None = None
    variance: VarianceComponents | None = None
    budget: pd.DataFrame | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def held_out(self) -> pd.DataFrame:
        """A row for each fold and each pair of its held-out model (index): held_out (the model), y and prediction.

        Each pair has two rows, one for either model held out. The mean of the two would know both models.
        """
        assert self.validation is not None
        predictions = self.validation.predictions.set_index(["model_a", "model_b"])
        names = self.validation.folds["held_out"].to_numpy()[predictions["fold"]]
        return predictions[["y", "prediction"]].assign(held_out=names)

    @property
    def coefficients(self) -> pd.DataFrame | None:
        """Mean and sd over the folds, a row for each metric; of metrics scaled to [-1, 1] over the training pairs."""
        if self.metrics_alone is None or self.metrics_alone.coefficients is None:
            return None
        folds = self.metrics_alone.coefficients
        return pd.DataFrame({"mean": folds.mean(), "sd": folds.std(ddof=0)})


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of all merge methods.

    Attributes:
        target: the name of the score.
        methods: in the order given.
        fingerprints: similarity of the methods' coefficients; None for a single method.
        recommended: what `recommend` says of the predictors' methods; None without a predictor.
    """

    target: str
    methods: list[Outcome]
    fingerprints: Fingerprints | None
    recommended: pd.DataFrame | None = None

    @property
    def limits(self) -> tuple[float, float] | None:
        """Ends of the scale of the scores, where they are accuracies; no interval goes beyond them."""
        measured = pd.concat([outcome.measured for outcome in self.methods])
        return score_limits(self.target, measured)


def score_limits(target: str, measured: pd.Series) -> tuple[float, float] | None:
    """Return the limits of accuracies, as shares or in percent; None for other scores.

    >>> score_limits("accuracy", pd.Series([0.9])), score_limits("top-5 accuracy", pd.Series([90.0]))
    ((0.0, 1.0), (0.0, 100.0))
    >>> score_limits("normalized_accuracy", pd.Series([0.9])), score_limits("loss", pd.Series([0.9]))
    (None, None)
    """
    known = measured.dropna()
    is_share = "accuracy" in target and not target.startswith("normalized")
    if not is_share or not known.between(0, 100).all():
        return None
    return (0.0, 1.0) if (known <= 1).all() else (0.0, 100.0)


def gather_outcomes(
    table: MetricTable, scores: Mapping[str, pd.Series] | None = None, predictors: Iterable[MergePredictor] = ()
) -> Outcomes | None:
    """Compute the outcomes that a report shows; None where neither scores nor predictors are given.

    Args:
        table: metrics of the pairs.
        scores: scores by merge method, as `read_scores` returns them.
        predictors: one for a method at most; the scores that one was fitted to count where `scores` has none of its
            method.

    Raises:
        OptionError: two predictors of one method, or scores of different targets.
        PredictionError: scores of unknown models, or metrics that a predictor needs and the table lacks.
    """
    by_method: dict[str, MergePredictor] = {}
    for predictor in predictors:
        if predictor.method in by_method:
            raise OptionError(f"two predictors of {predictor.method}; a report shows one for each merge method")
        by_method[predictor.method] = predictor
    given = dict(scores or {})
    targets = {str(series.name) for series in given.values()} | {predictor.target for predictor in by_method.values()}
    if len(targets) > 1:
        raise OptionError(f"a report is of one score, not of {' and '.join(sorted(targets))}")
    if not targets:
        return None
    names = dict.fromkeys([*given, *by_method])
    methods = [_outcome(table, name, given.get(name), by_method.get(name)) for name in names]
    recommended = recommend(by_method.values(), table) if by_method else None
    return Outcomes(targets.pop(), methods, _fingerprints(methods), recommended)


def _outcome(table: MetricTable, method: str, scores: pd.Series | None, predictor: MergePredictor | None) -> Outcome:
    frame = table.to_pandas()
    if scores is None:
        assert predictor is not None
        scores = predictor.measured[[set(pair) <= set(table.models) for pair in predictor.measured.index]]
    target = str(scores.name or "score")
    outcome = Outcome(method, align_scores(scores, frame.index, table.models))
    if predictor is not None:
        predicted = predictor.predict(table)[["prediction", "low", "high", "drivers", "remarks"]].reindex(frame.index)
        if (limits := score_limits(target, scores)) is not None:
            predicted[["low", "high"]] = predicted[["low", "high"]].clip(*limits)
        outcome = replace(outcome, kind=predictor.kind, predicted=predicted, level=predictor.intervals.level)
    try:
        if predictor is None:
            kind = available_kind(frame.columns, outcome.measured.count(), target)
            outcome = replace(outcome, kind=kind)
        entry = PREDICTORS[outcome.kind]
        estimator = make_predictor(outcome.kind, target=target if entry.uses_model_scores else None)
        validation = _validate(read_columns(frame, entry), outcome.measured, estimator)
        of_metrics = read_columns(frame, PREDICTORS[METRICS_ALONE])
        metrics_alone = _validate(of_metrics, outcome.measured, make_predictor(METRICS_ALONE, {"solver": "exact"}))
        variance = variance_components(outcome.measured)
        budget = _budget(frame, outcome.measured, target)
    except PredictionError as error:
        return replace(outcome, warnings=[str(error)])
    doubts = failure_signatures(validation)
    return replace(
        outcome, validation=validation, metrics_alone=metrics_alone, variance=variance, budget=budget, warnings=doubts
    )


def _budget(frame: pd.DataFrame, measured: pd.Series, target: str) -> pd.DataFrame:
    kind = "prior+additive" if available_kind(frame.columns, 1, target) == "prior+additive" else "additive"
    scored = measured.notna()
    X = read_columns(frame, PREDICTORS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompletePairsWarning)  # pairs without model scores
        return budget_curve(X[scored], measured[scored], target=target, kinds=[kind], n_repeats=BUDGET_REPEATS)


def _validate(frame: pd.DataFrame, measured: pd.Series, estimator: Any) -> PairValidation:
    scored = measured.notna()
    with warnings.catch_warnings():
        # What was left out is in the validation.
        warnings.simplefilter("ignore", IncompletePairsWarning)
        return cross_validate_pairs(estimator, frame[scored], measured[scored], n_resamples=0)


def _fingerprints(methods: list[Outcome]) -> Fingerprints | None:
    means = {outcome.method: found["mean"] for outcome in methods if (found := outcome.coefficients) is not None}
    coefficients = pd.DataFrame(means).dropna()
    if coefficients.shape[1] < 2 or len(coefficients) < LARGEST:
        return None
    return fingerprints(coefficients, LARGEST)
