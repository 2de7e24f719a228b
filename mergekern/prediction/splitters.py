"""Splits of pairs into training and validation pairs, for any function of scikit-learn that takes `cv`.

A pair belongs to two tasks, so that scikit-learn's group splitters do not fit. The names of the pairs are `groups`, an
(n, 2) array; without it, the index of X, as `MetricTable.to_pandas` makes it. Tasks and pairs are sorted before
anything is held out or drawn: the order of the rows, and which model of a pair is named first, change no fold.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from sklearn.model_selection import BaseCrossValidator

from mergekern.errors import PredictionError
from mergekern.prediction.pairs import need_pairs, task_codes

ATTEMPTS = 100

# The tasks held out, and (n,) masks of the training and the validation pairs.
Masks: TypeAlias = tuple[list[int], Any, Any]


class Fold(NamedTuple):
    """One split: the names held out (none where pairs are drawn and not tasks), rows of training and validation."""

    held_out: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray


class PairSplitter(BaseCrossValidator):
    """Base of the splitters over pairs; `_masks` of a subclass yields the training and validation pairs of a fold."""

    __metadata_request__split = {"groups": True}  # noqa: RUF012 (how scikit-learn declares it)

    def folds(self, pairs: Any) -> Iterator[Fold]:
        """Yield the folds of (n, 2) names of pairs, with the names that each holds out.

        Raises:
            PredictionError: no fold has both pairs to train on and pairs to validate on.
        """
        names, codes = task_codes(need_pairs(None, pairs))
        empty = True
        for held_out, train, test in self._masks(len(names), codes):
            if train.any() and test.any():
                empty = False
                yield Fold(tuple(names[list(held_out)].tolist()), np.flatnonzero(train), np.flatnonzero(test))
        if empty:
            raise PredictionError(
                f"{self!r} leaves no pairs to train on, or none to validate on: {len(codes)} pairs of {len(names)} "
                "tasks are too few"
            )

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (train, test) arrays of row numbers; `groups` are the (n, 2) names of the pairs.

        Raises:
            PredictionError: the names are not known, or no fold has both pairs to train on and to validate on.
        """
        for fold in self.folds(need_pairs(X, groups)):
            yield fold.train, fold.test

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return sum(1 for _ in self.split(X, y, groups))

    def held_out(self, X: Any, y: Any = None, groups: Any = None) -> list[tuple[str, ...]]:
        """Return the names that each fold holds out, in the order of `split`."""
        return [fold.held_out for fold in self.folds(need_pairs(X, groups))]

    @abstractmethod
    def _masks(self, tasks: int, codes: np.ndarray) -> Iterator[Masks]:
        """Yield the tasks held out, and (n,) masks of the training and the validation pairs."""


class LeaveOneTaskOut(PairSplitter):
    """Leave-one-task-out (LOTO): the pairs with a task validate, those without it train.

    The partner of the held-out task is in the training pairs. This answers: how well will a new model merge with each
    known model? 20 tasks give 20 folds of 171 and 19 pairs.

    >>> pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    >>> [(fold.held_out, fold.train.tolist(), fold.test.tolist()) for fold in LeaveOneTaskOut().folds(pairs)]
    [(('a',), [2], [0, 1]), (('b',), [1], [0, 2]), (('c',), [0], [1, 2])]
    """

    def _masks(self, tasks: int, codes: np.ndarray) -> Iterator[Masks]:
        for task in range(tasks):
            test = (codes == task).any(1)
            yield [task], ~test, test


class LeaveTwoTasksOut(PairSplitter):
    """Splitter in which one pair validates and the pairs that share no model with it train: both models are unseen.

    20 tasks give 190 folds of 153 and 1 pair. One pair has no correlation, so that validation must pool the folds; see
    `PairValidation.pooled_r` for the bias in that.

    >>> pairs = [("a", "b"), ("c", "d"), ("c", "e")]
    >>> [(fold.held_out, fold.train.tolist(), fold.test.tolist()) for fold in LeaveTwoTasksOut().folds(pairs)]
    [(('a', 'b'), [1, 2], [0]), (('c', 'd'), [0], [1]), (('c', 'e'), [0], [2])]
    """

    def _masks(self, tasks: int, codes: np.ndarray) -> Iterator[Masks]:
        for pair in np.unique(codes, axis=0):
            shared = np.isin(codes, pair)
            yield pair.tolist(), ~shared.any(axis=1), (codes == pair).all(axis=1)


class LeaveTasksOut(PairSplitter):
    """Random groups of tasks held out: the pairs within the group validate, those within the others train.

    Both models of every validation pair are unseen, as in `LeaveTwoTasksOut`, and a fold has pairs enough for a
    correlation. Pairs between the two groups take no part. 10 of 20 tasks give folds of 45 and 45 pairs.

    Args:
        n: number of tasks to hold out; half of them if None.
        n_repeats: number of folds.
        random_state: decides the draws; folds depend on it, on the names and on nothing else.

    >>> pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    >>> [fold.held_out for fold in LeaveTasksOut(n_repeats=3, random_state=1).folds(pairs)]
    [('b', 'c'), ('b', 'd'), ('b', 'd')]
    """

    def __init__(self, n: int | None = None, n_repeats: int = 40, random_state: int = 0) -> None:
        self.n = n
        self.n_repeats = n_repeats
        self.random_state = random_state

    def _masks(self, tasks: int, codes: np.ndarray) -> Iterator[Masks]:
        n = tasks // 2 if self.n is None else self.n
        if not (isinstance(n, Integral) and 2 <= n <= tasks - 2):
            raise PredictionError(
                f"{self!r}: of {tasks} tasks from 2 to {tasks - 2} can be held out, so that both sides have pairs"
            )
        for random in _generators(self.random_state, self.n_repeats):
            # Where pairs are missing, a draw may have none on one side: it is drawn again.
            for _ in range(ATTEMPTS):
                held_out = np.sort(random.choice(tasks, n, replace=False))
                inside = np.isin(codes, held_out)
                train, test = ~inside.any(axis=1), inside.all(axis=1)
                if train.any() and test.any():
                    yield held_out.tolist(), train, test
                    break


class MeasuredPairs(PairSplitter):
    """Random pairs train and all others validate: a point of the learning curve in the number of merges measured.

    Args:
        n: number of pairs that are measured.
        n_repeats: number of folds.
        random_state: decides the draws; folds depend on it, on the names and on nothing else.

    >>> pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    >>> [fold.train.tolist() for fold in MeasuredPairs(2, n_repeats=3, random_state=0).folds(pairs)]
    [[1, 2], [1, 2], [0, 1]]
    """

    def __init__(self, n: int = 40, n_repeats: int = 40, random_state: int = 0) -> None:
        self.n = n
        self.n_repeats = n_repeats
        self.random_state = random_state

    def _masks(self, tasks: int, codes: np.ndarray) -> Iterator[Masks]:
        if not (isinstance(self.n, Integral) and 1 <= self.n < len(codes)):
            raise PredictionError(f"{self!r}: of {len(codes)} pairs from 1 to {len(codes) - 1} can be measured")
        order = np.lexsort(codes.T[::-1])
        for random in _generators(self.random_state, self.n_repeats):
            train = np.zeros(len(codes), dtype=bool)
            train[order[random.choice(len(codes), self.n, replace=False)]] = True
            yield [], train, ~train


class PairFolds(PairSplitter):
    """K-fold over single pairs: both models of nearly every validation pair keep other measured merges.

    It answers how well the merges are known that remain to be measured among models of which some merges are.

    Args:
        n_folds: number of folds; as many as pairs where there are fewer.
        random_state: decides the draws; folds depend on it, on the names and on nothing else.

    >>> pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    >>> sorted(fold.test.tolist() for fold in PairFolds().folds(pairs))
    [[0], [1], [2]]
    """

    def __init__(self, n_folds: int = 10, random_state: int = 0) -> None:
        self.n_folds = n_folds
        self.random_state = random_state

    def _masks(self, tasks: int, codes: np.ndarray) -> Iterator[Masks]:
        if not (isinstance(self.n_folds, Integral) and self.n_folds >= 2):
            raise PredictionError(f"{self!r}: two folds are the fewest")
        order = np.lexsort(codes.T[::-1])
        shuffled = order[np.random.default_rng(self.random_state).permutation(len(codes))]
        for part in np.array_split(shuffled, max(min(self.n_folds, len(codes)), 1)):
            test = np.isin(np.arange(len(codes)), part)
            yield [], ~test, test


def _generators(random_state: int, n_repeats: int) -> Iterator[np.random.Generator]:
    """Yield one generator a fold, so that a fold does not depend on those before it."""
    return (np.random.default_rng([random_state, repeat]) for repeat in range(n_repeats))
