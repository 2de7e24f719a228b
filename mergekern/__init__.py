"""mergekern: pairwise mergeability metrics of fine-tuned models, for all pairs at once.

>>> import mergekern
>>> len(mergekern.CATALOGUE)
28
"""

from mergekern.calibration import Calibration
from mergekern.engine import Plan, Progress, compute_all, measure, plan
from mergekern.errors import (
    CalibrationError,
    CheckpointError,
    MergekernError,
    MismatchError,
    NonFiniteError,
    OptionError,
    StatisticsError,
)
from mergekern.metrics import CATALOGUE
from mergekern.statistics import ZooStatistics
from mergekern.table import MetricTable

__all__ = [
    "CATALOGUE",
    "Calibration",
    "CalibrationError",
    "CheckpointError",
    "MergekernError",
    "MetricTable",
    "MismatchError",
    "NonFiniteError",
    "OptionError",
    "Plan",
    "Progress",
    "StatisticsError",
    "ZooStatistics",
    "compute_all",
    "measure",
    "plan",
]
