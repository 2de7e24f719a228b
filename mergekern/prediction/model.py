"""MergePredictor: a fitted predictor of one merge method, with what it knows about how well it predicts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergekern._internal.files import write_atomically
from mergekern._internal.versions import package_version, versions
from mergekern.errors import PredictionError
from mergekern.prediction.intervals import Intervals, calibrate, predicted_sd
from mergekern.prediction.pairs import IncompletePairsWarning, complete_pairs, find_pairs, pair_key, task_codes
from mergekern.prediction.persistence import from_document, to_document
from mergekern.prediction.predictors import contributions, make_predictor, predictor_kind
from mergekern.prediction.scores import align_scores
from mergekern.prediction.splitters import LeaveOneTaskOut, LeaveTasksOut
from mergekern.prediction.validation import cross_validate_pairs, fit_estimator, predict_pairs
from mergekern.tables.frames import INDEX
from mergekern.tables.metric_table import MetricTable

FORMAT = "mergekern predictor"
FORMAT_VERSION = 1
# What is held out in cross-validation, by how many models of a pair then have measured merges.
REGIMES = {"partner known": LeaveOneTaskOut(), "both unseen": LeaveTasksOut(repeats=20)}
FEWEST_PAIRS = 3
DRIVERS = 3


@dataclass(frozen=True)
class MergePredictor:
    """A fitted predictor of the score of merged pairs; make one with `fit` or `load`.

    Attributes:
        kind: of `make_predictor`.
        method: the merge method whose scores it was fitted to.
        target: the name of the score.
        metrics: what it needs a value of, in order.
        estimator: the fitted regressor.
        ranges: (lowest, highest) of each metric in the training pairs.
        measured: the training pairs and their scores.
        intervals: how far off predictions were on held-out pairs.
        validation: for each of `REGIMES`, mean and standard deviation of Pearson's r over the folds, beside those of
            the additive baseline; or why there are none.
        dropped: pairs with a score that took no part, and why.
        provenance: versions, and the table's provenance.
    """

    kind: str
    method: str
    target: str
    metrics: tuple[str, ...]
    estimator: Any
    ranges: dict[str, tuple[float, float]]
    measured: pd.Series
    intervals: Intervals
    validation: dict[str, dict[str, Any]]
    dropped: dict[tuple[str, str], str]
    provenance: dict[str, Any]

    @staticmethod
    def fit(
        table: MetricTable,
        scores: pd.Series,
        method: str,
        kind: str = "additive+metrics",
        *,
        level: float = 0.8,
        seed: int = 0,
        **options: Any,
    ) -> MergePredictor:
        """Fit a predictor, validate it, and measure how wide its intervals must be.

        Pairs with a score but without a value of every metric that the predictor uses are left out, and named in
        `dropped`; a metric without any value is left out as a whole.

        Args:
            table: metrics of the models.
            scores: of merged pairs, as `read_scores` returns them; its name is the target.
            method: the merge method that they are of.
            kind: of the predictor, see `make_predictor`; `options` are the predictor's.
            level: share of pairs that the intervals are to cover.
            seed: of what is held out to measure that.

        Raises:
            PredictionError: unknown models, predictor or options, or too few pairs with everything.
        """
        entry, estimator = predictor_kind(kind), make_predictor(kind, **options)
        frame = table.to_pandas()
        target = align_scores(scores, frame.index, table.models)
        scored = target.notna()
        if not entry.uses_metrics:
            frame = frame[[]].assign(no_metric=0.0)
        with warnings.catch_warnings():
            # What is left out is in `dropped`, for whoever shows it.
            warnings.simplefilter("ignore", IncompletePairsWarning)
            if scored.sum() < FEWEST_PAIRS:
                raise PredictionError(f"{int(scored.sum())} scores of {method} are too few: at least {FEWEST_PAIRS}")
            data = complete_pairs(frame[scored], target[scored])
            if len(data.y) < FEWEST_PAIRS:
                raise PredictionError(
                    f"{len(data.y)} of {int(scored.sum())} pairs with a score have every metric: at least "
                    f"{FEWEST_PAIRS} are needed"
                )
            validation = {name: _validate(estimator, data.X, data.y, splitter) for name, splitter in REGIMES.items()}
        return MergePredictor(
            kind=kind,
            method=method,
            target=str(scores.name or "score"),
            metrics=tuple(map(str, data.X.columns)) if entry.uses_metrics else (),
            estimator=fit_estimator(estimator, data.X, data.y, data.pairs),
            ranges={str(name): (float(v.min()), float(v.max())) for name, v in data.X.items()}
            if entry.uses_metrics
            else {},
            measured=pd.Series(data.y, index=data.X.index),
            intervals=calibrate(estimator, data.X, data.y, data.pairs, level=level, seed=seed),
            validation=validation,
            dropped=data.dropped,
            provenance={
                "versions": {**versions(), "scikit-learn": package_version("scikit-learn")},
                "options": {name: value for name, value in estimator.get_params().items()},
                "metrics_without_values": list(data.dropped_metrics),
                "table": table.provenance,
            },
        )

    def predict(self, table: MetricTable | pd.DataFrame) -> pd.DataFrame:
        """Return the pairs of a table, or of some rows of its frame, the most promising first; those that cannot be
        predicted are last.

        The index is (model_a, model_b), the columns are

        - prediction, low, high: of the target, and its interval; NaN where too few pairs could be held out to know;
        - measured: the score, of a pair that has one;
        - measured_models: how many of the two models have a measured merge, 0 to 2;
        - drivers: the effects and metrics that moved the prediction most, each with how far;
        - remarks: what makes the prediction less sure, in words.

        Raises:
            PredictionError: the table lacks metrics, or the frame's index does not name the two models of each row.
        """
        X = self._metrics_of(table)
        pairs = _names_of(X)
        possible = np.isfinite(X.to_numpy()).all(1)
        out = pd.DataFrame({"prediction": np.nan, "low": np.nan, "high": np.nan}, index=X.index)
        known = {pair_key(pair): score for pair, score in self.measured.items()}
        out["measured"] = [known.get(pair_key(pair), np.nan) for pair in pairs]
        out["measured_models"] = np.isin(pairs, self.models).sum(1)
        out["drivers"] = ""
        if possible.any():
            rows, names = X[possible], pairs[possible]
            predictions = predict_pairs(self.estimator, rows, names)
            sd = predicted_sd(self.estimator, rows, names)
            low, high = self.intervals.around(predictions, sd, out["measured_models"].to_numpy()[possible])
            out.loc[possible, ["prediction", "low", "high"]] = np.column_stack([predictions, low, high])
            out.loc[possible, "drivers"] = self._drivers(contributions(self.estimator, rows, names), names)
        out["remarks"] = self._remarks(X, out["measured_models"].to_numpy())
        return out.sort_values("prediction", ascending=False, kind="stable", na_position="last")

    def explain(self, table: MetricTable) -> pd.DataFrame:
        """Return the terms of each prediction: "mean", the effects "model_a" and "model_b", and every metric's.

        A row's sum is its prediction; pairs without a value of every metric have no row.

        Raises:
            PredictionError: the table lacks metrics, or the frame's index does not name the two models of each row.
        """
        X = self._metrics_of(table)
        X = X[np.isfinite(X.to_numpy()).all(1)]
        pairs = _names_of(X)
        terms = contributions(self.estimator, X, pairs)
        return terms[["mean", "model_a", "model_b", *self.metrics]]

    @property
    def models(self) -> list[str]:
        """Names of the models with a measured merge, sorted."""
        return task_codes(np.array(self.measured.index.tolist(), dtype=str))[0].tolist()

    def expected_r(self, regime: str) -> float | None:
        """Return the mean Pearson correlation in one of `REGIMES`, None if it could not be found."""
        return self.validation[regime].get("val_r_mean")

    def save(self, path: str | Path) -> None:
        """Write the predictor as JSON; `load` gives the same predictions, to the last bit."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "method": self.method,
            "target": self.target,
            "metrics": self.metrics,
            "ranges": self.ranges,
            "measured": [[*pair, score] for pair, score in self.measured.items()],  # type: ignore[misc]
            "dropped": [[*pair, why] for pair, why in self.dropped.items()],
            "intervals": {
                "level": self.intervals.level,
                "widths": [self.intervals.widths[count] for count in range(3)],
                "held_out": [self.intervals.held_out[count] for count in range(3)],
            },
            "validation": self.validation,
            "provenance": self.provenance,
            "estimator": to_document(self.estimator),
        }
        write_atomically(Path(path), json.dumps(document, allow_nan=False, default=str).encode())

    @staticmethod
    def load(path: str | Path) -> MergePredictor:
        """Read what `save` wrote.

        Raises:
            PredictionError: the file is missing, damaged, something else, or of a newer version.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PredictionError(f"{path}: not a readable predictor ({error})") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise PredictionError(f"{path}: not a predictor written by mergekern fit")
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise PredictionError(
                f"{path}: written in format {version}, this version reads format {FORMAT_VERSION}; fit it again"
            )
        try:
            return _from_document(document)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise PredictionError(f"{path}: a damaged predictor ({type(error).__name__}: {error})") from error

    def _metrics_of(self, table: MetricTable | pd.DataFrame) -> pd.DataFrame:
        """Return the metrics that the predictor was fitted to, in its order."""
        frame = table.to_pandas() if isinstance(table, MetricTable) else table
        if not self.metrics:
            return frame[[]].assign(no_metric=0.0)
        missing = [name for name in self.metrics if name not in frame]
        if missing:
            raise PredictionError(
                f"the table lacks {len(missing)} of the {len(self.metrics)} metrics that the predictor was fitted to: "
                f"{', '.join(missing)}; compute them, or fit on a table like this one"
            )
        return frame[list(self.metrics)]

    def _drivers(self, terms: pd.DataFrame, pairs: np.ndarray) -> list[str]:
        values = terms.drop(columns="mean").to_numpy()
        metrics = list(terms.columns[3:])
        order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :DRIVERS]
        largest = np.take_along_axis(values, order, axis=1)
        return [
            ", ".join(
                f"{pair[k] if k < 2 else metrics[k - 2]} {term:+.3g}" for k, term in zip(at, moved, strict=True) if term
            )
            for pair, at, moved in zip(pairs.tolist(), order.tolist(), largest.tolist(), strict=True)
        ]

    def _remarks(self, X: pd.DataFrame, measured_models: np.ndarray) -> list[str]:
        r = self.expected_r("both unseen")
        # No "-0.0".
        expected = "how well that can be predicted is not known" if r is None else f"expected r {round(r, 1) + 0.0:.1f}"
        of_models = [
            f"no merge of either model has been measured: {expected}",
            "no merge of one of the models has been measured",
            "",
        ]
        values, names = X.to_numpy(), np.array(list(map(str, X.columns)))
        missing = ~np.isfinite(values)
        low, high = np.array(list(self.ranges.values())).T if self.ranges else (-np.inf, np.inf)
        outside = (values < low) | (values > high)
        remarks = [of_models[count] for count in measured_models]
        for row in np.flatnonzero(outside.any(1)):
            found = f"outside of the training pairs in {', '.join(names[outside[row]])}"
            remarks[row] = "; ".join(filter(None, (remarks[row], found)))
        for row in np.flatnonzero(missing.any(1)):
            remarks[row] = f"not predicted: no value for {', '.join(names[missing[row]])}"
        return remarks


def recommend(predictors: Iterable[MergePredictor], table: MetricTable | pd.DataFrame) -> pd.DataFrame:
    """Return for each pair of a table, or of some rows of its frame, the method with the best score, the most promising
    pairs first.

    A score that was measured takes the place of its prediction. Columns: method, score (measured or predicted), low,
    high, measured (bool), runner_up (the second-best method), lead (over it), clear (whether the interval of the best
    one lies above that of the runner-up), remarks.

    Raises:
        PredictionError: no predictors, two of one method, targets that differ, or metrics that the table lacks.
    """
    predictors = list(predictors)
    methods = [predictor.method for predictor in predictors]
    targets = {predictor.target for predictor in predictors}
    if not predictors or len(set(methods)) < len(methods):
        raise PredictionError(f"one predictor for each method is needed to recommend one, not {methods}")
    if len(targets) > 1:
        raise PredictionError(f"scores of different targets cannot be compared: {', '.join(sorted(targets))}")
    index = (table.to_pandas() if isinstance(table, MetricTable) else table).index
    frames = [predictor.predict(table).reindex(index) for predictor in predictors]

    def column(name: str) -> np.ndarray:
        """Return (pairs, methods + 1) values; the last column, without any, is the runner-up of a single method."""
        return np.column_stack([*(frame[name].to_numpy() for frame in frames), np.full(len(index), np.nan)])

    measured = np.isfinite(column("measured"))
    score, low, high = (np.where(measured, column("measured"), column(name)) for name in ("prediction", "low", "high"))
    # Stable: of equal scores, the method that was named first. Those without a score are last.
    order = np.argsort(-score, axis=1, kind="stable")
    best, second = order[:, :1], order[:, 1:2]

    def take(values: np.ndarray, at: np.ndarray = best) -> np.ndarray:
        return np.take_along_axis(values, at, axis=1)[:, 0]

    named = np.where(np.isfinite(score), np.array([*methods, None], dtype=object), np.array(None, dtype=object))
    predicted = np.isfinite(take(score))
    out = pd.DataFrame(
        {
            "method": take(named),
            "score": take(score),
            "low": np.where(predicted, take(low), np.nan),
            "high": np.where(predicted, take(high), np.nan),
            "measured": take(measured),
            "runner_up": take(named, second),
            "lead": take(score) - take(score, second),
            "clear": take(low) > take(high, second),
            "remarks": np.where(predicted, take(column("remarks")), "not predicted by any method"),
        },
        index=index,
    )
    return out.sort_values("score", ascending=False, kind="stable", na_position="last")


def _names_of(X: pd.DataFrame) -> np.ndarray:
    """Return the names of the two models of each row, (n, 2)."""
    pairs = find_pairs(X)
    if pairs is None:
        raise PredictionError(
            "the frame's index does not name the two models of each row; give a MetricTable, or rows of its to_pandas()"
        )
    return pairs


def _validate(estimator: Any, X: pd.DataFrame, y: np.ndarray, splitter: Any) -> dict[str, Any]:
    """Return the figures of a cross-validation, or why there are none."""
    try:
        found = cross_validate_pairs(estimator, X, y, splitter=splitter, resamples=0)
    except PredictionError as error:
        return {"splitter": repr(splitter), "why_not": str(error)}
    figures: dict[str, Any] = {"splitter": repr(splitter), "folds": len(found.folds)}
    for name, row in {"": found.summary.loc["estimator"], "additive_": found.summary.loc["additive"]}.items():
        for column in ("val_r_mean", "val_r_sd", "rmse"):
            value = float(row[column])  # type: ignore[arg-type]
            figures[name + column] = value if np.isfinite(value) else None
    return figures


def _from_document(document: dict[str, Any]) -> MergePredictor:
    intervals = document["intervals"]
    measured = document["measured"]
    index = pd.MultiIndex.from_tuples([(a, b) for a, b, _ in measured], names=INDEX)
    return MergePredictor(
        kind=document["kind"],
        method=document["method"],
        target=document["target"],
        metrics=tuple(document["metrics"]),
        estimator=from_document(document["estimator"]),
        ranges={name: (low, high) for name, (low, high) in document["ranges"].items()},
        measured=pd.Series([score for *_, score in measured], index=index, dtype=np.float64),
        intervals=Intervals(
            level=intervals["level"],
            widths=dict(enumerate(intervals["widths"])),
            held_out=dict(enumerate(intervals["held_out"])),
        ),
        validation=document["validation"],
        dropped={(a, b): why for a, b, why in document["dropped"]},
        provenance=document["provenance"],
    )
