"""Evaluator: gives a model a number on a task. Any function (model, task) -> number is one."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mergekern._internal.text import listed
from mergekern.checkpoints import Zoo
from mergekern.errors import EvaluationError, did_you_mean

Function = Callable[[Any, str], Any]
# Model -> its task or tasks; or tasks on which all models are evaluated.
Tasks = Mapping[str, str | Sequence[str]] | Sequence[str] | None


class Evaluator(ABC):
    """Gives a model a number on a task; the larger, the better.

    Attributes:
        score: name of the number, which is that of its column.
        tasks: tasks on which all models are evaluated; None where each is on the task of its own name.
        needs_module: whether it takes an `nn.Module` only, and no state dict.
    """

    score: str = "accuracy"
    tasks: tuple[str, ...] | None = None
    needs_module: bool = True

    @property
    def name(self) -> str:
        """What it is called in records."""
        return type(self).__name__

    def prepare(self, zoo: Zoo, tasks: Sequence[str]) -> None:  # noqa: B027 (most have nothing to prepare)
        """Check, before anything is evaluated, that all tasks can be; and open what belongs to the zoo.

        Where models have heads of their own, a copy is prepared for each: for its tasks, and a zoo of it alone.

        Raises:
            EvaluationError: a task is not known, or something is missing.
        """

    @abstractmethod
    def __call__(self, model: Any, task: str) -> float:
        """Return the number of a model on a task."""


class OwnFunction(Evaluator):
    """A function of the user as an evaluator."""

    needs_module = False

    def __init__(self, function: Function) -> None:
        self._function = function

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    def __call__(self, model: Any, task: str) -> Any:
        """Return what the function returns."""
        return self._function(model, task)


def as_evaluator(evaluate: Any) -> Evaluator:
    """Return what was given as an evaluator.

    Raises:
        EvaluationError: it cannot be called.
    """
    if isinstance(evaluate, Evaluator):
        return evaluate
    if not callable(evaluate):
        raise EvaluationError(f"evaluate is a function (model, task) -> number, not {evaluate!r}")
    return OwnFunction(evaluate)


def tasks_of(models: Sequence[str], tasks: Tasks, evaluator: Evaluator) -> dict[str, tuple[str, ...]]:
    """Return the tasks on which each model is evaluated.

    Raises:
        EvaluationError: a task is given for an unknown model, or a model has none.

    >>> tasks_of("ab", {"a": "cars"}, OwnFunction(print))
    {'a': ('cars',), 'b': ('b',)}
    """
    if isinstance(tasks, str):
        tasks = [tasks]
    if isinstance(tasks, Mapping):
        for name in tasks:
            if name not in models:
                raise EvaluationError(f"a task for {name!r}, which is no model{did_you_mean(name, models)}")
    shared = evaluator.tasks if tasks is None else None if isinstance(tasks, Mapping) else tuple(tasks)
    found = {name: (name,) if shared is None else shared for name in models}
    for name, given in tasks.items() if isinstance(tasks, Mapping) else ():
        found[name] = (given,) if isinstance(given, str) else tuple(given)
    if lacking := [name for name, of_model in found.items() if not of_model]:
        raise EvaluationError(f"no task for {listed(lacking)}")
    return {name: tuple(dict.fromkeys(map(str, of_model))) for name, of_model in found.items()}


def check_known(tasks: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raise EvaluationError if a task is not among those that are known."""
    if lacking := [task for task in tasks if task not in known]:
        raise EvaluationError(
            f"{where} has nothing for the task{'s' * (len(lacking) > 1)} {listed(map(repr, lacking), 5)}"
            f"{did_you_mean(lacking[0], known)}; it "
            f"has {listed(known, 8) or 'none'}; --task MODEL=TASK (tasks=) says which task a model is for"
        )


def as_number(value: Any) -> float:
    """Return what an evaluator returned as a finite float.

    Raises:
        EvaluationError: it is no number, or not finite.

    >>> as_number(torch.tensor(0.5))
    0.5
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise EvaluationError(f"the evaluator returned {str(value)[:60]!r}, a {type(value).__name__}, not a number")
    if not math.isfinite(value):
        raise EvaluationError(f"the evaluator returned {float(value)}, not a finite number")
    return float(value)
