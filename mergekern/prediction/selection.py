"""Which metrics a linear predictor needs: forward selection, backward elimination, and leaving out categories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mergekern.errors import OptionError, PredictionError
from mergekern.metrics import is_metric, metric_of
from mergekern.prediction.pairs import as_target, complete_pairs
from mergekern.prediction.pearson import RANK_TOLERANCE
from mergekern.prediction.published import centred_products, scale
from mergekern.prediction.splitters import PairSplitter
from mergekern.prediction.validation import PairValidation, cross_validate_pairs

TIED = 1e-9


@dataclass(frozen=True)
class Selection:
    """Metrics chosen on training pairs, and how.

    Attributes:
        metrics: names of the chosen metrics, in the order of the columns.
        history: a row for each round: metric (added or removed), train_r (after it), change.
    """

    metrics: list[Any]
    history: pd.DataFrame


def forward_selection(X: Any, y: Any, threshold: float = 0.01) -> Selection:
    """Add the metric that raises the training r most, until none raises it by at least the threshold.

    The r is the largest that a weighted sum of the metrics can have (least squares, exact). The study selected in the
    same way, with its fit by Adam in place of the exact one, which does not reach that r.

    Args:
        X: (n, metrics) values.
        y: (n,) what is to be predicted.
        threshold: τ, of r; the study's 0.01.

    >>> X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0, 0.0, 1.0], "c": [1.0, 1.0, 0.0, 0.0]})
    >>> forward_selection(X, 2 * X["a"] + X["b"]).metrics
    ['a', 'b']
    """
    return _select(X, y, "forward", threshold)


def backward_elimination(X: Any, y: Any, threshold: float = 0.001) -> Selection:
    """Remove the metric whose loss lowers the training r least, until every loss exceeds the threshold.

    One metric is always kept. As in `forward_selection`, every r is exact.

    Args:
        X: (n, metrics) values.
        y: (n,) what is to be predicted.
        threshold: τ, of r; the study's 0.001.

    >>> X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0, 0.0, 1.0], "c": [1.0, 0.0, 0.0, 1.0]})
    >>> backward_elimination(X, 2 * X["a"] + X["b"]).metrics
    ['a', 'b']
    """
    return _select(X, y, "backward", threshold)


class GreedySelector(SelectorMixin, BaseEstimator):
    """`forward_selection` or `backward_elimination` as a step of a Pipeline, so that each fold selects for itself.

    Args:
        direction: "forward" or "backward".
        threshold: τ; None for the study's, 0.01 forward and 0.001 backward.

    Attributes:
        support_: (metrics,) mask of the chosen metrics; if none correlates, the first is chosen.
        history_: see `Selection`.

    >>> X = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [4.0, 0.0]])
    >>> GreedySelector().fit_transform(X, X[:, 0]).ravel().tolist()
    [1.0, 2.0, 3.0, 4.0]
    """

    def __init__(self, direction: Literal["forward", "backward"] = "forward", threshold: float | None = None) -> None:
        self.direction = direction
        self.threshold = threshold

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def fit(self, X: Any, y: Any) -> GreedySelector:
        """Select on (n, metrics) X and (n,) y."""
        if self.direction not in ("forward", "backward"):
            raise OptionError(f"direction must be 'forward' or 'backward', not {self.direction!r}")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        threshold = self.threshold
        if threshold is None:
            threshold = 0.01 if self.direction == "forward" else 0.001
        selection = _select(X, y, self.direction, threshold)
        self.history_ = selection.history
        self.support_ = np.isin(np.arange(X.shape[1]), selection.metrics)
        self.support_[0] |= not self.support_.any()
        return self

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        return self.support_


def ablate_categories(
    estimator: Any,
    X: Any,
    y: Any,
    pairs: Any = None,
    splitter: PairSplitter | None = None,
    categories: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Validate an estimator without each category of metrics, and on each alone.

    Args:
        estimator, X, y, pairs, splitter: as in `cross_validate_pairs`. X must be a DataFrame with the metrics' names.
        categories: the category of each metric; the catalogue's if None. Metrics in no category are never left out,
            and never alone.

    Returns:
        A row for "all metrics" and for each category: metrics (how many are in it), train_r and val_r (means over the
        folds, without it), change (of val_r, by leaving it out), alone_val_r. Of splitters whose folds are single
        pairs, val_r is `pooled_r_centred`.

    Raises:
        PredictionError: X has no metric of any category.
    """
    data = complete_pairs(X, y, pairs)
    columns = data.X.columns
    known = categories
    if known is None:
        known = {name: metric_of(name).category for name in map(str, columns) if is_metric(name)}
    of_columns = pd.Series([known.get(name) for name in columns], index=columns)
    if of_columns.isna().all():
        raise PredictionError(f"none of the columns is a metric of a category: {', '.join(map(str, columns))}")

    def validate(chosen: np.ndarray) -> PairValidation:
        return cross_validate_pairs(
            estimator, data.X.loc[:, chosen], data.y, data.pairs, splitter, baselines=False, n_resamples=0
        )

    whole = validate(np.ones(len(columns), dtype=bool))
    rows = {"all metrics": [len(columns), whole.folds["train_r"].mean(), whole.score, 0.0, whole.score]}
    for category in of_columns.dropna().unique():
        inside = (of_columns == category).to_numpy()
        alone = validate(inside)
        if inside.all():
            rows[category] = [inside.sum(), *[float("nan")] * 3, alone.score]
            continue
        without = validate(~inside)
        change = without.score - whole.score
        rows[category] = [inside.sum(), without.folds["train_r"].mean(), without.score, change, alone.score]
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["metrics", "train_r", "val_r", "change", "alone_val_r"]
    )


def _select(X: Any, y: Any, direction: str, threshold: float) -> Selection:
    values = np.asarray(X, dtype=np.float64)
    names = X.columns.tolist() if isinstance(X, pd.DataFrame) else list(range(values.shape[1]))
    target = as_target(y, len(values))
    if not (np.isfinite(values).all() and np.isfinite(target).all()):
        raise PredictionError("metrics can only be selected on pairs with every value; see complete_pairs")
    scaled = scale(values, np.ones(len(values), dtype=bool))
    gram, products = centred_products(scaled, target[None])
    forward = direction == "forward"
    kept: list[int] = [] if forward else list(range(len(names)))
    current = 0.0 if forward else float(_largest_r(gram, products[0], [kept])[0])
    history = []
    while len(kept) < len(names) if forward else len(kept) > 1:
        candidates = [index for index in range(len(names)) if (index in kept) != forward]
        sets = [[*kept, index] if forward else [other for other in kept if other != index] for index in candidates]
        reached = _largest_r(gram, products[0], sets)
        # The first of several copies, between which rounding would choose.
        best = int(np.flatnonzero(reached >= reached.max() - TIED)[0])
        change = float(reached[best]) - current
        if (change < threshold) if forward else (-change > threshold):
            break
        kept, current = sets[best], float(reached[best])
        history.append([names[candidates[best]], current, change])
    return Selection(
        [names[index] for index in sorted(kept)], pd.DataFrame(history, columns=["metric", "train_r", "change"])
    )


def _largest_r(gram: np.ndarray, products: np.ndarray, sets: list[list[int]]) -> np.ndarray:
    """Return the r of least squares on each set of columns, all of one size: √(b G⁻¹ b)."""
    chosen = np.array(sets)
    if chosen.size == 0:
        return np.zeros(len(sets))
    inverses = np.linalg.pinv(gram[chosen[:, :, None], chosen[:, None, :]], rcond=RANK_TOLERANCE**2, hermitian=True)
    b = products[chosen]
    return np.sqrt(np.clip(np.einsum("si,sij,sj->s", b, inverses, b), 0, 1))
