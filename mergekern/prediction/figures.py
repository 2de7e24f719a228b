"""The figures that a fitted predictor is shown with: correlations, errors and regrets on held-out pairs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError
from mergekern.metrics import MODEL_SCORES
from mergekern.prediction.pairs import CompletePairs, IncompletePairsWarning, complete_pairs, pair_key
from mergekern.prediction.predictors import PredictorKind
from mergekern.prediction.prior import OWN, PRIOR_COLUMNS
from mergekern.prediction.probe_sum import own_columns, probe_weights
from mergekern.prediction.scores import align_scores
from mergekern.prediction.validation import cross_validate_pairs
from mergekern.tables.metric_table import MetricTable

FEWEST_PAIRS = 3
COSINE = "task_vector_cosine_similarity"


def training_pairs(table: MetricTable, scores: pd.Series, method: str, kind: PredictorKind) -> CompletePairs:
    """Return the pairs with a score and with a value in every column that the predictor reads.

    Raises:
        PredictionError: the table lacks model scores, or too few pairs are complete: 3 are the fewest, 0 for the prior.
    """
    frame = table.to_pandas()
    target = align_scores(scores, frame.index, table.models)
    scored = target.notna()
    fewest = 0 if kind.uses_model_scores else FEWEST_PAIRS
    frame = read_columns(frame, kind, method)
    if scored.sum() < fewest:
        raise PredictionError(f"{int(scored.sum())} scores of {method} are too few: at least {fewest}")
    if not scored.any():
        return CompletePairs(frame[scored], np.zeros(0), np.empty((0, 2), dtype=str), {}, ())
    with warnings.catch_warnings():
        # `MergePredictor.dropped` names the pairs that are left out, so that no warning is needed.
        warnings.simplefilter("ignore", IncompletePairsWarning)
        data = complete_pairs(frame[scored], target[scored])
    if len(data.y) < fewest:
        raise PredictionError(
            f"{len(data.y)} of {int(scored.sum())} pairs with a score have every metric: at least {fewest} are needed"
        )
    return data


def read_columns(frame: pd.DataFrame, kind: PredictorKind, method: str | None = None) -> pd.DataFrame:
    """Return the columns of a table's frame that a predictor reads: metrics, model scores, probes, or zeros.

    Raises:
        PredictionError: it reads model scores or probes by the method, and there are none.
    """
    if kind.uses_probes:
        columns = list(probe_weights(map(str, frame), method, kind.uses_metrics))
        if not any("[" in name for name in columns):
            raise PredictionError(
                f"the table has no probes by {method}: join mergekern.merge_probes(..., methods={method!r}) "
                f"(--merge-probes {method} of mergekern metrics)"
            )
        return frame[own_columns(map(str, frame), method)] if kind.uses_metrics else frame[columns]
    if kind.uses_model_scores:
        if OWN not in frame:
            raise PredictionError(
                f"the table has no {OWN}: join mergekern.model_scores(models, source) (--models on the command line)"
            )
        # Accuracies of the base that are all unknown are no column.
        return frame[[name for name in PRIOR_COLUMNS if name in frame and frame[name].notna().any()]]
    if kind.uses_metrics:
        return frame[[name for name in frame if name not in MODEL_SCORES]]
    return frame[[]].assign(no_metric=0.0)


def validate(
    estimator: Any, X: pd.DataFrame, y: np.ndarray, splitter: Any, beside: pd.DataFrame
) -> tuple[dict[str, Any], pd.Series]:
    """Return the figures of a cross-validation, or the reason why there are none, and the held-out predictions.

    The figures are val_r_mean and val_r_sd (over the r of each fold), pooled_r, r_within_folds, rmse, rmse_of_mean (of
    predicting the mean of the training pairs), val_r_mean, rmse and the others of the additive baseline with the prefix
    additive_, and regrets: for each way to choose, the regret of the best pair and of the best partner.

    Args:
        beside: columns of the same pairs that pairs can be chosen by without any fit.
    """
    try:
        found = cross_validate_pairs(estimator, X, y, splitter=splitter, n_resamples=0)
    except PredictionError as error:
        return {"splitter": repr(splitter), "why_not": str(error)}, pd.Series(dtype=np.float64)
    figures: dict[str, Any] = {"splitter": repr(splitter), "folds": len(found.folds)}
    figures["pairs_of_a_fold"] = float(found.folds["n_val"].median())
    summary = found.summary
    for name, row in {"": summary.loc["estimator"], "additive_": summary.loc["additive"]}.items():
        for column in ("val_r_mean", "val_r_sd", "pooled_r", "r_within_folds", "rmse"):
            figures[name + column] = _finite(row[column])
    figures["rmse_of_mean"] = _finite(summary.loc["constant", "rmse"])
    predicted = found.predictions
    by = {"predictor": predicted["prediction"].to_numpy()}
    values = {pair_key(pair): row for pair, row in zip(beside.index, range(len(beside)), strict=True)}
    rows = [values[pair_key(pair)] for pair in zip(predicted["model_a"], predicted["model_b"], strict=True)]
    for name, column in {"own accuracy, no fit": OWN, "cosine": COSINE}.items():
        if column in beside and beside[column].notna().all():
            by[name] = beside[column].to_numpy()[rows]
    figures["regrets"] = {name: choice_regrets(predicted, order) for name, order in by.items()}
    figures["regrets"]["random"] = random_regrets(predicted)
    figures["regrets"]["oracle"] = choice_regrets(predicted, predicted["y"].to_numpy())
    index = pd.MultiIndex.from_frame(predicted[["model_a", "model_b"]])
    return figures, pd.Series(predicted["prediction"].to_numpy(), index=index)


def choice_regrets(held_out: pd.DataFrame, by: np.ndarray) -> dict[str, float | None]:
    """Return what choosing by a value costs, in the units of y: the best score at hand less that of the chosen pair.

    Args:
        held_out: fold, model_a, model_b and y of each held-out pair.
        by: (n,) values; the pair with the largest is chosen.

    Returns:
        The mean regret of the "best pair" of a fold, and of the "best partner" of each model of a fold that has two or
        more pairs there; None where there is no choice.

    >>> pairs = pd.DataFrame({"fold": 0, "model_a": ["a", "a"], "model_b": ["b", "c"], "y": [0.9, 0.7]})
    >>> round(float(choice_regrets(pairs, np.array([0.1, 0.2]))["best pair"]), 2)
    0.2
    """
    return _regrets(held_out, lambda rows, y: y[np.argmax(by[rows])])


def random_regrets(held_out: pd.DataFrame) -> dict[str, float | None]:
    """Return the expected regrets of choosing at random; see `choice_regrets`."""
    return _regrets(held_out, lambda rows, y: y.mean())


def _regrets(held_out: pd.DataFrame, chosen: Any) -> dict[str, float | None]:
    y, folds = held_out["y"].to_numpy(), held_out["fold"].to_numpy()
    models = np.unique(held_out[["model_a", "model_b"]].to_numpy().astype(str), return_inverse=True)[1].reshape(-1, 2)
    pair_regrets, partner_regrets = [], []
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        if len(rows) > 1:
            pair_regrets.append(y[rows].max() - chosen(rows, y[rows]))
        for model in np.unique(models[rows]):
            of_model = rows[(models[rows] == model).any(1)]
            if len(of_model) > 1:
                partner_regrets.append(y[of_model].max() - chosen(of_model, y[of_model]))
    means = (np.mean(regrets) if regrets else None for regrets in (pair_regrets, partner_regrets))
    return dict(zip(("best pair", "best partner"), means, strict=True))


def _finite(value: Any) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None
