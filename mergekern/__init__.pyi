"""What `import mergekern` offers, and where it is; read by type checkers and, for loading on first use, at run time."""

from . import checkpoints, distributed, evaluation, metrics, prediction, report, sketches, tables
from ._internal.versions import __version__
from .api import compute_all, measure, measure_into
from .distributed.incremental import add_models, remove_models
from .distributed.shards import combine, measure_shard
from .errors import (
    CalibrationError,
    CheckpointError,
    EvaluationError,
    MergekernError,
    MismatchError,
    NonFiniteError,
    OptionError,
    OutputError,
    PredictionError,
    StatisticsError,
)
from .evaluation.best import best_merge
from .evaluation.measure import measure_merges
from .functional.calibration import Calibration
from .functional.merge_probes import merge_probes
from .measurement.cost import Cost, estimate_cost
from .measurement.options import MeasureOptions
from .merging.adapters.merge import MergedAdapter, merge_adapters
from .merging.adapters.registry import COMBINATIONS
from .merging.merge import merge, merge_all
from .merging.mergekit import mergekit_config
from .merging.recipes.merge_recipe import merge_recipe
from .merging.registry import METHODS
from .metrics import ADDITIONAL, CATALOGUE, MERGE_PROBES, MODEL_SCORES
from .prediction.model_scores import model_scores
from .progress import Progress
from .sketches.measure import sketch
from .sketches.sketches import Sketches
from .statistics import ZooStatistics
from .statistics.verification import Damage, verify
from .tables.groups import group_metrics
from .tables.metric_table import MetricTable
from .training import regularizers

__all__ = [
    "ADDITIONAL",
    "CATALOGUE",
    "COMBINATIONS",
    "MERGE_PROBES",
    "METHODS",
    "MODEL_SCORES",
    "Calibration",
    "CalibrationError",
    "CheckpointError",
    "Cost",
    "Damage",
    "EvaluationError",
    "MeasureOptions",
    "MergedAdapter",
    "MergekernError",
    "MetricTable",
    "MismatchError",
    "NonFiniteError",
    "OptionError",
    "OutputError",
    "PredictionError",
    "Progress",
    "Sketches",
    "StatisticsError",
    "ZooStatistics",
    "__version__",
    "add_models",
    "best_merge",
    "checkpoints",
    "combine",
    "compute_all",
    "distributed",
    "estimate_cost",
    "evaluation",
    "group_metrics",
    "measure",
    "measure_into",
    "measure_merges",
    "measure_shard",
    "merge",
    "merge_adapters",
    "merge_all",
    "merge_probes",
    "merge_recipe",
    "mergekit_config",
    "metrics",
    "model_scores",
    "prediction",
    "regularizers",
    "remove_models",
    "report",
    "sketch",
    "sketches",
    "tables",
    "verify",
]
