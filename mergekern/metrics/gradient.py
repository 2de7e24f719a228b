"""Gradient: lengths and angles between the gradients of two models, each on its own task's samples.

The encoder gradient is that of the loss with respect to all parameters of the encoder. The input gradient is that with
respect to the inputs, all samples flattened into one vector: it compares the first sample of one task with the first
of the other, and so on. Only tasks with equally many samples of one shape can be compared so; other pairs get NaN.
"""

from __future__ import annotations

import numpy as np

from mergekern.metrics.geometry import Geometry
from mergekern.statistics import ZooStatistics


def _encoder(statistics: ZooStatistics) -> Geometry:
    assert statistics.functional.encoder_gradients is not None
    return Geometry.from_statistics(statistics.functional.encoder_gradients)


def _input(statistics: ZooStatistics) -> Geometry:
    assert statistics.functional.input_gradients is not None
    return Geometry.from_statistics(statistics.functional.input_gradients)


def encoder_gradient_cosine_similarity(statistics: ZooStatistics) -> np.ndarray:
    """<e_i, e_j> / ‖e_i‖‖e_j‖; NaN where a gradient is zero."""
    return _encoder(statistics).cosine


def encoder_gradient_l2_distance(statistics: ZooStatistics) -> np.ndarray:
    """‖e_i − e_j‖."""
    return _encoder(statistics).distance


def encoder_gradient_dot_product(statistics: ZooStatistics) -> np.ndarray:
    """<e_i, e_j>."""
    return _encoder(statistics).inner.copy()


def input_gradient_cosine_similarity(statistics: ZooStatistics) -> np.ndarray:
    """<x_i, x_j> / ‖x_i‖‖x_j‖; NaN where a gradient is zero, or the two differ in shape."""
    return _input(statistics).cosine


def input_gradient_l2_distance(statistics: ZooStatistics) -> np.ndarray:
    """‖x_i − x_j‖; NaN where the two differ in shape."""
    return _input(statistics).distance


def input_gradient_dot_product(statistics: ZooStatistics) -> np.ndarray:
    """<x_i, x_j>; NaN where the two differ in shape."""
    return _input(statistics).inner.copy()
