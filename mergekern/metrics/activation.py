"""Activation: lengths and angles of the models' mean activations.

a_i is the mean, over the calibration samples of all tasks, of the output of one layer of model i. Linear CKA compares
the outputs sample by sample.
"""

from __future__ import annotations

import numpy as np

from mergekern.metrics.geometry import Geometry
from mergekern.statistics import ZooStatistics


def _geometry(statistics: ZooStatistics) -> Geometry:
    assert statistics.functional.activations is not None
    return Geometry.from_statistics(statistics.functional.activations)


def activation_l2_distance(statistics: ZooStatistics) -> np.ndarray:
    """‖a_i − a_j‖."""
    return _geometry(statistics).distance


def activation_cosine_similarity(statistics: ZooStatistics) -> np.ndarray:
    """<a_i, a_j> / ‖a_i‖‖a_j‖; NaN where a mean activation is zero."""
    return _geometry(statistics).cosine


def activation_magnitude_ratio(statistics: ZooStatistics) -> np.ndarray:
    """Shorter length / longer length; NaN where a mean activation is zero."""
    return _geometry(statistics).magnitude_ratio


def activation_dot_product(statistics: ZooStatistics) -> np.ndarray:
    """<a_i, a_j>."""
    return _geometry(statistics).inner.copy()


def activation_linear_cka(statistics: ZooStatistics) -> np.ndarray:
    """Linear CKA of activations (Kornblith et al., arXiv 1905.00414, equation 3, with the biased estimate of HSIC).

    <K_i, K_j> / ‖K_i‖‖K_j‖ of the centred kernels of the samples; NaN where all samples have one activation.
    """
    kernels = statistics.functional.activation_kernels
    assert kernels is not None
    return Geometry.from_statistics(kernels).cosine
