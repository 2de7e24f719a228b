"""Metric: a pairwise metric as the catalogue lists it, and its values from the statistics of a zoo."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mergekern.errors import OptionError
from mergekern.metrics import subspace, subspace_errors
from mergekern.statistics import FUNCTIONAL, EncoderGradientStatistics, FunctionalStatistics, ZooStatistics

Category = Literal[
    "task-vector geometry", "effective rank", "subspace overlap", "activation", "gradient", "merge probes",
    "model scores", "interference", "representation",
]  # fmt: skip
# Activations and gradients come from running the models, and are attributes of FunctionalStatistics; merges come from
# running merged models.
Needs = Literal[
    "inner products", "spectra", "activations", "encoder_gradients", "input_gradients", "merges", "accuracies",
    "coordinates", "interference", "activation_kernels",
]  # fmt: skip


# The metrics of bottom-k subspaces, which a randomised SVD does not define.
BOTTOM = ("right_subspace_overlap_bottom_k", "interaction_matrix_overlap_bottom_k")
# What a randomised SVD does not define: singular vectors one by one, too, have no estimate of their errors.
EXACT_ONLY = (*BOTTOM, "singular_task_interference")
# What only matrices have.
OF_MATRICES = ("spectra", "interference")


@dataclass(frozen=True)
class Metric:
    """A pairwise metric.

    Attributes:
        name: the published name; merge probes and model scores have names of ours.
        category: one of the five of the study, one of ours beyond them, merge probes, or model scores.
        formula: in the symbols of `catalogue.NOTATION`.
        range: smallest and largest value.
        more_mergeable: whether higher or lower values promise a better merge, as the study's authors expect.
        needs: the statistics it is computed from.
        undefined: why a pair can be without a value.
        explanation: what the metrics of its category measure, in a sentence.
        function: statistics -> (N, N) matrix, NaN where undefined. Metrics of spectra also take `frozen` and
            `small_tensors`; merge probes take `MergeStatistics`, and model scores `KnownScores`.
        remark: what a reader of its values must know; "" without one.
        symmetric: whether a pair has the same value in both orders. A table has one row for each unordered pair, so
            it holds no other metrics.
    """

    name: str
    category: Category
    formula: str
    range: tuple[float, float]
    more_mergeable: Literal["higher", "lower"]
    needs: Needs
    undefined: str
    explanation: str
    function: Callable[..., np.ndarray]
    remark: str = ""
    symmetric: bool = True

    def compute(
        self, statistics: ZooStatistics, frozen: subspace.Frozen = "exclude",
        small_tensors: subspace.SmallTensors = "include",
    ) -> np.ndarray:  # fmt: skip
        """Return the (N, N) values of all pairs; the diagonal compares each model with itself.

        They lie in `range`: what rounding carries beyond it, by a few units in the last place, is cut off.

        Raises:
            OptionError: the statistics do not hold what the metric needs of running models.
        """
        self._check_functional(statistics)
        options = {"frozen": frozen, "small_tensors": small_tensors} if self.needs == "spectra" else {}
        values = self.function(statistics, **options)
        return values if self.range == (-math.inf, math.inf) else np.clip(values, *self.range)

    def compute_layers(
        self,
        statistics: ZooStatistics,
        frozen: subspace.Frozen = "exclude",
        small_tensors: subspace.SmallTensors = "include",
    ) -> dict[str, np.ndarray]:
        """Return the values of each tensor alone, name -> (N, N), where the metric is defined for it.

        Raises:
            OptionError: as for `compute`.
        """
        self._check_functional(statistics)
        if self.needs == "encoder_gradients":
            assert statistics.functional.encoder_gradients is not None
            alone = {
                layer.name: FunctionalStatistics(encoder_gradients=EncoderGradientStatistics((layer,)))
                for layer in statistics.functional.encoder_gradients.layers
            }
            return {
                name: self.compute(dataclasses.replace(statistics, functional=part)) for name, part in alone.items()
            }
        if self.runs_models:
            return {}
        return {
            layer.name: self.compute(statistics.only(layer), frozen, small_tensors)
            for layer in statistics.layers
            if layer.is_matrix or self.needs not in OF_MATRICES
        }

    def compute_error(
        self, statistics: ZooStatistics, frozen: subspace.Frozen = "exclude",
        small_tensors: subspace.SmallTensors = "include",
    ) -> np.ndarray:  # fmt: skip
        """Return the estimated errors (N, N) of the values of all pairs; zeros where they are rounding alone."""
        if not self.is_estimated(statistics):
            return np.zeros((len(statistics.models),) * 2)
        return subspace_errors.ERRORS[self.name](statistics, frozen=frozen, small_tensors=small_tensors)

    def compute_layer_errors(
        self, statistics: ZooStatistics, frozen: subspace.Frozen = "exclude",
        small_tensors: subspace.SmallTensors = "include",
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Return the estimated errors of `compute_layers`, name -> (N, N); empty where all are rounding alone."""
        layers = [layer for layer in statistics.layers if layer.is_matrix and self.is_estimated(statistics)]
        return {layer.name: self.compute_error(statistics.only(layer), frozen, small_tensors) for layer in layers}

    def _check_functional(self, statistics: ZooStatistics) -> None:
        if self.needs in FUNCTIONAL and not self.is_possible(statistics):
            raise OptionError(
                f"{self.name}: these statistics were measured without {self.needs.replace('_', ' ')}; measure them "
                "again with this metric, and with calibration="
            )

    @property
    def runs_models(self) -> bool:
        """Whether it needs models to be run on calibration data."""
        return self.needs in (*FUNCTIONAL, "merges")

    @property
    def every_tensor(self) -> bool:
        """Whether it is defined for each tensor alone, and not for matrices only."""
        return self.needs in ("inner products", "coordinates")

    def is_estimated(self, statistics: ZooStatistics) -> bool:
        """Tell whether its values are estimates, from randomised factorisations."""
        return self.name in subspace_errors.ERRORS and statistics.is_randomized

    def is_possible(self, statistics: ZooStatistics) -> bool:
        """Tell whether the statistics hold what it needs."""
        if self.runs_models:
            return getattr(statistics.functional, self.needs) is not None
        if self.name in EXACT_ONLY and statistics.is_randomized:
            return False
        has = {
            "spectra": statistics.has_spectra, "coordinates": statistics.has_coordinates,
            "interference": statistics.has_interference,
        }  # fmt: skip
        return has.get(self.needs, True)
