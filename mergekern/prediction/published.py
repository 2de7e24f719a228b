"""The study's own fit, for any number of folds, targets and random states in one computation.

The study ("Demystifying Mergeability", arXiv 2601.22285) maximises Pearson's r between a weighted sum of the metrics
and what is to be predicted, by Adam. On training pairs, r depends on the metrics only through their Gram matrix G and
their products b with the target, both centred: r(c) = b·c / √(c G c). That makes a step a product of matrices of the
size of the number of metrics, whatever the number of pairs, and all fits independent rows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Torch is imported where its Adam is used: predicting with what was fitted does without.

LEARNING_RATE = 0.01
ZERO = 1e-3
SMALL = 1e-8


@dataclass(frozen=True)
class Protocol:
    """Settings of the study's fit: the spread of the first coefficients, and when to stop."""

    initial: float
    steps: int
    patience: int
    threshold: float


DENSE = Protocol(initial=1.0, steps=1000, patience=50, threshold=1e-4)
SPARSE = Protocol(initial=0.1, steps=2000, patience=100, threshold=1e-5)


def fit_published(
    X: np.ndarray, Y: np.ndarray, masks: np.ndarray, random_states: Sequence[int], alpha: float | None = None
) -> np.ndarray:
    """Return the coefficients of the study's fit, as it was published.

    Metrics are scaled to [-1, 1] by their range in the training pairs. Coefficients start at N(0, 1), with L1 at a
    tenth of that, and Adam (learning rate 0.01) minimises -r + alpha ‖c‖₁ on the training pairs. What the paper leaves
    open is done as in the study's published code:

    - Without L1, the coefficients are divided by their sum between the gradient and Adam's step. That gradient is of
      the coefficients before the division, and the last step is not divided again: they sum to 1 only roughly, and a
      sum that was negative turns all signs.
    - The objective on the training pairs is watched, before each step. A fit stops where it has not fallen by more than
      the threshold below its lowest value so far for `patience` steps in a row, and keeps the last coefficients, not
      the best.
    - With L1, coefficients below 0.001 are set to zero at the end, and only there.

    -r + alpha ‖c‖₁ has no minimum: r does not depend on the length of c, so that shrinking c always helps. Where a fit
    ends depends on where it started and on when it stopped.

    Args:
        X: (n, metrics) values.
        Y: (n,) or (targets, n) what is to be predicted.
        masks: (folds, n) bool, the training pairs of each fold.
        random_states: one fit for each; every fold and target of one starts elsewhere.
        alpha: weight of the L1 penalty; None for the fit without.

    Returns:
        (folds, targets, random states, metrics) float64, of the scaled metrics.

    >>> X = np.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [4.0, 4.0]])
    >>> fit_published(X, X[:, 0], np.ones((1, 4), dtype=bool), random_states=[0, 1], alpha=1.0).shape
    (1, 1, 2, 2)
    """
    import torch

    protocol = DENSE if alpha is None else SPARSE
    targets = np.atleast_2d(Y)
    # L1's gradient jumps where a coefficient is near zero, which amplifies rounding: sums take rows in one order.
    order = np.lexsort((*targets, *X.T))
    X, targets, masks = X[order], targets[:, order], masks[:, order]
    gram, products = zip(*(centred_products(scale(X, mask)[mask], targets[:, mask]) for mask in masks), strict=True)
    initial = np.array(
        [
            [[_initial(X.shape[1], [state, fold, target]) for state in random_states] for target in range(len(targets))]
            for fold in range(len(masks))
        ]
    )
    folds, metrics = len(masks), X.shape[1]
    found = _descend(
        torch.from_numpy(np.array(gram)),
        torch.from_numpy(np.repeat(np.array(products), len(random_states), axis=1)),
        torch.from_numpy(protocol.initial * initial.reshape(folds, -1, metrics)),
        alpha,
        protocol,
    )
    coefficients = found.numpy().reshape(initial.shape)
    return coefficients if alpha is None else np.where(np.abs(coefficients) < ZERO, 0.0, coefficients)


def scale(X: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return X with each column's range over the rows of the mask at [-1, 1]; a constant column is -1.

    >>> scale(np.array([[1.0, 5.0], [2.0, 5.0], [5.0, 5.0]]), np.array([True, True, False])).tolist()
    [[-1.0, -1.0], [1.0, -1.0], [7.0, -1.0]]
    """
    return scale_to(X, X[mask].min(0), X[mask].max(0))


def scale_to(X: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return X with each column's range from low to high at [-1, 1]; a column without a range is moved alone.

    >>> scale_to(np.array([[2.0, 5.0], [6.0, 6.0]]), np.array([2.0, 5.0]), np.array([4.0, 5.0])).tolist()
    [[-1.0, -1.0], [3.0, 1.0]]
    """
    return 2 * (X - low) / np.where(high > low, high - low, 1.0) - 1


def centred_products(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (m, m) Gram matrix of the centred columns of X, and their (targets, m) products with unit targets.

    Args:
        X: (n, m) values.
        Y: (targets, n) targets, each brought to mean 0 and length 1 here; a constant one has products 0.
    """
    X = X - X.mean(0)
    Y = Y - Y.mean(1, keepdims=True)
    lengths = np.linalg.norm(Y, axis=1, keepdims=True)
    return X.T @ X, (Y / np.where(lengths > 0, lengths, 1.0)) @ X


def _initial(metrics: int, entropy: list[int]) -> np.ndarray:
    return np.random.default_rng(entropy).standard_normal(metrics)


def _descend(
    gram: torch.Tensor, products: torch.Tensor, coefficients: torch.Tensor, alpha: float | None, protocol: Protocol
) -> torch.Tensor:
    """Return the (folds, fits, m) coefficients where each fit stopped.

    Args:
        gram: (folds, m, m), products: (folds, fits, m), coefficients: (folds, fits, m) to start from.
    """
    import torch

    optimizer = torch.optim.Adam([coefficients], lr=LEARNING_RATE)
    stopped_at = coefficients.clone()
    running = torch.ones(coefficients.shape[:2], dtype=torch.bool, device="cpu")
    lowest = torch.full(coefficients.shape[:2], torch.inf, dtype=coefficients.dtype, device="cpu")
    since = torch.zeros(coefficients.shape[:2], dtype=torch.int64, device="cpu")
    for _ in range(protocol.steps):
        spread = coefficients @ gram
        length = (coefficients * spread).sum(-1, keepdim=True).clamp(min=0).sqrt()
        product = (coefficients * products).sum(-1, keepdim=True)
        objective = -product / (length + SMALL)
        gradient = product * spread / (length * (length + SMALL) ** 2).clamp(min=SMALL**3) - products / (length + SMALL)
        if alpha is None:
            coefficients.div_(coefficients.sum(-1, keepdim=True) + SMALL)
        else:
            objective = objective + alpha * coefficients.abs().sum(-1, keepdim=True)
            gradient = gradient + alpha * coefficients.sign()
        coefficients.grad = gradient
        optimizer.step()

        fell = objective[..., 0] < lowest - protocol.threshold
        lowest = torch.where(fell, objective[..., 0], lowest)
        since = torch.where(fell, 0, since + 1)
        stopped_at[running] = coefficients[running]
        running &= since < protocol.patience
        if not running.any():
            break
    return stopped_at
