"""mergekern: pairwise mergeability metrics of fine-tuned models, for all pairs at once.

>>> import mergekern
>>> len(mergekern.CATALOGUE)
18
"""

from mergekern.engine import Plan, Progress, compute_all, measure, plan
from mergekern.errors import (
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
