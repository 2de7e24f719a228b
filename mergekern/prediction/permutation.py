"""Metrics of renamed models, for permutation tests where scores or metrics are missing for some pairs.

A permutation test asks what a predictor would reach if the metrics belonged to other models. The scores and their pairs
stay as they are, and the models behind the metrics change names. A pair that was not measured has metrics all the same,
so that every renamed pair finds its row, however few scores there are.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mergekern.prediction.pairs import task_codes


class RenamedMetrics:
    """Metrics of all pairs of the models of some measured pairs, to be drawn under new names of the models.

    Where a pair has no metrics, each draw fills the gap with additive effects of its two models and with what these
    effects leave of a random pair that has them.

    Args:
        X: (n, p) metrics of pairs, those without a score included; NaN where there is none.
        pairs: (n, 2) names of these pairs.
        measured: (m, 2) names of the pairs with a score.
        random: generator of the draws.
    """

    def __init__(self, X: pd.DataFrame, pairs: np.ndarray, measured: np.ndarray, random: np.random.Generator) -> None:
        self.random = random
        names, self.codes = task_codes(measured)
        values = X.to_numpy(dtype=np.float64)
        known = np.isin(pairs, names).all(1) & np.isfinite(values).all(1)
        values = values[known]
        first, second = np.searchsorted(names, pairs[known]).T
        count = len(names)
        self.matrix = np.full((count, count, values.shape[1]), np.nan)
        self.matrix[first, second] = self.matrix[second, first] = values
        one, other = np.triu_indices(count, 1)
        lacking = np.isnan(self.matrix[one, other]).any(1)
        self.gaps = one[lacking], other[lacking]
        if lacking.any():
            self._explain(values, first, second)

    def _explain(self, values: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
        """Fit the additive effects that stand in the gaps, and keep what they leave."""
        design = np.zeros((len(values), len(self.matrix)))
        design[np.arange(len(values)), first] = design[np.arange(len(values)), second] = 1.0
        inverse = np.linalg.pinv(design)
        effects = inverse @ values
        self.filled = effects[self.gaps[0]] + effects[self.gaps[1]]
        # A pair that its models' effects follow leaves less than its true residual.
        left = 1 - np.einsum("ij,ji->i", design, inverse)
        free = left > 1e-6
        self.residuals = (values - design @ effects)[free] / np.sqrt(left[free])[:, None]

    def draw(self) -> np.ndarray:
        """Return (m, p) metrics of the measured pairs after a random permutation of the models' names."""
        matrix = self.matrix
        if len(self.gaps[0]):
            matrix = matrix.copy()
            values = self.filled
            if len(self.residuals):
                values = values + self.residuals[self.random.integers(len(self.residuals), size=len(values))]
            matrix[self.gaps] = matrix[self.gaps[::-1]] = values
        renamed = np.argsort(self.random.permutation(len(matrix)))[self.codes]
        return matrix[renamed[:, 0], renamed[:, 1]]
