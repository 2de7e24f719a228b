"""The errors mergekern raises for bad input; each says what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MergekernError(ValueError):
    """Base of all errors raised for bad input."""


class CheckpointError(MergekernError):
    """A checkpoint cannot be read: missing, truncated, corrupt, or of a kind that is not supported."""


class MismatchError(MergekernError):
    """The checkpoints do not fit together: tensors missing or extra, shapes that differ."""


class NonFiniteError(MergekernError):
    """A checkpoint holds NaN or infinite values."""


class CalibrationError(MergekernError):
    """Calibration data cannot be used, or do not fit the model: labels, heads, layers, samples, a loss that is NaN."""


class EvaluationError(MergekernError):
    """Models cannot be evaluated: no evaluator, an unknown task, no number, a model that cannot be built."""


class OptionError(MergekernError):
    """An argument is wrong: an unknown name, a device that is not there, an impossible budget."""


class OutputError(MergekernError):
    """A result cannot be written: something is there already, no space is left, or no such folder."""


class PredictionError(MergekernError):
    """Measurements cannot be predicted from: too few pairs, none with every value, names or shapes that do not fit."""


class StatisticsError(MergekernError):
    """Saved statistics or a saved table are missing, damaged, or were not written by mergekern."""


def did_you_mean(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return " (did you mean 'x'?)" for the nearest of the known names (`count` at most), or an empty string.

    >>> did_you_mean("weight_space_angel", ["weight_space_angle", "stable_rank"])
    " (did you mean 'weight_space_angle'?)"
    >>> did_you_mean("TIES", ["ties", "tsv"])
    " (did you mean 'ties'?)"
    """
    by_letters = {known_name.casefold(): known_name for known_name in known}
    close = difflib.get_close_matches(str(name).casefold(), by_letters, n=count, cutoff=0.5)
    nearest = [by_letters[letters] for letters in close]
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""
