"""How far measuring is, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Measuring:
    """How far measuring is; given to the `progress` callable before each model or merge, and at the end.

    Attributes:
        what: what is measured now, such as "ties of cars+sun"; "" at the end.
        done, total: numbers of models and merges.
        seconds: time since the beginning.
        seconds_left: time that the others will take at the mean pace of those before, merging and evaluating each at
            its own; None until one of them was timed.
    """

    what: str
    done: int
    total: int
    seconds: float
    seconds_left: float | None


class Pace:
    """Times merging and evaluating, each by itself: many merges are made at a time, and then evaluated one by one.

    Args:
        to_make: number of models and merges that are made.
        to_evaluate: number of those that are evaluated.
    """

    def __init__(self, to_make: int, to_evaluate: int) -> None:
        self._start = time.perf_counter()
        self._to_make, self._to_evaluate = to_make, to_evaluate
        self._made, self._evaluated = 0, 0
        self._making_seconds, self._evaluating_seconds = 0.0, 0.0

    @contextmanager
    def making(self, count: int) -> Iterator[None]:
        """Time the making of some models or merges."""
        start = time.perf_counter()
        yield
        self._making_seconds += time.perf_counter() - start
        self._made += count

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time the evaluation of one."""
        start = time.perf_counter()
        yield
        self._evaluating_seconds += time.perf_counter() - start
        self._evaluated += 1

    def now(self, what: str) -> Measuring:
        """Return how far it is."""
        left = None
        if self._evaluated:
            left = self._evaluating_seconds / self._evaluated * (self._to_evaluate - self._evaluated)
            left += self._making_seconds / max(self._made, 1) * (self._to_make - self._made)
        return Measuring(what, self._evaluated, self._to_evaluate, time.perf_counter() - self._start, left)
