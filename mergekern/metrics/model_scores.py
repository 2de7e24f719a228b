"""Model scores: what is known of two models without any merge, as a value of the pair.

own_i is the accuracy of model i on its own task, base_i that of the base on this task, with the head or the prompts of
model i. own ℓ_i and base ℓ_i are the mean losses there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class KnownScores(NamedTuple):
    """Scores of N models, and of their base on the models' tasks, (N,) each; NaN where not known.

    Accuracies are from 0 to 1.
    """

    own: np.ndarray
    base: np.ndarray
    own_loss: np.ndarray
    base_loss: np.ndarray


def own_accuracy_mean(known: KnownScores) -> np.ndarray:
    """Mean of own_i and own_j."""
    return _mean(known.own)


def own_accuracy_min(known: KnownScores) -> np.ndarray:
    """The smaller of own_i and own_j."""
    return np.minimum(known.own[:, None], known.own)


def base_accuracy_mean(known: KnownScores) -> np.ndarray:
    """Mean of base_i and base_j."""
    return _mean(known.base)


def base_accuracy_min(known: KnownScores) -> np.ndarray:
    """The smaller of base_i and base_j."""
    return np.minimum(known.base[:, None], known.base)


def own_loss_mean(known: KnownScores) -> np.ndarray:
    """Mean of own ℓ_i and own ℓ_j."""
    return _mean(known.own_loss)


def own_loss_max(known: KnownScores) -> np.ndarray:
    """The larger of own ℓ_i and own ℓ_j."""
    return np.maximum(known.own_loss[:, None], known.own_loss)


def base_loss_mean(known: KnownScores) -> np.ndarray:
    """Mean of base ℓ_i and base ℓ_j."""
    return _mean(known.base_loss)


def base_loss_max(known: KnownScores) -> np.ndarray:
    """The larger of base ℓ_i and base ℓ_j."""
    return np.maximum(known.base_loss[:, None], known.base_loss)


def _mean(values: np.ndarray) -> np.ndarray:
    return (values[:, None] + values) / 2
