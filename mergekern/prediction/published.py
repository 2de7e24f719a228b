"""The study's own fit, for any number of folds, targets and random states in one computation.

The study ("Demystifying Mergeability", arXiv 2601.22285) uses Adam to maximise Pearson's r between a weighted sum of
the metrics and the target. On the training pairs, r depends on the metrics only through the Gram matrix G of the
centred metrics and their products b with the centred target: r(c) = b·c / √(c G c). A step for all fits together is
therefore a product of matrices whose size depends on the number of metrics, not on the number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Torch is imported where its Adam is used: predicting with a fitted model needs no torch.

LEARNING_RATE = 0.01
ZERO = 1e-3
SMALL = 1e-8


@dataclass(frozen=True)
class Protocol:
    """Settings of the study's fit: the spread of the initial coefficients, and the rule for stopping."""

    initial: float
    steps: int
    patience: int
    threshold: float


DENSE = Protocol(initial=1.0, steps=1000, patience=50, threshold=1e-4)
SPARSE = Protocol(initial=0.1, steps=2000, patience=100, threshold=1e-5)


def fit_published(
    X: np.ndarray, Y: np.ndarray, masks: np.ndarray, random_states: Sequence[int], alpha: float | None = None
) -> np.ndarray:
    """Return the coefficients of the study's fit, as published.

    Metrics are scaled to [-1, 1] by their range in the training pairs. The initial coefficients are drawn from N(0, 1),
    with L1 from 0.1 N(0, 1). Adam (learning rate 0.01) then minimises -r + alpha ‖c‖₁ on the training pairs. Details
    that the paper leaves open follow the study's published code:

    - Without L1, the coefficients are divided by their sum after the gradient is computed and before Adam's step. They
      are not divided again after the last step, so that they sum to 1 only roughly. A negative sum reverses all signs.
    - The objective on the training pairs is checked before each step. A fit stops after `patience` steps in a row in
      which the objective was not lower than its lowest value so far by more than the threshold. It keeps the last
      coefficients, not the best.
    - With L1, coefficients with a magnitude below 0.001 are set to zero after the last step.

    -r + alpha ‖c‖₁ has no minimum: r does not depend on the length of c, so that shrinking c always helps. The result
    of a fit therefore depends on its start and on when it stopped.

    Args:
        X: (n, metrics) values.
        Y: (n,) or (targets, n) targets.
        masks: (folds, n) bool, the training pairs of each fold.
        random_states: one fit is made for each; the folds and targets of a random state have different starts.
        alpha: weight of the L1 penalty; None for no penalty.

    Returns:
        (folds, targets, random states, metrics) float64 coefficients of the scaled metrics.

    >>> X = np.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [4.0, 4.0]])
    >>> fit_published(X, X[:, 0], np.ones((1, 4), dtype=bool), random_states=[0, 1], alpha=1.0).shape
    (1, 1, 2, 2)
    """
    import torch

    protocol = DENSE if alpha is None else SPARSE
    targets = np.atleast_2d(Y)
    # The gradient of L1 jumps as a coefficient crosses zero, which amplifies rounding. Rows are therefore summed in one
    # order, whatever their order in X.
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
    """Return X with the range of each column over the rows of the mask mapped to [-1, 1]; constant columns are -1.

    >>> scale(np.array([[1.0, 5.0], [2.0, 5.0], [5.0, 5.0]]), np.array([True, True, False])).tolist()
    [[-1.0, -1.0], [1.0, -1.0], [7.0, -1.0]]
    """
    return scale_to(X, X[mask].min(0), X[mask].max(0))


def scale_to(X: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return X with [low, high] of each column mapped to [-1, 1]; a column with low = high is shifted only.

    >>> scale_to(np.array([[2.0, 5.0], [6.0, 6.0]]), np.array([2.0, 5.0]), np.array([4.0, 5.0])).tolist()
    [[-1.0, -1.0], [3.0, 1.0]]
    """
    return 2 * (X - low) / np.where(high > low, high - low, 1.0) - 1


def centred_products(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (m, m) Gram matrix of the centred columns of X, and their (targets, m) products with unit targets.

    Args:
        X: (n, m) values.
        Y: (targets, n) targets, which are brought to mean 0 and length 1 here; products with constant targets are 0.
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
        gram: (folds, m, m) Gram matrices of the centred metrics.
        products: (folds, fits, m) products of the centred metrics with the target.
        coefficients: (folds, fits, m) initial coefficients.
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
