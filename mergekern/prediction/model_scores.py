"""model_scores: what is known of each model without any merge, from a list of models, as columns of pairs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError, did_you_mean
from mergekern.metrics import MODEL_SCORES
from mergekern.metrics.model_scores import KnownScores
from mergekern.tables.frames import INDEX

ACCURACIES = ("own_accuracy", "base_accuracy")
# A path of a CSV file, a frame with the same columns, or model -> {"own_accuracy": …, "base_accuracy": …}.
ModelList: TypeAlias = str | os.PathLike[str] | pd.DataFrame | Mapping[str, Mapping[str, float]]


def model_scores(models: Iterable[str], source: ModelList) -> pd.DataFrame:
    """Return the model scores of all pairs: means and minima of the models' own accuracy and of the base's.

    The source has a row for each model, with the columns

    - model: its name;
    - own_accuracy: accuracy of the model on its own task, from 0 to 1;
    - base_accuracy: accuracy of the base on this task, with the model's head or prompts, from 0 to 1.

    An empty cell is an accuracy that is not known, and NaN for the model's pairs. Other columns and models are ignored.

    Args:
        models: names of the T models, such as `MetricTable.models`.
        source: path of a CSV file, a frame, or a mapping from models to their accuracies.

    Returns:
        T(T − 1)/2 rows with the index (model_a, model_b), in the order of `MetricTable.to_pandas()`; float64 columns
        own_accuracy_mean, own_accuracy_min, base_accuracy_mean, base_accuracy_min of `mergekern.MODEL_SCORES`; the
        others are losses, which `merge_probes(model_scores=True)` measures.
        `MetricTable.join` adds them to a table.

    Raises:
        PredictionError: the file cannot be read, lacks a column or a model, has a model twice, or an accuracy that is
            not a number from 0 to 1.

    >>> known = {"cars": {"own_accuracy": 0.86, "base_accuracy": 0.65}, "sun": {"own_accuracy": 0.79}}
    >>> model_scores(["cars", "sun"], known)["own_accuracy_mean"].tolist()
    [0.825]
    """
    names = [str(name) for name in models]
    where, listed = _read(source)
    lacking = [name for name in names if name not in listed.index]
    if lacking:
        raise PredictionError(
            f"{where}: no row of {', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}"
            f"{did_you_mean(lacking[0], listed.index)}; give each model a row, with empty cells for what is not known"
        )
    own, base = (listed.loc[names, column].to_numpy(dtype=np.float64) for column in ACCURACIES)
    unknown = np.full(len(names), np.nan)
    known = KnownScores(own, base, unknown, unknown)
    index = pd.MultiIndex.from_tuples(list(combinations(names, 2)), names=INDEX)
    rows = np.triu_indices(len(names), 1)
    accuracies = {name: score for name, score in MODEL_SCORES.items() if "accuracy" in name}
    return pd.DataFrame({name: score.function(known)[rows] for name, score in accuracies.items()}, index=index)


def _read(source: ModelList) -> tuple[str, pd.DataFrame]:
    """Return what to call the source in errors, and its checked accuracies with the models as the index."""
    where = "the list of models"
    if isinstance(source, pd.DataFrame):
        frame = source if "model" in source else source.rename_axis("model").reset_index()
    elif isinstance(source, Mapping):
        frame = pd.DataFrame([{"model": name, **accuracies} for name, accuracies in source.items()])
    else:
        where = str(Path(source))
        try:
            frame = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
        except (OSError, ValueError) as error:
            raise PredictionError(f"{where}: models cannot be read ({error})") from error
    columns = [str(column) for column in frame]
    for needed in ("model", "own_accuracy"):
        if needed not in columns:
            raise PredictionError(
                f"{where}: no column {needed!r}{did_you_mean(needed, columns)}; models are listed with the columns "
                f"model,own_accuracy,base_accuracy, this has {','.join(columns) or 'none'}"
            )
    names = frame["model"].astype(str).str.strip()
    if names.duplicated().any():
        raise PredictionError(f"{where}: {names[names.duplicated()].iloc[0]} is listed twice; keep one row of a model")
    listed = pd.DataFrame(index=pd.Index(names))
    for column in ACCURACIES:
        cells = frame[column] if column in columns else [None] * len(frame)
        listed[column] = [_accuracy(where, name, column, cell) for name, cell in zip(names, cells, strict=True)]
    return where, listed


def _accuracy(where: str, model: str, column: str, cell: Any) -> float:
    """Return an accuracy, NaN for an empty cell."""
    if cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in ("", "nan")):
        return float("nan")
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= 1:
        raise PredictionError(f"{where}: {column} of {model} is {cell!r}, not a share from 0 to 1")
    return value
