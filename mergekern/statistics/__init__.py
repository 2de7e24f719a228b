"""The sufficient statistics of a zoo: everything that the metrics need, and no weights.

Every metric is a function of them. On disk they are a folder (see `manifest`), which a run fills block by block.
"""

from mergekern.statistics.functional import (
    FUNCTIONAL,
    ActivationStatistics,
    EncoderGradientStatistics,
    FunctionalStatistics,
    InputGradientStatistics,
)
from mergekern.statistics.layers import Bases, LayerStatistics, SpectrumStatistics
from mergekern.statistics.zoo import ZooStatistics

__all__ = [
    "FUNCTIONAL",
    "ActivationStatistics",
    "Bases",
    "EncoderGradientStatistics",
    "FunctionalStatistics",
    "InputGradientStatistics",
    "LayerStatistics",
    "SpectrumStatistics",
    "ZooStatistics",
]
