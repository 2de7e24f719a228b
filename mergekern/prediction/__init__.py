"""Predicting how well pairs merge, from the table of metrics; validated, explained, and beside what needs no metric.

Estimators, splitters and scalers follow scikit-learn's conventions: rows are pairs, columns are metrics.
"""

from mergekern.prediction.pairs import CompletePairs, IncompletePairsWarning, complete_pairs
from mergekern.prediction.pearson import PearsonRegressor
from mergekern.prediction.published import fit_published
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
    "Fold",
    "IncompletePairsWarning",
    "LeaveOneTaskOut",
    "LeaveTasksOut",
    "LeaveTwoTasksOut",
    "MeasuredPairs",
    "PairSplitter",
    "PairValidation",
    "PearsonRegressor",
    "complete_pairs",
    "cross_validate_pairs",
    "fit_published",
]
