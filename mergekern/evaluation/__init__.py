"""Evaluation: merges of a zoo measured by the user's own number, up to the best merge.

An evaluator gives a model a number on a task: a function of the user (`evaluator`), or one of those that are ready
(`classification`, `perplexity`, `harness`). `models` makes of a state dict what an evaluator takes, `measure` fills in
files of scores, and `best` goes from a folder of models to the best merge.
"""

from mergekern.evaluation.classification import Accuracy
from mergekern.evaluation.evaluator import Evaluator
from mergekern.evaluation.harness import Harness
from mergekern.evaluation.perplexity import Perplexity

__all__ = ["Accuracy", "Evaluator", "Harness", "Perplexity"]
