"""What turns texts and images into inputs: given, or that in a folder of transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergekern._internal.extras import needs
from mergekern.checkpoints import Zoo
from mergekern.checkpoints.folder_files import home
from mergekern.errors import EvaluationError
from mergekern.functional.processors import Auto, first_processor

# A function like those of transformers, or the folder of one; None for that of the zoo.
Processor = Callable[..., Any] | str | os.PathLike[str] | None


def processor_of(zoo: Zoo, given: Processor, kind: Auto, what: str) -> Any:
    """Return what was given, or what transformers reads in the folder of the base, or else of a model.

    In a zoo of one model, which is evaluated with its own head, that of the model comes before the base's.

    Args:
        zoo: whose folders are tried.
        given: what was given.
        kind: name of the class of transformers that reads it, such as "AutoTokenizer".
        what: its name in errors.

    Raises:
        EvaluationError: transformers is not installed, or no folder has one.
    """
    if callable(given):
        return given
    if given is not None:
        folders = [Path(given)]
    else:
        of_one = len(zoo.models) == 1  # the one whose head is evaluated
        checkpoints = reversed(zoo.checkpoints) if of_one else zoo.checkpoints
        folders = [folder for checkpoint in checkpoints if (folder := home(checkpoint)) is not None]
    try:
        found = first_processor(folders, kind, what, EvaluationError)
    except ImportError as error:
        raise EvaluationError(needs(f"a {what}", "evaluation", error)) from error
    if found is None:
        where = f"in {given}" if given is not None else "in the folders of the models"
        raise EvaluationError(f"no {what} is found {where}; give the folder that has it (--processor, {what}=)")
    return found
