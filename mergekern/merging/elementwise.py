"""A merge said element by element: the shares that are trimmed and dropped, and how what is left becomes one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash

from mergekern.kernels.combine import Consensus, Rule

Scope = Literal["tensor", "model"]


@dataclass(frozen=True)
class Trim:
    """Trimming by magnitude: the share that is kept, or the share that is dropped.

    Of d values, `keep` keeps the ⌊keep·d⌋ largest, at least one, and those that equal the last of them; `drop` drops
    the ⌊drop·d⌋ smallest, and those that equal the last of them.
    """

    keep: float | None = None
    drop: float = 0.0

    def rank(self, count: int) -> int | None:
        """Return k, where the k-th largest magnitude is the threshold; None where everything is kept."""
        if self.keep is not None:
            return max(1, int(self.keep * count))
        dropped = int(self.drop * count)
        return count - dropped + 1 if dropped else None

    def threshold(self, kth: float) -> float:
        """Return the least magnitude kept, given the k-th largest."""
        return kth if self.keep is not None else float(np.nextafter(kth, np.inf))


@dataclass(frozen=True)
class Elementwise:
    """A merge, element by element: trim or drop, agree, rescale.

    Attributes:
        consensus: how N kept values become one; `mergekern.kernels.combine` defines each.
        factor: multiplies the consensus.
        trim: by magnitude; None trims nothing.
        scope: whether thresholds and signs are those of each tensor alone or of the whole model.
        drop: probability that the random masks drop an element; 0 drops nothing.
        seed: seed of the random masks.
        share: in "agree", a model claims an element that exceeds this share of what the others add to it.
        needed: in "agree", how many models must claim an element; None for two, or one where a pair is merged.
    """

    consensus: Consensus
    factor: float = 1.0
    trim: Trim | None = None
    scope: Scope = "tensor"
    drop: float = 0.0
    seed: int = 0
    share: float = 0.0
    needed: int | None = 1

    def rule(
        self, weights: Sequence[float], thresholds: Sequence[float] | None, keys: Sequence[int], majority: int = 1
    ) -> Rule:
        """Return the rule of one tensor, with every number known.

        Args:
            weights: one for each model.
            thresholds: the least magnitude kept, one for each model; None trims nothing.
            keys: keys of the random masks, one for each model.
            majority: +1 or −1, the sign of elements whose sum is zero.
        """
        needed = self.needed if self.needed is not None else (1 if len(weights) == 2 else 2)
        return Rule(
            self.consensus, tuple(weights), self.factor, None if thresholds is None else tuple(thresholds),
            tuple(keys) if self.drop else None, self.drop, majority, self.share, needed,
        )  # fmt: skip


def mask_key(seed: int, name: str, content: str) -> int:
    """Return the key of a random mask: of the seed, the tensor's name, and the content hash of the model's tensor.

    Keyed by content, a mask belongs to a model wherever it stands in the list and whatever it is called; two models
    that are equal in a tensor get the same mask.
    """
    return xxhash.xxh3_64_intdigest(f"{seed}\0{name}\0{content}".encode())
