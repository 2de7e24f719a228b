"""Predicting how well pairs merge, from the table of metrics; validated, explained, and beside what needs no metric.

Estimators, splitters and scalers follow scikit-learn's conventions: rows are pairs, columns are metrics.
"""

from mergekern.prediction.analysis import (
    Fingerprints,
    VarianceComponents,
    failure_signatures,
    fingerprints,
    variance_components,
)
from mergekern.prediction.individual import individual_correlations
from mergekern.prediction.mlp import mlp_baseline
from mergekern.prediction.pairs import CompletePairs, IncompletePairsWarning, complete_pairs
from mergekern.prediction.pearson import PearsonRegressor, fit_exact
from mergekern.prediction.published import fit_published
from mergekern.prediction.scalers import RankNormalScaler
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
    PairSplitter,
)
from mergekern.prediction.validation import PairValidation, cross_validate_pairs

__all__ = [
    "CompletePairs",
    "Fingerprints",
    "Fold",
    "GreedySelector",
    "IncompletePairsWarning",
    "LeaveOneTaskOut",
    "LeaveTasksOut",
    "LeaveTwoTasksOut",
    "MeasuredPairs",
    "PairSplitter",
    "PairValidation",
    "PearsonRegressor",
    "RankNormalScaler",
    "Selection",
    "VarianceComponents",
    "ablate_categories",
    "backward_elimination",
    "complete_pairs",
    "cross_validate_pairs",
    "failure_signatures",
    "fingerprints",
    "fit_exact",
    "fit_published",
    "forward_selection",
    "individual_correlations",
    "mlp_baseline",
    "variance_components",
]
