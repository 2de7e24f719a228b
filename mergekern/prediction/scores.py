"""Measured scores of merged pairs: read from the study's CSV format, and aligned with a table's pairs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError, did_you_mean
from mergekern.prediction.pairs import pair_key
from mergekern.tables.cells import from_cell

COLUMNS = ("method", "model_a", "model_b")
DEFAULT_TARGET = "accuracy"


def read_scores(path: str | Path, method: str, target: str = DEFAULT_TARGET) -> pd.Series:
    """Read the measured scores of pairs merged by one method.

    The file has a header and the columns method, model_a, model_b and at least one score, for example accuracy. An
    empty score is a merge that was not measured. Which model of a pair is named first makes no difference.

    Args:
        path: a CSV file.
        method: name of the merge method whose rows are read.
        target: name of the column that has the scores.

    Returns:
        Series of float64 named `target`, with the index (model_a, model_b) in the order of the file; NaN where empty.

    Raises:
        PredictionError: the file or a column is missing, there is no row of this method, a pair is listed twice, or a
            score is not a finite number; with the line.
    """
    path = Path(path)
    rows = _read_rows(path, target)
    chosen = [(line, row) for line, row in rows if row["method"] == method]
    if not chosen:
        methods = dict.fromkeys(row["method"] for _, row in rows)
        there = ", ".join(methods) or "no rows at all"
        raise PredictionError(f"{path}: no scores of method {method!r}{did_you_mean(method, methods)}; it has {there}")
    seen: dict[frozenset[str], int] = {}
    for line, row in chosen:
        pair = pair_key((row["model_a"], row["model_b"]))
        if len(pair) == 1:
            raise PredictionError(f"{path}, line {line}: a pair is of two models, not {row['model_a']!r} with itself")
        if pair in seen:
            raise PredictionError(
                f"{path}, line {line}: {row['model_a']} and {row['model_b']} merged by {method} are also in line "
                f"{seen[pair]}; keep one of them"
            )
        seen[pair] = line
    index = pd.MultiIndex.from_tuples([(row["model_a"], row["model_b"]) for _, row in chosen], names=COLUMNS[1:])
    return pd.Series([_number(path, line, row[target]) for line, row in chosen], index=index, name=target)


def _read_rows(path: Path, target: str) -> list[tuple[int, dict[str, str]]]:
    """Return (line, row) of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames = [from_cell(name) for name in reader.fieldnames or []]
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PredictionError(f"{path}: scores cannot be read ({error})") from error
    missing = [name for name in (*COLUMNS, target) if name not in columns]
    if missing:
        wanted = ",".join((*COLUMNS, target))
        raise PredictionError(
            f"{path}: no column {' or '.join(map(repr, missing))}{did_you_mean(missing[0], columns)}; scores are a CSV "
            f"file with the header {wanted}, this one has {','.join(columns) or 'none'}"
        )
    if len(set(columns)) < len(columns):
        twice = next(name for place, name in enumerate(columns) if name in columns[:place])
        raise PredictionError(f"{path}: two columns are named {twice!r}; keep one of them")
    for line, row in rows:
        if None in row or None in row.values():
            raise PredictionError(f"{path}, line {line}: not as many values as the header has columns ({len(columns)})")
        row |= {name: from_cell(row[name]) for name in COLUMNS}
        if lacking := [name for name in COLUMNS[1:] if not row[name]]:
            raise PredictionError(f"{path}, line {line}: {lacking[0]} is empty")
    return rows


def _number(path: Path, line: int, text: str) -> float:
    if not text.strip():
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not math.isfinite(value) or "_" in text:
        raise PredictionError(f"{path}, line {line}: {text!r} is not a score; leave empty what was not measured")
    return value


def align_scores(scores: pd.Series, pairs: pd.Index, models: Iterable[str]) -> pd.Series:
    """Return the scores in the order of a table's pairs, NaN for pairs without one.

    Args:
        scores: with an index of pairs, either model first.
        pairs: pairs of the table, as `MetricTable.to_pandas().index`.
        models: names of the table's models.

    Raises:
        PredictionError: a score of a model that is not in the table, or two scores of one pair.

    >>> pair = pd.MultiIndex.from_tuples([("b", "a")])
    >>> pairs = pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])
    >>> align_scores(pd.Series([0.9], index=pair), pairs, "abc").tolist()
    [0.9, nan]
    """
    known = [str(name) for name in models]
    unknown = sorted({name for pair in scores.index for name in pair_key(pair)} - set(known))
    if unknown:
        raise PredictionError(
            f"scores of models that are not in the table: {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}"
            f"{did_you_mean(unknown[0], known)}; it has {', '.join(known[:8])}{' …' if len(known) > 8 else ''}"
        )
    by_pair: dict[frozenset[str], float] = {}
    for pair, value in scores.items():
        key = pair_key(pair)
        if key in by_pair:
            raise PredictionError(f"two scores of the pair {' and '.join(sorted(key))}; keep one of them")
        by_pair[key] = value
    values = [by_pair.get(pair_key(pair), np.nan) for pair in pairs]
    return pd.Series(values, index=pairs, name=scores.name, dtype=np.float64)


def read_methods(path: str | Path, target: str = DEFAULT_TARGET) -> list[str]:
    """Return the merge methods that a file of scores has rows of, in its order; raises as `read_scores` does."""
    return list(dict.fromkeys(row["method"] for _, row in _read_rows(Path(path), target)))
