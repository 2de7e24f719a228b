"""Analysis of scores and predictors: variance components, fingerprints of methods, reasons to doubt a predictor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mergekern.errors import PredictionError
from mergekern.prediction.correlation import ROUNDING
from mergekern.prediction.pairs import as_target, need_pairs, task_codes
from mergekern.prediction.validation import PairValidation

GAP = 0.2
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class VarianceComponents:
    """Shares of the variance of y over pairs: main effects of the tasks, and the rest.

    Attributes:
        tasks: share explained by y_ab = μ + t_a + t_b (R² of least squares), in [0, 1].
        interaction: share due to the pair itself and to noise, 1 - tasks.
        adjusted_tasks: `tasks` corrected for the share of pure noise that the same number of effects would explain
            (adjusted R²); NaN if there are too few pairs.
        effects: t of each task, in units of y, with mean 0.
        residuals: y - (μ + t_a + t_b) of each pair.
    """

    tasks: float
    interaction: float
    adjusted_tasks: float
    effects: pd.Series
    residuals: pd.Series


def variance_components(y: Any, pairs: Any = None) -> VarianceComponents:
    """Split the variance of y over pairs into main effects of the tasks and their interaction.

    Args:
        y: (n,) values, for example the accuracy of merged pairs; pairs with NaN take no part.
        pairs: (n, 2) names; the index of y if None.

    Raises:
        PredictionError: names are missing or do not fit, or all values of y are equal.

    >>> pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    >>> parts = variance_components([0.9, 0.8, 0.7, 0.5, 0.4, 0.4], pairs)
    >>> round(parts.tasks, 3), parts.effects.round(3).to_dict()
    (0.985, {'a': 0.275, 'b': -0.025, 'c': -0.075, 'd': -0.175})
    """
    names = need_pairs(y, pairs)
    values = as_target(y, len(names))
    known = np.isfinite(values)
    names, values = names[known], values[known]
    size = np.abs(values).max(initial=0.0)
    values = values - values.mean() if len(values) else values
    total = float((values**2).sum())
    if not total > len(values) * (ROUNDING * size) ** 2:
        raise PredictionError("y has no variance to split: give the values of at least two pairs that differ")
    tasks, codes = task_codes(names)
    # Normal equations have a row for each task, not for each pair. Every pair has two effects, so that their sum can
    # hold μ.
    products = np.zeros((len(tasks), len(tasks)))
    np.add.at(products, (codes[:, [0, 1, 0, 1]], codes[:, [0, 1, 1, 0]]), 1.0)
    sums = np.bincount(codes.ravel(), weights=np.repeat(values, 2), minlength=len(tasks))
    effects, _, rank, _ = np.linalg.lstsq(products, sums, rcond=None)
    residuals = values - effects[codes].sum(1)
    unexplained = float((residuals**2).sum() / total)
    freedom = len(values) - rank
    return VarianceComponents(
        tasks=1 - unexplained,
        interaction=unexplained,
        adjusted_tasks=1 - unexplained * (len(values) - 1) / freedom if freedom > 0 else float("nan"),
        effects=pd.Series(effects - effects.mean(), index=tasks),
        residuals=pd.Series(residuals, index=pd.MultiIndex.from_arrays([names[:, 0], names[:, 1]])),
    )


@dataclass(frozen=True)
class Fingerprints:
    """Similarity of the fingerprints of merge methods. A fingerprint is a method's coefficients of all metrics.

    Attributes:
        topk_overlap: share of the k metrics with the largest |coefficients| that two methods have in common, averaged
            over pairs of methods.
        sign_agreement: share of metrics whose coefficients have the same sign in two methods, averaged likewise.
        overlaps, agreements: the two shares for each pair of methods, as symmetric (methods, methods) frames.
        stable_metrics: metrics whose coefficient has one sign in all methods, and is among the k largest in all.
        counts: for each metric, the number of methods in which it is among the k largest, positive, and negative.
    """

    topk_overlap: float
    sign_agreement: float
    overlaps: pd.DataFrame
    agreements: pd.DataFrame
    stable_metrics: list[Any]
    counts: pd.DataFrame


def fingerprints(coefs: pd.DataFrame, k: int = 5) -> Fingerprints:
    """Compare the coefficients of merge methods, as the study does.

    Args:
        coefs: coefficients, a row for each metric and a column for each of at least two methods.
        k: number of the largest coefficients that are compared.

    Raises:
        PredictionError: fewer than two methods, fewer than k metrics, or missing coefficients.

    >>> coefs = pd.DataFrame({"ties": [3.0, -2.0, 0.1], "tsv": [1.0, 0.2, -2.0]}, index=["a", "b", "c"])
    >>> found = fingerprints(coefs, k=2)
    >>> found.topk_overlap, round(found.sign_agreement, 2), found.stable_metrics
    (0.5, 0.33, ['a'])
    """
    coefs = pd.DataFrame(coefs)
    metrics, methods = coefs.shape
    if not all(map(pd.api.types.is_numeric_dtype, coefs.dtypes)):
        raise PredictionError(
            f"coefficients are numbers, a column for each method, not {', '.join(map(str, coefs.dtypes))}"
        )
    if methods < 2 or not 1 <= k <= metrics or coefs.isna().to_numpy().any():
        raise PredictionError(
            f"fingerprints need k = {k} coefficients or more of two methods or more, without gaps, not a frame of "
            f"{metrics} metrics × {methods} methods with {int(coefs.isna().sum().sum())} missing"
        )
    signs = np.sign(coefs.to_numpy())
    # A stable sort: of equal coefficients the first counts, on every machine.
    order = np.argsort(-np.abs(coefs.to_numpy()), axis=0, kind="stable")
    largest = np.zeros((metrics, methods), dtype=bool)
    np.put_along_axis(largest, order[:k], True, axis=0)
    overlaps = largest.T.astype(float) @ largest / k
    agreements = (signs[:, :, None] == signs[:, None, :]).mean(0)
    two = np.triu_indices(methods, 1)
    one_sign = (signs == signs[:, :1]).all(1) & (signs[:, 0] != 0)
    return Fingerprints(
        topk_overlap=float(overlaps[two].mean()),
        sign_agreement=float(agreements[two].mean()),
        overlaps=pd.DataFrame(overlaps, coefs.columns, coefs.columns),
        agreements=pd.DataFrame(agreements, coefs.columns, coefs.columns),
        stable_metrics=coefs.index[one_sign & largest.all(1)].tolist(),
        counts=pd.DataFrame(
            {"top_k": largest.sum(1), "positive": (signs > 0).sum(1), "negative": (signs < 0).sum(1)}, index=coefs.index
        ),
    )


def failure_signatures(validation: PairValidation) -> list[str]:
    """Return reasons to doubt a validated predictor, one sentence each.

    Three are the study's: coefficients whose standard deviation over the folds exceeds their mean, a training r more
    than 0.2 above the validation r, and coefficients whose sign changes between folds. Two use the baselines and the
    p-value of the validation: a score no better than that of task effects alone, and a score that is not significant.

    >>> from sklearn.linear_model import LinearRegression
    >>> from mergekern.prediction import cross_validate_pairs
    >>> random = np.random.default_rng(0)
    >>> pairs = [(a, b) for a in "abcdefg" for b in "abcdefg" if a < b]
    >>> X, y = random.normal(size=(21, 3)), random.normal(size=21)
    >>> for warning in failure_signatures(cross_validate_pairs(LinearRegression(), X, y, pairs, n_permutations=20)):
    ...     print(warning)
    training r exceeds validation r by 0.61 (0.39 against -0.23)
    over the folds, the standard deviation is above the mean of 2 of 3 coefficients: x0, x1
    the sign changes between folds of 3 of 3 coefficients: x0, x1, x2
    tasks with their names permuted do as well (p = 0.857)
    """
    folds = validation.folds
    train, found = folds["train_r"].mean(), validation.score
    warnings = []
    if np.isnan(found):
        warnings.append("there is no validation r: too few pairs in each fold, or constant predictions")
    if train - found > GAP:
        warnings.append(f"training r exceeds validation r by {train - found:.2f} ({train:.2f} against {found:.2f})")
    if validation.coefficients is not None:
        coefficients = validation.coefficients
        wide = coefficients.std(ddof=0) > coefficients.mean().abs()
        if wide.any():
            warnings.append(f"over the folds, the standard deviation is above the mean of {_listed(wide)}")
        turned = (coefficients > 0).any() & (coefficients < 0).any()
        if turned.any():
            warnings.append(f"the sign changes between folds of {_listed(turned)}")
    additive = validation.baselines.get("additive")
    if additive is not None and not np.isnan(additive.score) and not found > additive.score:
        warnings.append(f"no better than task effects without any metric (r {found:.2f} against {additive.score:.2f})")
    if validation.p_value > SIGNIFICANT:
        warnings.append(f"tasks with their names permuted do as well (p = {validation.p_value:.3f})")
    return warnings


def _listed(chosen: pd.Series) -> str:
    names = ", ".join(map(str, chosen.index[chosen]))
    return f"{int(chosen.sum())} of {len(chosen)} coefficients: {names}"
