"""ForestRegressor: extremely randomised trees on the metrics, kept as plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.utils.validation import check_is_fitted, validate_data

from mergekern.prediction.linear import ClippedScaler


class ForestRegressor(RegressorMixin, BaseEstimator):
    """Mean of extremely randomised trees (Geurts et al. 2006) on standardised metrics.

    The sign of each metric is chosen to make its skewness positive. No affine change of a metric, a change of sign
    included, then changes the trees. The trees are kept as arrays (`nodes_`), which JSON stores exactly.

    Args:
        n_estimators: number of trees.
        min_samples_leaf: smallest number of pairs in a leaf.
        random_state: decides how the trees are drawn.

    Attributes:
        nodes_: arrays over the nodes of all trees: "left" and "right" (position of the child for metrics up to the
            threshold, and above it; a leaf's own position), "feature", "threshold" and "value" (mean of y over the
            node's training pairs).
        roots_: (n_estimators,) positions of the trees' roots in these arrays.

    >>> X = np.random.default_rng(0).uniform(size=(200, 2))
    >>> forest = ForestRegressor(n_estimators=50).fit(X, X[:, 0] > 0.5)
    >>> forest.predict([[0.2, 0.5], [0.8, 0.5]]).round(1).tolist()
    [0.0, 1.0]
    """

    def __init__(self, n_estimators: int = 200, min_samples_leaf: int = 2, random_state: int = 0) -> None:
        self.n_estimators = n_estimators
        self.min_samples_leaf = min_samples_leaf
        self.random_state = random_state

    def fit(self, X: Any, y: Any, pairs: Any = None) -> ForestRegressor:
        """Fit to (n, p) metrics and (n,) targets; the names of the pairs change nothing."""
        values, target = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        target = target.astype(np.float64)
        self.scaler_ = ClippedScaler().fit(values)
        skewness = ((values - self.scaler_.mean_) ** 3).sum(0)
        self.signs_ = np.where(skewness < 0, -1.0, 1.0)
        trees = ExtraTreesRegressor(
            self.n_estimators, min_samples_leaf=self.min_samples_leaf, random_state=self.random_state
        )
        # Sorted rows and a scaled y: otherwise the order of rows or the unit of y would decide between two equally
        # good splits, by the rounding of sums.
        centre, scale = target.mean(), target.std() or 1.0
        oriented = self._oriented(values)
        order = np.lexsort([target, *oriented.T])
        trees.fit(oriented[order], ((target - centre) / scale)[order])
        self._keep([estimator.tree_ for estimator in trees.estimators_], centre, scale)
        return self

    def _keep(self, trees: list[Any], centre: float, scale: float) -> None:
        offsets = np.cumsum([0, *(tree.node_count for tree in trees)])
        parts: dict[str, list[np.ndarray]] = {"left": [], "right": [], "feature": [], "threshold": [], "value": []}
        for tree, offset in zip(trees, offsets[:-1], strict=True):
            leaf = tree.children_left < 0
            here = np.arange(tree.node_count)
            parts["left"].append(offset + np.where(leaf, here, tree.children_left))
            parts["right"].append(offset + np.where(leaf, here, tree.children_right))
            parts["feature"].append(np.where(leaf, 0, tree.feature))
            parts["threshold"].append(np.where(leaf, 0.0, tree.threshold))
            parts["value"].append(centre + scale * tree.value[:, 0, 0])
        self.nodes_ = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        self.roots_ = offsets[:-1]

    def predict(self, X: Any, pairs: Any = None) -> np.ndarray:
        """Return (n,) predictions."""
        return self.contributions(X).sum(1) + self.intercept_

    @property
    def intercept_(self) -> float:
        """Mean of the values of the roots, which is the mean of y over the training pairs."""
        return float(self.nodes_["value"][self.roots_].mean())

    def contributions(self, X: Any) -> np.ndarray:
        """Return (n, p) contributions: how far each metric moves the prediction of each pair from `intercept_`.

        On the way from the root to a leaf, each split moves the mean of y, and the move counts for the metric of the
        split (Saabas 2014). With `intercept_`, the moves of a pair add up to its prediction.
        """
        check_is_fitted(self)
        rows = self._oriented(validate_data(self, X, dtype=np.float64, reset=False)).astype(np.float32)
        moved = np.zeros(rows.shape)
        nodes = self.nodes_
        # All pairs go down all trees together, one level after another.
        pair = np.repeat(np.arange(len(rows)), len(self.roots_))
        at = np.tile(self.roots_, len(rows))
        while len(at):
            feature = nodes["feature"][at]
            goes_left = rows[pair, feature] <= nodes["threshold"][at]
            there = np.where(goes_left, nodes["left"][at], nodes["right"][at])
            np.add.at(moved, (pair, feature), nodes["value"][there] - nodes["value"][at])
            goes_on = there != at
            at, pair = there[goes_on], pair[goes_on]
        return moved / len(self.roots_)

    def check(self) -> None:
        """Raise ValueError where the nodes are no trees, as in a damaged file."""
        nodes, count = self.nodes_, len(self.nodes_["left"])
        here = np.arange(count)
        if any(values.shape != (count,) for values in nodes.values()) or not len(self.roots_):
            raise ValueError("nodes of different numbers, or no tree")
        # A child stands behind its parent, so that every way ends.
        for side in (nodes["left"], nodes["right"]):
            if (side < here).any() or (side >= count).any():
                raise ValueError("a node's child is not behind it")
        if (self.roots_ < 0).any() or (self.roots_ >= count).any():
            raise ValueError("a root is not among the nodes")
        if (nodes["feature"] < 0).any() or (nodes["feature"] >= len(self.signs_)).any():
            raise ValueError("a node asks for a metric that there is not")

    def _oriented(self, values: np.ndarray) -> np.ndarray:
        return self.scaler_.transform(values) * self.signs_
