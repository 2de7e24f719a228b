"""Notes in words: short enough for a screen and for the record of a merge, however much they are about."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from mergekern._internal.text import listed

# Where notes are shown: what is lost as warnings, the rest as information, which the command line shows too.
logger = logging.getLogger("mergekern.notes")
# Notes that a record keeps: a merge may leave out 40,000 tensors.
MOST_NOTES = 100


def notes_of_checkpoints(notes: Mapping[str, Sequence[str]], models: Sequence[str]) -> list[str]:
    """Return the notes on single checkpoints, each sentence once with those of which it is true.

    >>> notes_of_checkpoints({"base": ["x"], "a": ["x"], "b": ["x", "y"]}, ["a", "b"])
    ['x (in the base and all 2 models)', 'y (in b)']
    """
    found: dict[str, list[str]] = {}
    for name, lines in notes.items():
        for line in lines:
            found.setdefault(line, []).append(name)
    return [f"{line} (in {names_of(names, models)})" for line, names in found.items()]


def names_of(names: Sequence[str], models: Sequence[str]) -> str:
    """Return names of checkpoints for a note; of all models, that it is all of them."""
    if set(models) <= set(names):
        everyone = f"all {len(models)} models"
        return f"the base and {everyone}" if len(names) > len(models) else everyone
    return listed(names)


def bounded(notes: Sequence[str]) -> list[str]:
    """Return notes for a record: the first ones, and how many more there are."""
    more = [f"and {len(notes) - MOST_NOTES:,} more notes"] if len(notes) > MOST_NOTES else []
    return [*notes[:MOST_NOTES], *more]


def show(lost: Sequence[str], notes: Sequence[str]) -> None:
    """Show notes: what is lost as warnings, the others as information."""
    for note in lost:
        logger.warning("%s", note)
    for note in bounded(notes):
        logger.info("%s", note)
