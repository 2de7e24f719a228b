"""What of a zoo takes no part, in words."""

from __future__ import annotations

from collections.abc import Sequence

from mergekern._internal.notes import notes_of_checkpoints
from mergekern.checkpoints.zoo import Zoo


def skipped_names(zoo: Zoo) -> tuple[list[str], list[str]]:
    """Return the names of the tensors that were skipped: of those that the base has, and of the others; sorted."""
    names = {line.partition(": ")[0] for line in zoo.skipped}
    known = {*zoo.base.order, *zoo.base.tensors}
    return sorted(names & known), sorted(names - known)


def notes_of_zoo(zoo: Zoo, models: Sequence[int] | None = None) -> list[str]:
    """Return what is said of the checkpoints of a zoo and of what lies beside them.

    Args:
        zoo: as it was opened.
        models: positions of the models that are spoken of; None for all.
    """
    chosen = zoo.model_names if models is None else tuple(zoo.model_names[model] for model in models)
    spoken_of = {name: zoo.notes[name] for name in ("base", *sorted(chosen)) if name in zoo.notes}
    return [*notes_of_checkpoints(spoken_of, chosen), *zoo.left_out]
