"""Pairs: the names of the two models of each row, and the rows that have all values."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError
from mergekern.tables.frames import INDEX


def find_pairs(X: Any, pairs: Any = None) -> np.ndarray | None:
    """Return the names of the two models of each row; None if they are not known.

    Args:
        X: (n, metrics) values; a DataFrame names the pairs in a two-level index, as `MetricTable.to_pandas` makes it.
        pairs: (n, 2) names: an array, a list of tuples, or a two-level index; the index of X if None.

    Returns:
        (n, 2) array of str.

    Raises:
        PredictionError: not one pair of names for each row, or a model with itself.

    >>> index = pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")], names=["model_a", "model_b"])
    >>> find_pairs(pd.DataFrame({"stable_rank": [1.0, 2.0]}, index=index)).tolist()
    [['a', 'b'], ['a', 'c']]
    >>> find_pairs(np.ones((2, 1))) is None
    True
    """
    if pairs is None:
        index = getattr(X, "index", None)
        if not (isinstance(index, pd.MultiIndex) and index.nlevels == 2):
            return None
        pairs = index
    if isinstance(pairs, pd.MultiIndex):
        pairs = pairs.to_frame(index=False)
    elif not isinstance(pairs, (np.ndarray, pd.DataFrame)):
        pairs = [tuple(pair) for pair in pairs]
    names = np.asarray(pairs, dtype=object)
    if names.ndim != 2 or names.shape[1] != 2:
        raise PredictionError(f"pairs must be (n, 2) names, one row for each pair, not of shape {names.shape}")
    if X is not None and len(names) != len(X):
        raise PredictionError(f"{len(names)} pairs were given for {len(X)} rows of metrics")
    names = names.astype(str)
    same = names[:, 0] == names[:, 1]
    if same.any():
        raise PredictionError(f"a pair is of two models, not {str(names[same][0, 0])!r} with itself")
    return names


class UnnamedPairsWarning(Warning):
    """Warning that a predictor does not know which models each pair is of, and so falls back on a simpler one."""


def names_to_fit(X: Any, y: Any, pairs: Any, otherwise: str) -> np.ndarray | None:
    """Return the names as `find_pairs` does, also from the index of y; warn if they are not known.

    In a scikit-learn Pipeline, a step that returns an array takes away the index of X; that of y remains.

    Args:
        otherwise: what the predictor does without the names, for the warning.
    """
    names = find_pairs(X, pairs)
    if names is None:
        names = find_pairs(y)
    if names is None:
        warnings.warn(
            f"the models of the pairs are not known, so that {otherwise}; give pairs= or a frame with their names as "
            'its index (in a Pipeline, set_output(transform="pandas") keeps it)',
            UnnamedPairsWarning,
            stacklevel=3,
        )
    return names


def names_to_predict(X: Any, pairs: Any, fitted_with_names: bool) -> np.ndarray | None:
    """Return the names as `find_pairs` does.

    Raises:
        PredictionError: the predictor was fitted to named models, and the names are not known here.
    """
    names = find_pairs(X, pairs)
    if names is None and fitted_with_names:
        raise PredictionError(
            "this predictor has effects of models, and which models each row is a pair of is not known: give pairs= "
            'or a frame with their names as its index (in a Pipeline, set_output(transform="pandas") keeps it)'
        )
    return names


def need_pairs(X: Any, pairs: Any = None) -> np.ndarray:
    """Return the names as `find_pairs` does; raise PredictionError if they are not known.

    >>> need_pairs(None, [("a", "b")]).tolist()
    [['a', 'b']]
    """
    names = find_pairs(X, pairs)
    if names is None:
        raise PredictionError(
            "which models each row is a pair of is not known: give pairs= (groups= in scikit-learn's functions), "
            "an (n, 2) array of names, or X as MetricTable.to_pandas() returns it"
        )
    return names


def as_target(y: Any, n: int) -> np.ndarray:
    """Return y as (n,) float64; raise PredictionError if it is not one number, or NaN, for each of n pairs.

    >>> as_target([1, None], 2).tolist()
    [1.0, nan]
    """
    try:
        target = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PredictionError(f"y must be numbers, NaN where there is none ({error})") from error
    if target.shape != (n,):
        raise PredictionError(f"y must be one value for each of {n} pairs, not of shape {target.shape}")
    return target


def check_once(pairs: np.ndarray) -> None:
    """Raise PredictionError if a pair is listed twice, in either order: both sides of a fold could have it."""
    names, codes = task_codes(pairs)
    distinct, counts = np.unique(codes, axis=0, return_counts=True)
    if (counts > 1).any():
        first, second = names[distinct[counts > 1][0]]
        raise PredictionError(
            f"{int((counts > 1).sum())} pairs are listed more than once, such as {first} and {second}"
        )


def check_aligned(X: Any, y: Any) -> None:
    """Raise PredictionError if X and y both name their pairs, but not the same pairs in the same order."""
    indexed = isinstance(y, pd.Series) and isinstance(X, pd.DataFrame) and y.index.nlevels == X.index.nlevels == 2
    if indexed and not y.index.equals(X.index):
        raise PredictionError(
            "X and y are of different pairs, or in a different order: align_scores(y, X.index, models) aligns them"
        )


def pair_key(pair: Any) -> frozenset[str]:
    """Return a key of the pair that does not depend on which model is named first.

    >>> pair_key(("a", "b")) == pair_key(("b", "a"))
    True
    """
    return frozenset(map(str, pair))


def task_codes(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the T sorted names, and (n, 2) int64 positions of each pair's models in them, the smaller first.

    >>> names, codes = task_codes(np.array([["b", "a"], ["b", "c"]]))
    >>> names.tolist(), codes.tolist()
    (['a', 'b', 'c'], [[0, 1], [1, 2]])
    """
    names, codes = np.unique(pairs, return_inverse=True)
    return names, np.sort(codes.reshape(pairs.shape), axis=1)


def as_frame(X: Any) -> pd.DataFrame:
    """Return X if it is a frame, else a frame of its columns, named x0, x1, ….

    >>> as_frame([[1.0, 2.0]]).columns.tolist()
    ['x0', 'x1']
    """
    return X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X)).add_prefix("x")


class IncompletePairsWarning(UserWarning):
    """Warning that pairs or whole metrics take no part because values are missing; the message names them."""


@dataclass(frozen=True)
class CompletePairs:
    """Pairs that have a value for the target and for every metric.

    Attributes:
        X: (n, metrics) frame with the pairs as its index.
        y: (n,) float64.
        pairs: (n, 2) names.
        dropped: the reason for each pair that was left out, by its two names.
        dropped_metrics: metrics without a value for any pair.
    """

    X: pd.DataFrame
    y: np.ndarray
    pairs: np.ndarray
    dropped: dict[tuple[str, str], str]
    dropped_metrics: tuple[str, ...]


def complete_pairs(X: Any, y: Any, pairs: Any = None) -> CompletePairs:
    """Return the pairs that have all values, and warn of the others by name.

    A metric without a value for any pair is left out first, since otherwise no pair would remain.

    Args:
        X: (n, metrics) values; a DataFrame keeps the names of its columns.
        y: (n,) target. A Series must have the index of X, if both have one of pairs.
        pairs: (n, 2) names; the index of X if None.

    Raises:
        PredictionError: the shapes or indices do not fit, values are no numbers, a pair or a metric's name is given
            twice, or no pair is complete.

    >>> index = [("a", "b"), ("a", "c"), ("b", "c")]
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     complete = complete_pairs(np.array([[1.0], [np.nan], [3.0]]), [0.1, 0.2, 0.3], index)
    >>> complete.dropped
    {('a', 'c'): 'no value for x0'}
    """
    names = need_pairs(X, pairs)
    check_once(names)
    check_aligned(X, y)
    target = as_target(y, len(names))
    index = pd.MultiIndex.from_arrays([names[:, 0], names[:, 1]], names=INDEX)
    frame = as_frame(X)
    if not frame.columns.is_unique:
        twice = dict.fromkeys(map(str, frame.columns[frame.columns.duplicated()]))
        raise PredictionError(f"each metric must have a name of its own; more than one is named {', '.join(twice)}")
    try:
        frame = frame.set_axis(index, axis=0).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise PredictionError(f"metrics must be numbers, NaN where there is none ({error})") from error
    missing = pd.DataFrame(~np.isfinite(frame.to_numpy()), index=index, columns=frame.columns)
    missing["the target"] = ~np.isfinite(target)
    empty = missing.columns[:-1][missing.iloc[:, :-1].all()].tolist() if len(missing) else []
    missing = missing.drop(columns=empty)
    incomplete = missing.any(axis=1).to_numpy()
    dropped = {
        (first, second): f"no value for {', '.join(map(str, missing.columns[row]))}"
        for (first, second), row in zip(names[incomplete].tolist(), missing.to_numpy()[incomplete], strict=True)
    }
    if incomplete.all():
        raise PredictionError(f"none of the {len(names)} pairs has a value for the target and for every metric")
    if empty:
        warnings.warn(f"metrics without any value left out: {', '.join(map(str, empty))}", IncompletePairsWarning, 3)
    if dropped:
        listed = "; ".join(f"{first} and {second} ({why})" for (first, second), why in dropped.items())
        warnings.warn(f"{len(dropped)} of {len(names)} pairs left out: {listed}", IncompletePairsWarning, 3)
    return CompletePairs(
        frame.loc[~incomplete].drop(columns=empty), target[~incomplete], names[~incomplete], dropped, tuple(empty)
    )
