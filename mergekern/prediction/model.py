"""MergePredictor: a fitted predictor for one merge method, with its validation and its intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergekern._internal.documents import checked, parse_json
from mergekern._internal.files import write_output
from mergekern._internal.text import shortened
from mergekern._internal.versions import package_version, versions
from mergekern.errors import PredictionError
from mergekern.metrics import MODEL_SCORES
from mergekern.prediction.error_scale import ErrorScale
from mergekern.prediction.figures import training_pairs, validate
from mergekern.prediction.intervals import ConformalIntervals, conformal_intervals
from mergekern.prediction.pairs import find_pairs, pair_key, task_codes
from mergekern.prediction.persistence import from_document, to_document
from mergekern.prediction.predictors import (
    DEFAULT_KIND,
    available_kind,
    contributions,
    make_predictor,
    predictor_kind,
)
from mergekern.prediction.refits import fit_estimator, predict_pairs, predicted_sd
from mergekern.prediction.schemas import PredictorDocument
from mergekern.prediction.splitters import LeaveOneTaskOut, LeaveTasksOut, PairFolds
from mergekern.tables.frames import INDEX
from mergekern.tables.metric_table import MetricTable

FORMAT = "mergekern predictor"
FORMAT_VERSION = 1
# What is held out in cross-validation, by how many models of a pair then have measured merges.
REGIMES = {
    "both measured": PairFolds(),
    "partner known": LeaveOneTaskOut(),
    "both unseen": LeaveTasksOut(n_repeats=20),
}
DRIVERS = 3


@dataclass(frozen=True)
class MergePredictor:
    """A fitted predictor of the score of merged pairs; make one with `fit` or `load`.

    Attributes:
        kind: name of the predictor, see `make_predictor`.
        method: the merge method whose scores it was fitted to.
        target: the name of the score.
        metrics: names of the metrics that it needs, in order.
        estimator: the fitted regressor.
        ranges: (lowest, highest) of each metric in the training pairs.
        measured: scores of the training pairs.
        intervals: half widths of the conformal intervals, from errors on held-out pairs.
        validation: for each of `REGIMES`, the figures of `figures.validate`: correlations, errors and regrets of the
            predictor beside baselines; or the reason why there are none.
        held_out: predictions of training pairs, each by a fit without it.
        dropped: pairs with a score that took no part, each with the reason.
        provenance: versions of packages, and the table's provenance.
    """

    kind: str
    method: str
    target: str
    metrics: tuple[str, ...]
    estimator: Any
    ranges: dict[str, tuple[float, float]]
    measured: pd.Series
    intervals: ConformalIntervals
    validation: dict[str, dict[str, Any]]
    held_out: pd.Series
    dropped: dict[tuple[str, str], str]
    provenance: dict[str, Any]

    @staticmethod
    def fit(
        table: MetricTable,
        scores: pd.Series | None,
        method: str,
        kind: str = DEFAULT_KIND,
        *,
        models: pd.DataFrame | None = None,
        level: float = 0.8,
        random_state: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> MergePredictor:
        """Fit a predictor, validate it, and measure how wide its conformal intervals must be.

        Pairs with a score but without a value of a metric that the predictor uses are left out, and named in
        `dropped`. A metric without any value is left out as a whole.

        Args:
            table: metrics of all pairs of the models.
            scores: scores of merged pairs, as `read_scores` returns them; the name of the series is the target. None if
                no merge was measured: the prior then predicts accuracy from model scores.
            method: the merge method that gave the scores.
            kind: name of the predictor, see `make_predictor`; "auto" takes the one that suits what is known, and `kind`
                of the result is its name.
            models: model scores of all pairs (`model_scores`), unless the table has them.
            level: share of pairs that the conformal intervals shall cover.
            random_state: decides which pairs are held out to measure the intervals.
            options: parameters of the predictor's estimator, see `make_predictor`.

        Raises:
            PredictionError: unknown models, predictor or options, no model scores for a predictor that needs them, or
                too few pairs with a score and all metrics.
        """
        table = table if models is None else table.join(models)
        if scores is None:
            scores = pd.Series([], pd.MultiIndex.from_arrays([[], []], names=INDEX), np.float64, "accuracy")
        target = str(scores.name or "score")
        kind = available_kind(table.metrics, int(scores.notna().sum()), target) if kind == "auto" else kind
        entry = predictor_kind(kind)
        if entry.uses_model_scores and "target" not in (options or {}):
            options = {**(options or {}), "target": target}
        if entry.uses_probes and "method" not in (options or {}):
            options = {**(options or {}), "method": method}
        estimator = make_predictor(kind, options)
        data = training_pairs(table, scores, method, entry)
        beside = table.to_pandas().loc[data.X.index]
        validated = {name: validate(estimator, data.X, data.y, splitter, beside) for name, splitter in REGIMES.items()}
        reads_values = entry.uses_metrics or entry.uses_model_scores or entry.uses_probes
        metrics = data.X if reads_values else data.X[[]]
        return MergePredictor(
            kind=kind,
            method=method,
            target=target,
            metrics=tuple(map(str, metrics)),
            estimator=fit_estimator(estimator, data.X, data.y, data.pairs),
            ranges={
                str(name): (float(values.min()), float(values.max())) for name, values in metrics.items() if len(data.y)
            },
            measured=pd.Series(data.y, index=data.X.index),
            intervals=replace(
                conformal_intervals(estimator, data.X, data.y, data.pairs, level=level, random_state=random_state),
                limits=_limits(target, data.y),
            ),
            validation={name: figures for name, (figures, _) in validated.items()},
            held_out=validated["both measured"][1],
            dropped=data.dropped,
            provenance={
                "versions": {**versions(), "scikit-learn": package_version("scikit-learn")},
                "options": estimator.get_params(),
                "metrics_without_values": list(data.dropped_metrics),
                "table": table.provenance,
            },
        )

    def predict(self, table: MetricTable | pd.DataFrame) -> pd.DataFrame:
        """Return predictions for the pairs of a table, or for some rows of its frame, the most promising first.

        Pairs that cannot be predicted are last. The index is (model_a, model_b), the columns are

        - prediction: predicted value of the target; accuracies are cut off at 0 and 1;
        - low, high: conformal interval around it; NaN if too few pairs could be held out;
        - measured: the measured score; NaN for pairs without one;
        - measured_models: number of the two models that have a measured merge, 0 to 2;
        - drivers: the effects and metrics that moved the prediction most, and how far;
        - remarks: reasons why the prediction is less sure, in words.

        Raises:
            PredictionError: the table lacks metrics, or the frame's index does not name the two models of each row.
        """
        out = self.uncut(table)
        prediction, half = self.intervals.cut(out["prediction"].to_numpy()), out.pop("half").to_numpy()
        out["prediction"] = prediction
        out.insert(1, "low", self.intervals.cut(prediction - half))
        out.insert(2, "high", self.intervals.cut(prediction + half))
        return out.sort_values("prediction", ascending=False, kind="stable", na_position="last")

    def uncut(self, table: MetricTable | pd.DataFrame) -> pd.DataFrame:
        """Return `predict` in the order of the table before anything is cut off; half widths are in the column half."""
        X = self._metrics_of(table)
        pairs = _names_of(X)
        possible = np.isfinite(X.to_numpy()).all(1)
        out = pd.DataFrame({"prediction": np.nan, "half": np.nan}, index=X.index)
        known = {pair_key(pair): score for pair, score in self.measured.items()}
        out["measured"] = [known.get(pair_key(pair), np.nan) for pair in pairs]
        out["measured_models"] = np.isin(pairs, self.models).sum(1)
        out["drivers"] = ""
        if possible.any():
            rows, names = X[possible], pairs[possible]
            predictions = predict_pairs(self.estimator, rows, names)
            sd, measured = predicted_sd(self.estimator, rows, names), out["measured_models"].to_numpy()[possible]
            half = self.intervals.half_widths(self.intervals.cut(predictions), sd, measured)
            out.loc[possible, ["prediction", "half"]] = np.column_stack([predictions, half])
            out.loc[possible, "drivers"] = _drivers(contributions(self.estimator, rows, names), names)
        out["remarks"] = self._remarks(X, out["measured_models"].to_numpy())
        return out

    def explain(self, table: MetricTable) -> pd.DataFrame:
        """Return the terms of each prediction: "mean", the effects "model_a" and "model_b", and a term for each metric.

        The terms of a row add up to its prediction, before one beyond the limits of an accuracy is cut off. Pairs that
        lack a value of a metric have no row.

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
        """Names of the models that have a measured merge, sorted."""
        return task_codes(np.array(self.measured.index.tolist(), dtype=str).reshape(-1, 2))[0].tolist()

    def expected_r(self, regime: str) -> float | None:
        """Return Pearson's r within the folds of one of `REGIMES`, taken together; None if there is none.

        Unlike the mean of the folds' own r, it is not drawn to 0 or to chance where folds have few pairs.
        """
        figures = self.validation[regime]
        return figures.get("r_within_folds", figures.get("val_r_mean"))

    def save(self, path: str | Path) -> None:
        """Write the predictor as JSON. What `load` returns predicts the same, to the last bit."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "method": self.method,
            "target": self.target,
            "metrics": self.metrics,
            "ranges": self.ranges,
            "measured": [[*pair, score] for pair, score in self.measured.items()],  # type: ignore[misc]
            "held_out": [[*pair, value] for pair, value in self.held_out.items()],  # type: ignore[misc]
            "dropped": [[*pair, why] for pair, why in self.dropped.items()],
            "intervals": {
                "level": self.intervals.level,
                "widths": [self.intervals.widths[count] for count in range(3)],
                "held_out": [self.intervals.held_out[count] for count in range(3)],
                "limits": self.intervals.limits,
                "scale": asdict(self.intervals.scale),
            },
            "validation": self.validation,
            "provenance": self.provenance,
            "estimator": to_document(self.estimator),
        }
        write_output(Path(path), json.dumps(document, allow_nan=False, default=str).encode())

    @staticmethod
    def load(path: str | Path) -> MergePredictor:
        """Read what `save` wrote.

        Raises:
            PredictionError: the file is missing, is damaged, is no predictor, or has the format of another version.
        """
        path = Path(path)
        try:
            document = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise PredictionError(f"{path}: not a readable predictor ({error})") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise PredictionError(f"{path}: not a predictor written by mergekern fit")
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise PredictionError(
                f"{path}: written in format {shortened(str(version))}, this version reads format {FORMAT_VERSION}; "
                "fit it again"
            )
        try:
            found = _from_document(document)
            found._try()
        # What a damaged estimator raises when it predicts is its own affair.
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise PredictionError(f"{path}: a damaged predictor ({reason}); fit it again") from error
        return found

    def _try(self) -> None:
        """Predict one pair, from values within the ranges whatever the models are called; ValueError if it fails."""
        index = pd.MultiIndex.from_tuples([("one", "other")], names=INDEX)
        known = self.ranges or dict.fromkeys(self.metrics, (0.0, 1.0))  # a prior without any measured merge
        middle = pd.DataFrame({name: [(low + high) / 2] for name, (low, high) in known.items()}, index=index)
        if not np.isfinite(self.predict(middle)["prediction"].to_numpy()).all():
            raise ValueError("its estimator does not predict a number")

    def _metrics_of(self, table: MetricTable | pd.DataFrame) -> pd.DataFrame:
        """Return the columns that the predictor was fitted to, in its order."""
        frame = table.to_pandas() if isinstance(table, MetricTable) else table
        if lacking := [name for name in self.metrics if name in MODEL_SCORES and name not in frame]:
            raise PredictionError(
                f"the table lacks model scores that the predictor needs: {', '.join(lacking)}; join "
                "mergekern.model_scores(models, source) (--models on the command line)"
            )
        if not self.metrics:
            return frame[[]].assign(no_metric=0.0)
        missing = [name for name in self.metrics if name not in frame]
        if missing:
            raise PredictionError(
                f"the table lacks {len(missing)} of the {len(self.metrics)} metrics that the predictor was fitted to: "
                f"{', '.join(missing)}; compute them, or fit on a table like this one"
            )
        return frame[list(self.metrics)]

    def _remarks(self, X: pd.DataFrame, measured_models: np.ndarray) -> list[str]:
        r = self.expected_r("both unseen")
        # No "-0.0".
        expected = "how well that can be predicted is not known" if r is None else f"expected r {round(r, 1) + 0.0:.1f}"
        if self.kind == "prior":
            expected = "predicted from accuracies of models and base by a fixed rule"
        by_measured_models = [
            f"no merge of either model has been measured: {expected}",
            "no merge of one of the models has been measured",
            "",
        ]
        values, names = X.to_numpy(), np.array(list(map(str, X.columns)))
        missing = ~np.isfinite(values)
        low, high = np.array(list(self.ranges.values())).T if self.ranges else (-np.inf, np.inf)
        outside = (values < low) | (values > high)
        if predictor_kind(self.kind).uses_model_scores:
            outside[:] = False  # The rule holds wherever accuracies are.
        remarks = [by_measured_models[count] for count in measured_models]
        for row in np.flatnonzero(outside.any(1)):
            found = f"outside of the training pairs in {', '.join(names[outside[row]])}"
            remarks[row] = "; ".join(filter(None, (remarks[row], found)))
        for row in np.flatnonzero(missing.any(1)):
            remarks[row] = f"not predicted: no value for {', '.join(names[missing[row]])}"
        return remarks


def _drivers(terms: pd.DataFrame, pairs: np.ndarray) -> list[str]:
    """Return the largest terms of each prediction in words, such as "mnist +0.041, subspace_overlap -0.02"."""
    effects_and_metrics = terms.drop(columns="mean").to_numpy()
    order = np.argsort(-np.abs(effects_and_metrics), axis=1, kind="stable")[:, :DRIVERS]
    described = []
    for pair, values, largest in zip(pairs.tolist(), effects_and_metrics, order, strict=True):
        names = [*pair, *terms.columns[3:]]
        described.append(", ".join(f"{names[place]} {values[place]:+.3g}" for place in largest if values[place]))
    return described


def _names_of(X: pd.DataFrame) -> np.ndarray:
    """Return the names of the two models of each row, (n, 2)."""
    pairs = find_pairs(X)
    if pairs is None:
        raise PredictionError(
            "the frame's index does not name the two models of each row; give a MetricTable, or rows of its to_pandas()"
        )
    return pairs


def _limits(target: str, y: np.ndarray) -> tuple[float, float] | None:
    """Return the limits of an accuracy, as a share or in percent; None for other targets."""
    if target != "accuracy" or (y < 0).any() or (y > 100).any():
        return None
    return (0.0, 1.0) if (y <= 1).all() else (0.0, 100.0)


def _series(rows: list[Any]) -> pd.Series:
    """Return a series over pairs from rows (model_a, model_b, value)."""
    columns = list(zip(*((a, b, value) for a, b, value in rows), strict=True)) or [(), (), ()]
    index = pd.MultiIndex.from_arrays(columns[:2], names=INDEX)
    return pd.Series(list(columns[2]), index=index, dtype=np.float64)


def _from_document(document: dict[str, Any]) -> MergePredictor:
    said = checked(PredictorDocument, document)
    measured = said.pairs()
    if not measured and not predictor_kind(said.kind).uses_model_scores:
        raise ValueError("measured: no pairs")
    if len(set(said.metrics)) < len(said.metrics) or (measured and list(said.ranges) != said.metrics):
        raise ValueError("ranges: not those of its metrics")
    if said.validation.keys() != REGIMES.keys():
        raise ValueError(f"validation: not of {' and '.join(map(repr, REGIMES))}")
    estimator = from_document(document["estimator"])
    if type(estimator) is not type(make_predictor(said.kind)):
        raise ValueError(f"estimator: a {type(estimator).__name__} is not what a predictor of kind {said.kind!r} is")
    return MergePredictor(
        kind=said.kind,
        method=said.method,
        target=said.target,
        metrics=tuple(said.metrics),
        estimator=estimator,
        ranges={name: (low, high) for name, (low, high) in said.ranges.items()},
        measured=_series(measured),
        intervals=ConformalIntervals(
            level=said.intervals.level,
            widths=dict(enumerate(said.intervals.widths)),
            held_out=dict(enumerate(said.intervals.held_out)),
            limits=None if said.intervals.limits is None else (said.intervals.limits[0], said.intervals.limits[1]),
            scale=ErrorScale() if said.intervals.scale is None else ErrorScale(**said.intervals.scale.model_dump()),
        ),
        validation=document["validation"],
        held_out=_series(said.held_out),
        dropped={(a, b): why for a, b, why in said.dropped},
        provenance=document["provenance"],
    )
