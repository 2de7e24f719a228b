"""The catalogue of metrics: the one place that lists them.

The command line, the documentation, the tests and every table read it. To add a metric, write its function in the
module of its category, give it an entry here, and its value in closed form to `tests/metrics/test_closed_forms.py`;
`make readme` then adds it to docs/metrics.md. Every part of an entry is a literal: nothing is read from a
docstring, which `python -OO` strips.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mergekern.errors import OptionError
from mergekern.metrics import (
    activation,
    effective_rank,
    geometry,
    gradient,
    merge_probes,
    model_scores,
    subspace,
    subspace_errors,
)
from mergekern.metrics.remarks import REMARKS
from mergekern.statistics import FUNCTIONAL, EncoderGradientStatistics, FunctionalStatistics, ZooStatistics

# What the symbols of the formulas stand for.
NOTATION = """\
τ_i is the task vector of model i, τ_i^l its part in tensor l, g the Gram matrix of the whole task vectors;
s₁ ≥ s₂ the singular values of the 2×D stack [τ_i; τ_j] and p = s/Σs; σ, U and V the singular values and vectors of a
task matrix, k = 10; a_i the mean activation of model i over the calibration samples of all tasks, e_i and x_i the
gradients of its loss on its own task's samples with respect to the parameters of the encoder and to the inputs; ℓ_i and
A_i mean loss and accuracy on these samples, and M(τ_i, τ_j) the merge of two models by a method; own_i the accuracy of
model i on its task, and base_i that of the base."""

Category = Literal[
    "task-vector geometry", "effective rank", "subspace overlap", "activation", "gradient", "merge probes",
    "model scores",
]  # fmt: skip
# Activations and gradients come from running the models, and are attributes of FunctionalStatistics; merges come from
# running merged models.
Needs = Literal[
    "inner products", "spectra", "activations", "encoder_gradients", "input_gradients", "merges", "accuracies"
]


@dataclass(frozen=True)
class Metric:
    """A pairwise metric.

    Attributes:
        name: the published name; merge probes and model scores have names of ours.
        category: one of the five of the study, merge probes, or model scores.
        formula: in the symbols of `NOTATION`.
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
            if layer.is_matrix or self.needs != "spectra"
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
        return self.needs == "inner products"

    def is_estimated(self, statistics: ZooStatistics) -> bool:
        """Tell whether its values are estimates, from randomised factorisations."""
        return self.name in subspace_errors.ERRORS and statistics.is_randomized

    def is_possible(self, statistics: ZooStatistics) -> bool:
        """Tell whether the statistics hold what it needs."""
        if self.runs_models:
            return getattr(statistics.functional, self.needs) is not None
        if self.name in BOTTOM and statistics.is_randomized:
            return False
        return self.needs != "spectra" or statistics.has_spectra


# Name, formula, range, direction and function of a metric.
_Entry = tuple[str, str, tuple[float, float], Literal["higher", "lower"], Callable[..., np.ndarray]]


class _Kind(NamedTuple):
    """Properties that all metrics share which have one category and need the same statistics."""

    category: Category
    needs: Needs
    undefined: str
    explanation: str


_GEOMETRY = _Kind(
    "task-vector geometry",
    "inner products",
    undefined="a whole task vector is zero: the model equals the base",
    explanation="Lengths and angles of whole task vectors, from their Gram matrix g = Σ_l G_l.",
)
_EFFECTIVE_RANK = _Kind(
    "effective rank",
    "inner products",
    undefined="no tensor differs from the base in both models",
    explanation="How far the n×D stack of n task vectors is from one direction; n = 2 for the pairwise metrics.",
)
_SUBSPACE = _Kind(
    "subspace overlap",
    "spectra",
    undefined="no matrix differs from the base in both models with the rank that its singular vectors need",
    explanation="Whether two models change a matrix along the same directions, averaged over all matrices.",
)
_ACTIVATION = _Kind(
    "activation",
    "activations",
    undefined="a mean activation is zero",
    explanation="Lengths and angles of the models' mean activations.",
)
_ENCODER_GRADIENT = _Kind(
    "gradient",
    "encoder_gradients",
    undefined="a gradient is zero",
    explanation="Lengths and angles between the gradients of two models, each on its own task's samples.",
)
_INPUT_GRADIENT = _Kind(
    "gradient",
    "input_gradients",
    undefined="a gradient is zero, or the tasks differ in the number or the shape of their samples",
    explanation="Lengths and angles between the gradients of two models, each on its own task's samples.",
)
_MERGE_PROBE = _Kind(
    "merge probes",
    "merges",
    undefined="a loss is not finite, or a single model tells no sample right",
    explanation="What a merge method does to two models on samples of their own tasks, each alone or both together.",
)
_MODEL_SCORE = _Kind(
    "model scores",
    "accuracies",
    undefined="the score of one of the models, or of the base on its task, is not known",
    explanation="What is known of each model without any merge: how it does on its task, and how the base does there.",
)


def _metrics(kind: _Kind, *entries: _Entry) -> list[Metric]:
    return [
        Metric(
            name,
            kind.category,
            formula,
            bounds,
            more,
            kind.needs,
            kind.undefined,
            kind.explanation,
            function,
            REMARKS.get(name, ""),
        )
        for name, formula, bounds, more, function in entries
    ]


CATALOGUE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_metrics(
            _GEOMETRY,
            ("task_vector_cosine_similarity", "g_ij / √(g_ii g_jj)", (-1, 1), "higher",
             geometry.task_vector_cosine_similarity),
            ("task_vector_l2_distance", "√(g_ii + g_jj − 2 g_ij)", (0, math.inf), "lower",
             geometry.task_vector_l2_distance),
            ("task_vector_dot_product", "g_ij", (-math.inf, math.inf), "higher", geometry.task_vector_dot_product),
            ("weight_space_angle", "arccos of the cosine, degrees", (0, 180), "lower", geometry.weight_space_angle),
            ("task_vector_magnitude_ratio", "shorter ‖τ‖ / longer ‖τ‖", (0, 1), "higher",
             geometry.task_vector_magnitude_ratio),
        ),
        *_metrics(
            _EFFECTIVE_RANK,
            ("effective_rank", "exp(−Σ p ln p)", (1, 2), "lower", effective_rank.effective_rank),
            ("effective_rank_mergeability_score", "clip(2 − effective_rank, 0, 1)", (0, 1), "higher",
             effective_rank.effective_rank_mergeability_score),
            ("stable_rank", "(Σs)² / Σs²", (1, 2), "lower", effective_rank.stable_rank),
            ("spectral_gap", "(s₁ − s₂) / s₁", (0, 1), "higher", effective_rank.spectral_gap),
            ("singular_value_ratio", "s₂ / s₁", (0, 1), "lower", effective_rank.singular_value_ratio),
            ("layerwise_effective_rank", "Σ_l w_l er_l / Σ_l w_l, w_l = ‖τ_i^l‖ + ‖τ_j^l‖", (1, 2), "lower",
             effective_rank.layerwise_effective_rank),
            ("layerwise_effective_rank_mergeability_score", "clip(2 − layerwise_effective_rank, 0, 1)", (0, 1),
             "higher", effective_rank.layerwise_effective_rank_mergeability_score),
        ),
        *_metrics(
            _SUBSPACE,
            ("singular_value_overlap", "mean_l cos(σ_i, σ_j), top 100", (0, 1), "higher",
             subspace.singular_value_overlap),
            ("subspace_overlap", "mean_l ‖U_iᵀU_j‖_F / k, top k", (0, 1), "higher", subspace.subspace_overlap),
            ("right_subspace_overlap_top_k", "mean_l ‖V_iᵀV_j‖_F / √k, top k", (0, 1), "higher",
             subspace.right_subspace_overlap_top_k),
            ("right_subspace_overlap_bottom_k", "mean_l ‖V_iᵀV_j‖_F / √k, bottom k", (0, 1), "higher",
             subspace.right_subspace_overlap_bottom_k),
            ("interaction_matrix_overlap_top_k", "mean_l ‖V_iᵀV_j‖_F² / k, top k", (0, 1), "higher",
             subspace.interaction_matrix_overlap_top_k),
            ("interaction_matrix_overlap_bottom_k", "mean_l ‖V_iᵀV_j‖_F² / k, bottom k", (0, 1), "higher",
             subspace.interaction_matrix_overlap_bottom_k),
        ),
        *_metrics(
            _ACTIVATION,
            ("activation_l2_distance", "‖a_i − a_j‖", (0, math.inf), "lower", activation.activation_l2_distance),
            ("activation_cosine_similarity", "<a_i, a_j> / ‖a_i‖‖a_j‖", (-1, 1), "higher",
             activation.activation_cosine_similarity),
            ("activation_magnitude_ratio", "shorter ‖a‖ / longer ‖a‖", (0, 1), "higher",
             activation.activation_magnitude_ratio),
            ("activation_dot_product", "<a_i, a_j>", (-math.inf, math.inf), "higher",
             activation.activation_dot_product),
        ),
        *_metrics(
            _ENCODER_GRADIENT,
            ("encoder_gradient_cosine_similarity", "<e_i, e_j> / ‖e_i‖‖e_j‖", (-1, 1), "higher",
             gradient.encoder_gradient_cosine_similarity),
            ("encoder_gradient_l2_distance", "‖e_i − e_j‖", (0, math.inf), "lower",
             gradient.encoder_gradient_l2_distance),
            ("encoder_gradient_dot_product", "<e_i, e_j>", (-math.inf, math.inf), "higher",
             gradient.encoder_gradient_dot_product),
        ),
        *_metrics(
            _INPUT_GRADIENT,
            ("input_gradient_cosine_similarity", "<x_i, x_j> / ‖x_i‖‖x_j‖", (-1, 1), "higher",
             gradient.input_gradient_cosine_similarity),
            ("input_gradient_l2_distance", "‖x_i − x_j‖", (0, math.inf), "lower", gradient.input_gradient_l2_distance),
            ("input_gradient_dot_product", "<x_i, x_j>", (-math.inf, math.inf), "higher",
             gradient.input_gradient_dot_product),
        ),
    )
}  # fmt: skip

# The metrics of bottom-k subspaces, which a randomised SVD does not define.
BOTTOM = ("right_subspace_overlap_bottom_k", "interaction_matrix_overlap_bottom_k")

_LOSS: tuple[tuple[float, float], Literal["lower"]] = (-math.inf, math.inf), "lower"
_KEPT_ACCURACY: tuple[tuple[float, float], Literal["higher"]] = (0, math.inf), "higher"
# A table has one column of each for every merge method, which it names: solo_loss_mean[tsv].
MERGE_PROBES: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_metrics(
            _MERGE_PROBE,
            ("solo_loss_mean", "mean over i, j of ℓ_i(M(τ_i, 0)) − ℓ_i(θ_i)", *_LOSS,
             merge_probes.solo_loss_mean),
            ("solo_loss_worst", "larger of ℓ_i(M(τ_i, 0)) − ℓ_i(θ_i) over i, j", *_LOSS,
             merge_probes.solo_loss_worst),
            ("solo_accuracy_mean", "mean over i, j of A_i(M(τ_i, 0)) / A_i(θ_i)", *_KEPT_ACCURACY,
             merge_probes.solo_accuracy_mean),
            ("solo_accuracy_worst", "smaller of A_i(M(τ_i, 0)) / A_i(θ_i) over i, j", *_KEPT_ACCURACY,
             merge_probes.solo_accuracy_worst),
            ("direct_loss_mean", "mean over i, j of ℓ_i(M(τ_i, τ_j)) − ℓ_i(θ_i)", *_LOSS,
             merge_probes.direct_loss_mean),
            ("direct_loss_worst", "larger of ℓ_i(M(τ_i, τ_j)) − ℓ_i(θ_i) over i, j", *_LOSS,
             merge_probes.direct_loss_worst),
            ("direct_accuracy_mean", "mean over i, j of A_i(M(τ_i, τ_j)) / A_i(θ_i)", *_KEPT_ACCURACY,
             merge_probes.direct_accuracy_mean),
            ("direct_accuracy_worst", "smaller of A_i(M(τ_i, τ_j)) / A_i(θ_i) over i, j", *_KEPT_ACCURACY,
             merge_probes.direct_accuracy_worst),
        ),
    )
}  # fmt: skip

# What `prediction.model_scores` makes of a list of models, and `merge_probes` measures if asked to; not among the
# metrics that "all" stands for.
MODEL_SCORES: dict[str, Metric] = {
    metric.name: metric
    for metric in _metrics(
        _MODEL_SCORE,
        ("own_accuracy_mean", "(own_i + own_j) / 2", (0, 1), "higher", model_scores.own_accuracy_mean),
        ("own_accuracy_min", "min(own_i, own_j)", (0, 1), "higher", model_scores.own_accuracy_min),
        ("base_accuracy_mean", "(base_i + base_j) / 2", (0, 1), "higher", model_scores.base_accuracy_mean),
        ("base_accuracy_min", "min(base_i, base_j)", (0, 1), "higher", model_scores.base_accuracy_min),
        ("own_loss_mean", "(own ℓ_i + own ℓ_j) / 2", *_LOSS, model_scores.own_loss_mean),
        ("own_loss_max", "max(own ℓ_i, own ℓ_j)", *_LOSS, model_scores.own_loss_max),
        ("base_loss_mean", "(base ℓ_i + base ℓ_j) / 2", *_LOSS, model_scores.base_loss_mean),
        ("base_loss_max", "max(base ℓ_i, base ℓ_j)", *_LOSS, model_scores.base_loss_max),
    )
}

# The metric that ranks pairs by default.
RANKED_BY = "task_vector_cosine_similarity"
