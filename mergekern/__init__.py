"""mergekern: pairwise mergeability metrics of fine-tuned models, for all pairs at once.

>>> import mergekern
>>> len(mergekern.CATALOGUE)
28
"""

from mergekern import regularizers
from mergekern.calibration import Calibration
from mergekern.engine import Plan, compute_all, measure, measure_into, plan
from mergekern.errors import (
    CalibrationError,
    CheckpointError,
    MergekernError,
    MismatchError,
    NonFiniteError,
    OptionError,
    OutputError,
    PredictionError,
    StatisticsError,
)
from mergekern.fingerprints import Fingerprints, fingerprint
from mergekern.groups import group_metrics
from mergekern.incremental import add_models, remove_models
from mergekern.merge_probing import merge_probes
from mergekern.merging.apply import merge, merge_all
from mergekern.merging.mergekit import mergekit_config
from mergekern.merging.registry import METHODS
from mergekern.metrics import CATALOGUE, MERGE_PROBES
from mergekern.progress import Progress
from mergekern.shards import combine, measure_shard
from mergekern.statistics import ZooStatistics
from mergekern.statistics.verification import Damage, verify
from mergekern.table import MetricTable

__all__ = [
    "CATALOGUE",
    "MERGE_PROBES",
    "METHODS",
    "Calibration",
    "CalibrationError",
    "CheckpointError",
    "Damage",
    "Fingerprints",
    "MergekernError",
    "MetricTable",
    "MismatchError",
    "NonFiniteError",
    "OptionError",
    "OutputError",
    "Plan",
    "PredictionError",
    "Progress",
    "StatisticsError",
    "ZooStatistics",
    "add_models",
    "combine",
    "compute_all",
    "fingerprint",
    "group_metrics",
    "measure",
    "measure_into",
    "measure_shard",
    "merge",
    "merge_all",
    "merge_probes",
    "mergekit_config",
    "plan",
    "regularizers",
    "remove_models",
    "verify",
]
