"""A merge said element by element: the shares that are trimmed and dropped, and how what is left becomes one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import xxhash

from mergekern.kernels.combine import Consensus, Rule

Scope = Literal["tensor", "model"]
Rescale = Literal["density", "norm", "none"]
# A number for all models, or one for each.
PerModel = float | tuple[float, ...]
T = TypeVar("T")


def each(value: PerModel, function: Callable[[float], T]) -> T | tuple[T, ...]:
    """Return what a function makes of a number, or of the number of each model.

    >>> each(2.0, abs), each((1.0, -2.0), abs)
    (2.0, (1.0, 2.0))
    """
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


@dataclass(frozen=True)
class Trim:
    """Trimming by magnitude: the share that is kept, or the share that is dropped.

    Of d values, `keep` keeps the ⌊keep·d⌋ largest, at least one, and those that equal the last of them; `drop` drops
    the ⌊drop·d⌋ smallest, and those that equal the last of them. With `outliers` the ⌊outliers·d⌋ largest are dropped
    first, or as many of them as leave room for those that are kept.
    """

    keep: float | None = None
    drop: float = 0.0
    outliers: float = 0.0

    def rank(self, count: int) -> int | None:
        """Return k, where the k-th largest magnitude is the threshold; None where everything is kept."""
        if self.keep is not None:
            return self._dropped_above(count) + self._kept(count)
        dropped = int(self.drop * count)
        return count - dropped + 1 if dropped else None

    def limit_rank(self, count: int) -> int | None:
        """Return k, where the k-th largest magnitude is the largest that is kept; None where none is too large."""
        dropped = self._dropped_above(count)
        return dropped + 1 if dropped else None

    def _kept(self, count: int) -> int:
        return max(1, int((self.keep or 0.0) * count))

    def _dropped_above(self, count: int) -> int:
        return max(0, min(int(self.outliers * count), count - self._kept(count)))

    def threshold(self, kth: float) -> float:
        """Return the least magnitude kept, given the k-th largest."""
        return kth if self.keep is not None else float(np.nextafter(kth, np.inf))


@dataclass(frozen=True)
class Elementwise:
    """A merge, element by element: trim or drop, agree, rescale.

    Attributes:
        consensus: how N kept values become one; `mergekern.kernels.combine` defines each.
        factor: multiplies the consensus.
        trim: by magnitude, of all models or of each; None trims nothing.
        scope: whether thresholds and signs are those of each tensor alone or of the whole model.
        drop: probability that the random masks drop an element, of all models or of each; 0 drops nothing.
        seed: seed of the random masks.
        share: in "agree", a model claims an element that exceeds this share of what the others add to it.
        needed: in "agree", how many models must claim an element; None for two, or one where a pair is merged.
        multipliers: multiply the task vectors, beside their weights.
        keeps_norm: whether what is left of each task vector is brought back to its sum of magnitudes.
        by_count: whether each model has one vote for the sign.
    """

    consensus: Consensus
    factor: float = 1.0
    trim: Trim | tuple[Trim, ...] | None = None
    scope: Scope = "tensor"
    drop: PerModel = 0.0
    seed: int = 0
    share: float = 0.0
    needed: int | None = 1
    multipliers: tuple[float, ...] | None = None
    keeps_norm: bool = False
    by_count: bool = False

    def trims(self, models: int) -> list[Trim]:
        """Return how each model is trimmed; empty where nothing is."""
        if self.trim is None:
            return []
        return list(self.trim) if isinstance(self.trim, tuple) else [self.trim] * models

    @property
    def drops(self) -> bool:
        """Whether random masks drop elements."""
        return self.drop > 0 if isinstance(self.drop, float | int) else max(self.drop) > 0

    def rule(
        self, weights: Sequence[float], thresholds: Sequence[float] | None, keys: Sequence[int], majority: int = 1,
        limits: Sequence[float] | None = None, multipliers: Sequence[float] | None = None,
    ) -> Rule:  # fmt: skip
        """Return the rule of one tensor, with every number known.

        Args:
            weights: one for each model.
            thresholds: the least magnitude kept, one for each model; None trims nothing.
            keys: keys of the random masks, one for each model.
            majority: +1 or −1, the sign of elements whose votes sum to zero.
            limits: the largest magnitude kept, one for each model; None keeps all.
            multipliers: multiply the task vectors beside their weights; by default those of the rule.
        """
        needed = self.needed if self.needed is not None else (1 if len(weights) == 2 else 2)
        multipliers = self.multipliers if multipliers is None else multipliers
        weights, divisors = tuple(weights), None
        if multipliers is not None:
            weights, divisors = tuple(w * m for w, m in zip(weights, multipliers, strict=True)), weights
        return Rule(
            self.consensus, weights, self.factor, None if thresholds is None else tuple(thresholds),
            tuple(keys) if self.drops else None, self.drop, majority, self.share, needed,
            None if limits is None else tuple(limits), divisors, self.by_count,
        )  # fmt: skip


def mask_key(seed: int, name: str, content: str) -> int:
    """Return the key of a random mask: of the seed, the tensor's name, and the content hash of the model's tensor.

    Keyed by content, a mask belongs to a model wherever it stands in the list and whatever it is called; two models
    that are equal in a tensor get the same mask.
    """
    return xxhash.xxh3_64_intdigest(f"{seed}\0{name}\0{content}".encode())
