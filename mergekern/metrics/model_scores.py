"""Model scores: what is known of two models without any merge, as a value of the pair.

own_i is the accuracy of model i on its own task, base_i that of the base on this task, with the head or the prompts of
model i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class KnownAccuracies(NamedTuple):
    """Accuracies of N models and of their base on the models' tasks, (N,) each, from 0 to 1; NaN where not known."""

    own: np.ndarray
    base: np.ndarray


def own_accuracy_mean(known: KnownAccuracies) -> np.ndarray:
    """Mean of own_i and own_j."""
    return (known.own[:, None] + known.own) / 2


def own_accuracy_min(known: KnownAccuracies) -> np.ndarray:
    """The smaller of own_i and own_j."""
    return np.minimum(known.own[:, None], known.own)


def base_accuracy_mean(known: KnownAccuracies) -> np.ndarray:
    """Mean of base_i and base_j."""
    return (known.base[:, None] + known.base) / 2


def base_accuracy_min(known: KnownAccuracies) -> np.ndarray:
    """The smaller of base_i and base_j."""
    return np.minimum(known.base[:, None], known.base)
