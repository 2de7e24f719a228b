"""The catalogue of metrics: the one place that lists them.

The command line, the documentation, the tests and every table read it. To add a metric, write its function in the
module of its category, give it an entry here, and its value in closed form to `tests/metrics/test_closed_forms.py`;
`make readme` then adds it to docs/metrics.md. Every part of an entry is a literal: nothing is read from a
docstring, which `python -OO` strips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from mergekern.metrics import (
    activation,
    effective_rank,
    geometry,
    gradient,
    interference,
    merge_probes,
    model_scores,
    subspace,
)
from mergekern.metrics.metric import Category, Metric, Needs
from mergekern.metrics.remarks import REMARKS

# What the symbols of the formulas stand for.
NOTATION = """\
τ_i is the task vector of model i, τ_i^l its part in tensor l, g the Gram matrix of the whole task vectors;
s₁ ≥ s₂ the singular values of the 2×D stack [τ_i; τ_j] and p = s/Σs; σ, U and V the singular values and vectors of a
task matrix, k = 10; a_i the mean activation of model i over the calibration samples of all tasks, e_i and x_i the
gradients of its loss on its own task's samples with respect to the parameters of the encoder and to the inputs; ℓ_i and
A_i mean loss and accuracy on these samples, and M(τ_i, τ_j) the merge of two models by a method; own_i the accuracy of
model i on its task, and base_i that of the base. |·| of a set is its number of elements; C_i are the coordinates e with
τ_i[e] ≠ 0, T_i those of them that trimming keeps, the 20 % of each tensor with the largest |τ_i[e]|, and O_ij those
with τ_i[e]·τ_j[e] < 0; τ̄_i is the mean element of τ_i; K_i are the inner products of the activations of model i for
all pairs of samples, centred along both sides."""

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
_SIGNS = _Kind(
    "interference",
    "coordinates",
    undefined="no coordinate differs from the base in both models",
    explanation="Where two models change the same weights in opposite ways: counts of coordinates, and of directions.",
)
_TRIMMED = _SIGNS._replace(undefined=_GEOMETRY.undefined)
_CORRELATION = _SIGNS._replace(undefined="a task vector has the same value in all coordinates")
_SINGULAR = _SIGNS._replace(
    needs="interference", undefined="no matrix differs from the base in both models with a rank of at least k"
)
_REPRESENTATION = _Kind(
    "representation",
    "activation_kernels",
    undefined="a model gives the same activation for all samples",
    explanation="Whether two models place the same samples alike, sample by sample.",
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

# Metrics beyond those of the study: "all" does not stand for them, their names and those of their categories do.
ADDITIONAL: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_metrics(
            _SIGNS,
            ("task_vector_sign_disagreement", "|C_i ∩ C_j ∩ O_ij| / |C_i ∩ C_j|", (0, 1), "lower",
             interference.task_vector_sign_disagreement),
            ("task_vector_weighted_sign_disagreement", "Σ_{e∈O_ij} |τ_i τ_j| / Σ_e |τ_i τ_j|", (0, 1), "lower",
             interference.task_vector_weighted_sign_disagreement),
        ),
        *_metrics(
            _TRIMMED,
            ("ties_interference", "|T_i ∩ T_j ∩ O_ij| / |T_i ∪ T_j|", (0, 1), "lower", interference.ties_interference),
        ),
        *_metrics(
            _CORRELATION,
            ("task_vector_pearson_correlation", "cos(τ_i − τ̄_i, τ_j − τ̄_j)", (-1, 1), "higher",
             interference.task_vector_pearson_correlation),
        ),
        *_metrics(
            _SINGULAR,
            ("singular_task_interference",
             "mean_l ‖(UᵀU − I) Σ (VᵀV − I)‖₁, U = [U_i U_j], Σ = diag(σ_i, σ_j), V = [V_i V_j], top k", (0, math.inf),
             "lower", interference.singular_task_interference),
        ),
        *_metrics(
            _REPRESENTATION,
            ("activation_linear_cka", "<K_i, K_j> / ‖K_i‖_F‖K_j‖_F", (0, 1), "higher",
             activation.activation_linear_cka),
        ),
    )
}  # fmt: skip

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

# The metric that ranks pairs by default. Of the 28 it ranks models that were never merged best, with the sign that its
# authors expect: docs/metrics.md has the figures, python/metric_study.py computes them.
RANKED_BY = "task_vector_l2_distance"
