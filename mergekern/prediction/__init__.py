"""Prediction of how well pairs merge, from the table of metrics: fitted, validated, explained, compared with baselines.

Estimators, splitters and scalers follow scikit-learn's conventions: rows are pairs, columns are metrics.
"""

from mergekern.prediction.additive import TaskEffectsRegressor
from mergekern.prediction.analysis import (
    Fingerprints,
    VarianceComponents,
    failure_signatures,
    fingerprints,
    variance_components,
)
from mergekern.prediction.budgets import budget_curve
from mergekern.prediction.decisions import best_group, best_method, best_pair, best_partners, next_measurements
from mergekern.prediction.forest import ForestRegressor
from mergekern.prediction.individual import individual_correlations
from mergekern.prediction.intervals import ConformalIntervals, conformal_intervals
from mergekern.prediction.linear import ClippedScaler, LinearMetricRegressor
from mergekern.prediction.mlp import mlp_baseline
from mergekern.prediction.model import MergePredictor
from mergekern.prediction.model_scores import model_scores
from mergekern.prediction.pairs import CompletePairs, IncompletePairsWarning, UnnamedPairsWarning, complete_pairs
from mergekern.prediction.pearson import PearsonRegressor, fit_exact
from mergekern.prediction.planning import plan_measurements
from mergekern.prediction.predictors import PREDICTORS, AutoRegressor, available_kind, make_predictor
from mergekern.prediction.prior import PriorRegressor, normalized_accuracy
from mergekern.prediction.probe_sum import ProbeSumRegressor
from mergekern.prediction.published import fit_published
from mergekern.prediction.recommendation import recommend
from mergekern.prediction.scalers import RankNormalScaler
from mergekern.prediction.scores import align_scores, read_methods, read_scores
from mergekern.prediction.selection import (
    GreedySelector,
    Selection,
    ablate_categories,
    backward_elimination,
    forward_selection,
)
from mergekern.prediction.splitters import (
    Fold,
    LeaveOneTaskOut,
    LeaveTasksOut,
    LeaveTwoTasksOut,
    MeasuredPairs,
    PairFolds,
    PairSplitter,
)
from mergekern.prediction.validation import PairValidation, cross_validate_pairs

__all__ = [
    "PREDICTORS",
    "AutoRegressor",
    "ClippedScaler",
    "CompletePairs",
    "ConformalIntervals",
    "Fingerprints",
    "Fold",
    "ForestRegressor",
    "GreedySelector",
    "IncompletePairsWarning",
    "LeaveOneTaskOut",
    "LeaveTasksOut",
    "LeaveTwoTasksOut",
    "LinearMetricRegressor",
    "MeasuredPairs",
    "MergePredictor",
    "PairFolds",
    "PairSplitter",
    "PairValidation",
    "PearsonRegressor",
    "PriorRegressor",
    "ProbeSumRegressor",
    "RankNormalScaler",
    "Selection",
    "TaskEffectsRegressor",
    "UnnamedPairsWarning",
    "VarianceComponents",
    "ablate_categories",
    "align_scores",
    "available_kind",
    "backward_elimination",
    "best_group",
    "best_method",
    "best_pair",
    "best_partners",
    "budget_curve",
    "complete_pairs",
    "conformal_intervals",
    "cross_validate_pairs",
    "failure_signatures",
    "fingerprints",
    "fit_exact",
    "fit_published",
    "forward_selection",
    "individual_correlations",
    "make_predictor",
    "mlp_baseline",
    "model_scores",
    "next_measurements",
    "normalized_accuracy",
    "plan_measurements",
    "read_methods",
    "read_scores",
    "recommend",
    "variance_components",
]
