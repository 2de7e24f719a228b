"""PearsonRegressor: the weighted sum of metrics that correlates best with the target."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mergekern.errors import OptionError, PredictionError
from mergekern.prediction.correlation import pearson_r
from mergekern.prediction.published import LEARNING_RATE, centred_products, fit_published, scale, scale_to

# Standard deviation of the predictions for which the exact solver evaluates ‖c‖₁. The study's fits end between 0.007
# and 0.03 (its data, alpha from 0.3 to 1.5), where Adam's steps cannot shrink c further. With this value, one alpha
# means the same to both solvers.
SPREAD = LEARNING_RATE
# Relative to the largest eigenvalue: below it, float32 metrics do not vary in a direction, and only rounding is left.
RANK_TOLERANCE = 1e-6
# Columns whose correlation is this close to ±1 count as one metric; for example a score and the value it is made from.
DUPLICATE = 1e-10
OPTIMALITY = 1e-9


class PearsonRegressor(RegressorMixin, BaseEstimator):
    """Linear predictor whose coefficients maximise Pearson's r with the target on the training pairs.

    Metrics are scaled to [-1, 1] by their range in the training pairs. Pearson's r does not depend on the mean and
    scale of the predictions, so that least squares brings them to the scale of y afterwards.

    `solver="adam"` is the study's own fit (see `fit_published`); its result depends on its start. `solver="exact"` is
    deterministic and optimal:

    - Without a penalty, least squares has the largest r. The solution with the smallest ‖c‖₂ is taken, in which copies
      of a metric share its coefficient.
    - The study's L1 objective, -r + alpha ‖c‖₁, has no minimum. r does not depend on the length of c, so that shrinking
      c towards 0 always improves the objective, and nothing makes c sparse. The problem becomes well-posed when the
      length is fixed: here, such that the predictions have a standard deviation of 0.01 over the training pairs. Under
      that constraint, the c that maximises r - alpha ‖c‖₁ is a multiple of the Lasso solution for standardised y with
      penalty 0.01 alpha. It has exact zeros. If alpha exceeds max_j |cov(x_j, y)| / (0.01 sd(y)), all coefficients are
      zero, and the mean is predicted.

    Args:
        penalty: "l1" or None.
        alpha: weight of the L1 penalty, on the same scale for both solvers; the study used 0.3 to 1.5.
        solver: "exact" or "adam".
        random_state: decides the first coefficients of "adam".

    Attributes:
        coef_: (metrics,) change of the prediction, in units of y, as a scaled metric grows by 1.
        intercept_: prediction for a pair whose scaled metrics are all 0.
        weights_: (metrics,) coefficients as the solver left them, before they are brought to the scale of y.
        train_r_: Pearson's r on the training pairs; NaN if the mean is predicted.
        low_, high_: (metrics,) range of each metric in the training pairs.

    >>> X = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 6.0], [4.0, 1.0], [5.0, 4.0]])
    >>> model = PearsonRegressor(alpha=1.0).fit(X, 0.5 + 0.1 * X[:, 0])
    >>> model.coef_.round(3).tolist(), round(model.intercept_, 3), model.predict([[6.0, 4.0]]).round(3).tolist()
    ([0.2, 0.0], 0.8, [1.1])
    """

    def __init__(
        self,
        penalty: Literal["l1"] | None = "l1",
        alpha: float = 1.0,
        solver: Literal["exact", "adam"] = "exact",
        random_state: int = 0,
    ) -> None:
        self.penalty = penalty
        self.alpha = alpha
        self.solver = solver
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> PearsonRegressor:
        """Fit (n, metrics) X and (n,) y.

        Raises:
            OptionError: an unknown penalty or solver, or a negative alpha.
            ValueError: shapes that do not fit, missing values.
        """
        well = self.penalty is None or (isinstance(self.alpha, Real) and self.alpha >= 0)
        if self.penalty not in ("l1", None) or self.solver not in ("exact", "adam") or not well:
            raise OptionError(f"{self!r}: penalty is 'l1' or None, alpha at least 0, solver 'exact' or 'adam'")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        every = np.ones((1, len(y)), dtype=bool)
        alpha = None if self.penalty is None else float(self.alpha)
        if self.solver == "adam":
            found = fit_published(X, y, every, [self.random_state], alpha)[0, 0, 0]
        else:
            found = fit_exact(X, y, every, alpha)[0, 0]
        self.low_, self.high_ = X.min(0), X.max(0)
        scaled = scale_to(X, self.low_, self.high_)
        predicted = scaled @ found
        self.weights_ = found
        self.train_r_ = pearson_r(predicted, y)
        # The sign stays the solver's: if Adam ended with r below 0, its predictions are not reversed.
        slope = 0.0 if np.isnan(self.train_r_) else abs(self.train_r_) * y.std() / predicted.std()
        self.coef_ = slope * found
        self.intercept_ = float(y.mean() - slope * predicted.mean())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return (n,) predictions in units of y."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return scale_to(X, self.low_, self.high_) @ self.coef_ + self.intercept_


def fit_exact(X: np.ndarray, Y: np.ndarray, masks: np.ndarray, alpha: float | None = None) -> np.ndarray:
    """Return the optimal coefficients of each fold and target; see `PearsonRegressor`.

    Args:
        X: (n, metrics) values.
        Y: (n,) or (targets, n) targets.
        masks: (folds, n) bool, the training pairs of each fold.
        alpha: weight of the L1 penalty; None for no penalty.

    Returns:
        (folds, targets, metrics) float64 coefficients of the scaled metrics, of the length for which predictions have a
        standard deviation of 0.01 over the training pairs; zeros if the mean is the best prediction.
    """
    targets = np.atleast_2d(Y).astype(np.float64)
    found = np.zeros((len(masks), len(targets), X.shape[1]))
    for fold, mask in enumerate(masks):
        scaled = scale(X, mask)[mask]
        scaled -= scaled.mean(0)
        columns, copies = _distinct(scaled)
        if len(columns) == 0:  # constant metrics, or a single pair
            continue
        gram, products = centred_products(scaled[:, columns], targets[:, mask])
        gram, products = gram / mask.sum(), products / np.sqrt(mask.sum())
        for target, product in enumerate(products):
            if alpha is None:
                solution = np.linalg.pinv(gram, rcond=RANK_TOLERANCE**2, hermitian=True) @ product
            else:
                solution = lasso(gram, product, alpha * SPREAD)
            spread = np.sqrt(max(solution @ gram @ solution, 0.0))
            if spread > 0:
                found[fold, target] = copies @ solution * (SPREAD / spread)
    return found


def lasso(gram: np.ndarray, products: np.ndarray, penalty: float) -> np.ndarray:
    """Return the c that minimises c G c / 2 - b·c + penalty ‖c‖₁, up to rounding.

    An active-set method, like Lawson and Hanson's for non-negative least squares. In each step, the zero coefficient
    whose gradient exceeds the penalty most becomes active. The active coefficients are solved for exactly; one that
    would change its sign on the way stops at zero. Every step lowers the objective, so that none of the finitely many
    active sets occurs twice. (On metrics as collinear as these, scikit-learn's `lars_path` missed the optimum in 1 of
    160 fits, and coordinate descent needs about 100,000 rounds.)

    Args:
        gram: (m, m) G, positive semi-definite.
        products: (m,) b.
        penalty: at least 0.

    Raises:
        PredictionError: no convergence; values that are not finite can cause that.

    >>> lasso(np.eye(2), np.array([3.0, -0.5]), 1.0).round(6).tolist()
    [2.0, 0.0]
    """
    gram = gram + 1e-13 * max(np.trace(gram), 1e-300) * np.eye(len(gram))
    c = np.zeros(len(gram))
    refused = np.zeros(len(gram), dtype=bool)
    tolerance = OPTIMALITY * max(penalty, np.abs(products).max(initial=0))
    for _ in range(100 * len(gram) + 100):
        gradient = products - gram @ c
        outside = np.where((c == 0) & ~refused, np.abs(gradient), 0.0)
        entering = int(outside.argmax())
        if outside[entering] <= penalty + tolerance:
            return c
        signs = np.sign(c)
        signs[entering] = np.sign(gradient[entering])
        before = c
        c = _solve_active(gram, products, penalty, c, signs)
        # A coefficient that rounding keeps at zero must not be tried forever.
        refused[:] = refused & (c == before).all()
        refused[entering] = c[entering] == 0
    raise PredictionError("the L1 fit did not converge: are all values finite and of a similar size?")


def _solve_active(
    gram: np.ndarray, products: np.ndarray, penalty: float, c: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Return the optimum over the active coefficients; those that reach zero on the way become inactive."""
    while True:
        active = np.flatnonzero(signs)
        if len(active) == 0:
            return np.zeros_like(c)
        wanted = np.zeros_like(c)
        wanted[active] = np.linalg.solve(gram[np.ix_(active, active)], products[active] - penalty * signs[active])
        turning = active[wanted[active] * signs[active] <= 0]
        if len(turning) == 0:
            return wanted
        ways = c[turning] / np.where(c[turning] == wanted[turning], 1.0, c[turning] - wanted[turning])
        c = c + ways.min() * (wanted - c)
        reached = turning[ways == ways.min()]
        c[reached] = 0.0
        signs = signs.copy()
        signs[reached] = 0.0


def _distinct(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns that neither copy nor mirror an earlier one, and how they share their coefficients.

    All columns have the same range, so that copies have the same length.

    Returns:
        columns: (k,) positions of the distinct columns; constant columns are left out.
        copies: (m, k) matrix that divides the coefficient of a distinct column equally among its copies.
    """
    lengths = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(lengths > 0, lengths, 1.0)
    correlation = unit.T @ unit
    same = np.abs(correlation) > 1 - DUPLICATE
    first = np.where(same.any(0), same.argmax(0), -1)
    columns = np.flatnonzero(first == np.arange(len(first)))
    shares = (first[:, None] == columns) * np.sign(correlation[:, columns])
    return columns, shares / np.abs(shares).sum(0)
