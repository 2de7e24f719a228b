"""Linear mixed models, fitted by restricted maximum likelihood: each group of coefficients has its own variance.

The model is y = μ + W u + e with u_k ~ N(0, γ_g(k) σ²) and e ~ N(0, σ²); g(k) is the group of coefficient k.
Henderson's mixed model equations are solved in the space of u, so that the cost is linear in the number of rows. The
variances maximise the likelihood of y without its mean (REML, Patterson & Thompson 1971). The coefficients of a group
that explains nothing shrink to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpotri
from scipy.optimize import brentq

# Bounds of the ratio γ of a group's variance to the residual's; at these a group explains nothing, or everything.
RATIOS = (1e-6, 1e4)
# Below this share of the residual in the variance, y counts as explained exactly.
EXACT = 1e-12
# Newton's method ends where the deviance changes by less than this with every log γ. Its steps are no longer than
# LONGEST, and are halved so often where the deviance does not fall.
FLAT = 1e-6
LONGEST, HALVINGS, MOST_STEPS = 3.0, 8, 100
# Logarithms of γ between which the minima of the deviance of a single group are told apart.
GRID = np.linspace(np.log(RATIOS[0]), np.log(RATIOS[1]), 48)


@dataclass(frozen=True)
class ExpectedRatio:
    """A log-normal prior of the ratio γ of a single group.

    Attributes:
        ratio: its median.
        log_sd: standard deviation of log γ.
    """

    ratio: float
    log_sd: float


@dataclass(frozen=True)
class MixedModel:
    """A fitted mixed model, in the units of y.

    Attributes:
        mean: μ.
        coefficients: (q,) posterior means of u.
        covariance: (1 + q, 1 + q) posterior covariance of (μ, u).
        ratios: (groups,) ratios γ.
        residual_variance: σ².
        weights: (n,) weights of the rows: 1, or less for rows that fit badly.
        deviance: −2 log restricted likelihood of the standardised y, up to a constant that depends on n only.
    """

    mean: float
    coefficients: np.ndarray
    covariance: np.ndarray
    ratios: np.ndarray
    residual_variance: float
    weights: np.ndarray
    deviance: float

    @property
    def variances(self) -> np.ndarray:
        """(groups,) variances of the coefficients of each group."""
        return self.ratios * self.residual_variance


def fit_mixed(
    design: np.ndarray,
    groups: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    expected: ExpectedRatio | None = None,
) -> MixedModel:
    """Fit a mixed model by REML.

    Args:
        design: (n, q) matrix W.
        groups: (q,) group of each column, 0 … groups − 1.
        y: (n,) float64.
        weights: (n,) weights of the rows, all 1 if None; row i has residual variance σ² / weights[i].
        start: (groups,) ratios to start from.
        expected: what the ratio of a single group is expected to be; None if nothing is known of it.

    >>> y = np.array([1.1, 0.9, 3.2, 2.8])
    >>> model = fit_mixed(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.array([0, 0]), y)
    >>> [round(float(model.mean + u), 2) for u in model.coefficients]
    [1.01, 2.99]
    """
    weights = np.ones(len(y)) if weights is None else weights
    centre, scale = float(y.mean()), float(y.std())
    if not scale > 1e-13 * np.abs(y).max(initial=0.0):
        size = design.shape[1]
        nothing = np.zeros((size + 1, size + 1))
        return MixedModel(centre, np.zeros(size), nothing, np.zeros(groups.max(initial=-1) + 1), 0.0, weights, 0.0)
    equations = _Equations(design, groups, (y - centre) / scale, weights)
    if len(equations.sizes) == 1:
        ratios, deviance = _OneGroup(equations, expected).most_likely(start)
    else:
        ratios, deviance = equations.most_likely(start)
    inverse, solution, residual, _ = equations.solve(ratios)
    return MixedModel(
        mean=centre + scale * float(solution[0]),
        coefficients=scale * solution[1:],
        # C order, in which files are loaded again: sums over the matrix are then the same to the last bit.
        covariance=np.ascontiguousarray(scale**2 * residual * inverse),
        ratios=ratios,
        residual_variance=scale**2 * residual,
        weights=weights,
        deviance=deviance,
    )


def fit_robust(
    design: np.ndarray,
    groups: np.ndarray,
    y: np.ndarray,
    dof: float,
    rounds: int = 20,
    expected: ExpectedRatio | None = None,
) -> MixedModel:
    """Fit with residuals of Student's t with `dof` degrees of freedom: a few failed merges then do not spoil the fit.

    Expectation-maximisation alternates the fit with weights (ν + 1) / (ν + E[e²]/σ²) of the rows; E[e²] includes the
    posterior variance of the fitted value.

    >>> y = np.array([1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 9.0])
    >>> round(fit_robust(np.zeros((8, 1)), np.array([0]), y, dof=4).mean, 1)
    1.0
    """
    model = fit_mixed(design, groups, y, expected=expected)
    full = np.column_stack([np.ones(len(y)), design])
    for _ in range(rounds):
        if model.residual_variance <= EXACT * float(y.var()):
            return model
        errors = y - model.mean - design @ model.coefficients
        squares = errors**2 + ((full @ model.covariance) * full).sum(1)
        weights = (dof + 1) / (dof + squares / model.residual_variance)
        if np.abs(weights - model.weights).max() < 1e-2:
            return model
        model = fit_mixed(design, groups, y, weights, model.ratios, expected)
    return model


class _Equations:
    """Henderson's equations for a standardised y: C(γ) (μ, u) = Wᵀy with C = WᵀW + diag(0, 1/γ)."""

    def __init__(self, design: np.ndarray, groups: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        full = np.column_stack([np.ones(len(y)), design])
        weighted = full * weights[:, None]
        self.products = full.T @ weighted
        self.right = weighted.T @ y
        self.squares = float(y @ (weights * y))
        self.dof = max(len(y) - 1, 1)
        self.groups = groups
        self.sizes = np.bincount(groups)
        self.in_group = np.eye(len(self.sizes))[groups]

    def solve(self, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Return C⁻¹, (μ, u), σ² and log |C|."""
        matrix = self.products.copy()
        penalised = np.arange(1, len(matrix))
        matrix[penalised, penalised] += 1 / ratios[self.groups]
        factor = np.linalg.cholesky(matrix)
        lower = np.tril(dpotri(factor, lower=1)[0])
        inverse = lower + np.tril(lower, -1).T
        solution = inverse @ self.right
        residual = max((self.squares - float(solution @ self.right)) / self.dof, EXACT)
        return inverse, solution, residual, 2 * float(np.log(np.diagonal(factor)).sum())

    def deviance(self, log_ratios: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return −2 log restricted likelihood, up to a constant, its gradient and its Hessian.

        By log γ_g, with P = C⁻¹ and R the penalised sum of squares: dR = −|u_g|²/γ_g, d log |C| = −tr P_gg/γ_g,
        du = P_·g u_g/γ_g and dP = P_·g P_g·/γ_g.
        """
        ratios = np.exp(log_ratios)
        inverse, solution, residual, determinant = self.solve(ratios)
        value = self.dof * float(np.log(residual)) + float(self.sizes @ log_ratios) + determinant
        u, inner = solution[1:], inverse[1:, 1:]
        squares = self.in_group.T @ u**2
        explained = (squares / residual + self.in_group.T @ np.diagonal(inner)) / ratios
        products = self.in_group.T @ (inner * (2 / residual * np.outer(u, u) + inner)) @ self.in_group
        products += np.outer(squares, squares) / (self.dof * residual**2)
        return value, self.sizes - explained, np.diag(explained) - products / np.outer(ratios, ratios)

    def most_likely(self, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Return the most likely γ and its deviance. Without a start, two are tried: there may be two modes."""
        if len(self.sizes) == 0:
            return np.zeros(0), self.deviance(np.zeros(0))[0]
        starts = [np.full(len(self.sizes), at) for at in (0.0, -3.0)] if start is None else [np.log(start)]
        best, value = min((self._descend(at) for at in starts), key=lambda found: found[1])
        return np.exp(best), value

    def _descend(self, at: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the minimum of the deviance that Newton steps within the bounds lead to, and its value."""
        low, high = np.log(RATIOS)
        value, gradient, hessian = self.deviance(at)
        for _ in range(MOST_STEPS):
            free = np.flatnonzero(~(((at <= low) & (gradient > 0)) | ((at >= high) & (gradient < 0))))
            if np.abs(gradient[free]).max(initial=0.0) < FLAT:
                break
            curvature, axes = np.linalg.eigh(hessian[np.ix_(free, free)])
            step = np.zeros(len(at))
            # Where the deviance curves downwards, the size of the curvature still tells a sensible length.
            step[free] = axes @ (-axes.T @ gradient[free] / np.maximum(np.abs(curvature), FLAT))
            step *= min(1.0, LONGEST / np.abs(step).max())
            for _ in range(HALVINGS):
                there = np.clip(at + step, low, high)
                found = self.deviance(there)
                if found[0] < value:
                    break
                step /= 2
            else:
                break
            at, (value, gradient, hessian) = there, found
        return at, value


class _OneGroup:
    """The deviance of a model with one group, whose equations one decomposition solves for every γ.

    With the mean eliminated, the equations are (S + I/γ) u = b. In the axes of S = V D Vᵀ, with c = Vᵀb, the sum of
    squares is R(γ) = y² − Σ c²γ/(1 + γd), and the deviance (n − 1) log R + Σ log(1 + γd), up to a constant.
    """

    def __init__(self, equations: _Equations, expected: ExpectedRatio | None = None) -> None:
        total, sums, inner = equations.products[0, 0], equations.products[0, 1:], equations.products[1:, 1:]
        spectrum, axes = np.linalg.eigh(inner - np.outer(sums, sums) / total)
        self.spectrum = np.maximum(spectrum, 0.0)
        self.loads = (axes.T @ (equations.right[1:] - sums * equations.right[0] / total)) ** 2
        self.squares = equations.squares - equations.right[0] ** 2 / total
        self.dof = equations.dof
        self.constant = float(np.log(total))
        self.centre = 0.0 if expected is None else float(np.log(expected.ratio))
        self.precision = 0.0 if expected is None else expected.log_sd**-2

    def deviance(self, log_ratios: np.ndarray) -> np.ndarray:
        """Return (n,) values of −2 log restricted likelihood, as `_Equations.deviance`, and of the prior's density."""
        ratios = np.exp(log_ratios)[:, None]
        residuals = self._residuals(ratios)
        likelihood = self.dof * np.log(residuals) + np.log1p(ratios * self.spectrum).sum(1) + self.constant
        return likelihood + self.precision * (log_ratios - self.centre) ** 2

    def slope(self, log_ratio: float) -> float:
        """Return the derivative of the deviance by the logarithm of γ."""
        ratio = np.exp(log_ratio)
        shrunk = 1 / (1 + ratio * self.spectrum)
        fall = ratio * float(self.loads @ shrunk**2) / (self.dof * float(self._residuals(ratio)))
        drawn = 2 * self.precision * (log_ratio - self.centre)
        return len(shrunk) - float(shrunk.sum()) - self.dof * fall + drawn

    def _residuals(self, ratios: np.ndarray) -> np.ndarray:
        explained = (ratios / (1 + ratios * self.spectrum)) @ self.loads
        return np.maximum((self.squares - explained) / self.dof, EXACT)

    def most_likely(self, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Return the most likely γ and its deviance; with a start, the minimum nearest to it."""
        values = self.deviance(GRID)
        around = np.concatenate([[np.inf], values, [np.inf]])
        minima = np.flatnonzero((values <= around[:-2]) & (values <= around[2:]))
        costs = values[minima] if start is None else np.abs(GRID[minima] - np.log(start[0]))
        at = int(minima[np.argmin(costs)])
        low, high = float(GRID[max(at - 1, 0)]), float(GRID[min(at + 1, len(GRID) - 1)])
        if self.slope(low) >= 0:
            best = low
        elif self.slope(high) <= 0:
            best = high
        else:
            best = float(brentq(self.slope, low, high, xtol=1e-10, rtol=1e-12))
        return np.exp([best]), float(self.deviance(np.array([best]))[0])
