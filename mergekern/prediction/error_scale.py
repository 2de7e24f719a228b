"""ErrorScale: how the size of errors changes with the prediction, fitted to errors on held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

# Variance of |e| over its squared mean, for normal errors.
SHAPE = np.pi / 2 - 1
# Standard deviation of the slope before any error is seen. With 0.25, intervals of 80 % cover 75 to 90 % in each tenth
# of predictions of prior+additive, on the study's data and on simulated zoos whose errors depend on the prediction or
# do not (100 draws of each size; `python/interval_coverage.py`).
SLOPE_SD = 0.25
STEEPEST = 2.0
# Predictions beyond this many standard deviations count as this far away.
FARTHEST = 2.5
FEWEST = 5


@dataclass(frozen=True)
class ErrorScale:
    """Relative size of errors by prediction: exp(slope · z) for a prediction z standard deviations from the mean.

    Attributes:
        slope: change of log size for a change of the prediction by `spread`; negative where low pairs err more.
        centre, spread: mean and standard deviation of the held-out predictions, in the units of y.

    >>> ErrorScale(-0.5, centre=0.8, spread=0.1).at(np.array([0.7, 0.8, 0.9])).round(2).tolist()
    [1.65, 1.0, 0.61]
    """

    slope: float = 0.0
    centre: float = 0.0
    spread: float = 1.0

    def at(self, predictions: np.ndarray) -> np.ndarray:
        """Return (n,) relative sizes of errors."""
        return np.exp(self.slope * self._place(predictions))

    def _place(self, predictions: np.ndarray) -> np.ndarray:
        return np.clip((predictions - self.centre) / self.spread, -FARTHEST, FARTHEST)


def fit_error_scale(predictions: np.ndarray, errors: np.ndarray) -> ErrorScale:
    """Return the slope that makes sizes of errors most likely, drawn to 0 as far as few errors leave it open.

    The model is E|e| = a · exp(slope · z) with Var|e| ∝ (E|e|)², fitted by quasi-likelihood (McCullagh & Nelder 1989,
    chapter 9), with a normal prior of the slope. Fewer than five errors, or predictions that are all alike, leave it 0.

    Args:
        predictions: (n,) predictions of held-out pairs.
        errors: (n,) sizes |e| of their errors, or ratios of these to predicted standard deviations.

    >>> predictions = np.linspace(0, 1, 200)
    >>> scale = fit_error_scale(predictions, np.exp(-predictions))
    >>> round(scale.slope / scale.spread, 2)
    -0.96
    """
    order = np.lexsort((errors, predictions))  # sums do not depend on the order of rows
    predictions, errors = predictions[order], errors[order]
    if len(errors) < FEWEST or not errors.any() or not np.ptp(predictions) > 1e-9 * np.abs(predictions).max():
        return ErrorScale()
    flat = ErrorScale(0.0, float(predictions.mean()), float(predictions.std()))
    place = flat._place(predictions)
    place -= place.mean()

    def deviance(slope: float) -> float:
        likelihood = len(errors) * np.log(np.mean(errors * np.exp(-slope * place)))
        return float(likelihood / SHAPE + slope**2 / (2 * SLOPE_SD**2))

    found = minimize_scalar(deviance, bounds=(-STEEPEST, STEEPEST), method="bounded", options={"xatol": 1e-9})
    return ErrorScale(float(found.x), flat.centre, flat.spread)
