"""The samples of a model's task and the head that tells its classes, checked when they are given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from mergekern.errors import CalibrationError
from mergekern.functional.calibration.architectures import Logits, OwnHead

Inputs = Tensor | dict[str, Tensor]
Head = nn.Module | OwnHead | tuple[Tensor, Tensor | None]


class Task(NamedTuple):
    """The samples of one model's task: n inputs, n labels, and the head on the encoder that tells the classes."""

    inputs: Inputs
    labels: Tensor
    head: Head

    @property
    def size(self) -> int:
        """The number of samples, n."""
        return len(self.labels)

    @property
    def classes(self) -> int | None:
        """The number of classes of the head; None where only running it tells."""
        if isinstance(self.head, nn.Module):
            return self.head.out_features if is_plain_linear(self.head) else None
        if isinstance(self.head, OwnHead):
            return self.head.classes
        return self.head[0].shape[0]


def is_plain_linear(head: Any) -> TypeGuard[nn.Linear]:
    """Tell whether a head is its weight and bias and nothing else: no subclass, no hooks, no parametrisation.

    >>> is_plain_linear(nn.Linear(2, 3)), is_plain_linear(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    (True, False)
    """
    if type(head) is not nn.Linear or "forward" in vars(head):
        return False
    hooks = (value for name, value in vars(head).items() if name.endswith(("_hooks", "_pre_hooks")))
    return not any(hooks) and set(vars(head)["_parameters"]) == {"weight", "bias"} and not any(head.children())


def tensors_of_head(head: Head) -> dict[str, Tensor]:
    """Return the tensors of a head that is no code of a caller, by the names that a folder has for them.

    Raises:
        CalibrationError: it is a module other than a plain `nn.Linear`.
    """
    if isinstance(head, Logits):
        return {}
    if isinstance(head, OwnHead):
        return head.tensors
    if is_plain_linear(head):
        head = (head.weight, head.bias)
    if isinstance(head, nn.Module):
        raise CalibrationError(
            f"a head that is a {type(head).__name__} cannot be saved: it is code, which no file holds; give (weight, "
            "bias), with normalize_features= and logit_scale= where it does that"
        )
    return {name: part for name, part in zip(("weight", "bias"), head, strict=True) if part is not None}


def make_task(name: str, given: Any, uses_classes: bool) -> Task:
    """Return a task, checked; `uses_classes`: whether labels are classes of the head.

    Raises:
        CalibrationError: what is given is no task, or its parts do not fit together.
    """
    if not isinstance(given, Sequence) or len(given) != 3:
        raise CalibrationError(f"task {name!r}: give (inputs, labels, head), not {_kind(given)}")
    task = Task(_inputs(name, given[0]), _tensor(f"task {name!r}: labels", given[1]), _head(name, given[2]))
    every = task.inputs if isinstance(task.inputs, dict) else {"inputs": task.inputs}
    sizes = {key: values.shape[0] if values.dim() else None for key, values in every.items()}
    if not task.labels.dim() or set(sizes.values()) != {task.size}:
        counts = ", ".join(f"{size if size is not None else 'a scalar'} of {key}" for key, size in sizes.items())
        labels = task.size if task.labels.dim() else "a scalar"
        raise CalibrationError(f"task {name!r}: the samples do not match: {counts}, {labels} of labels")
    if task.size == 0:
        raise CalibrationError(f"task {name!r}: no samples")
    for key, values in every.items():
        if values.is_floating_point() and not values.isfinite().all():
            raise CalibrationError(f"task {name!r}: {key} holds NaN or infinite values")
    if uses_classes:
        if task.labels.is_floating_point() or task.labels.is_complex() or task.labels.dtype == torch.bool:
            raise CalibrationError(
                f"task {name!r}: labels are {task.labels.dtype}, but cross-entropy takes the integers of classes; "
                "for other labels give loss="
            )
        task = task._replace(labels=task.labels.long())
        check_classes(name, task.labels, task.classes)
    return task


def check_classes(task: str, labels: Tensor, classes: int | None) -> None:
    """Raise CalibrationError if a label is none of the head's classes, 0 to classes − 1; None: any number of them."""
    outside = (labels < 0) | (labels >= (math.inf if classes is None else classes))
    if outside.any():
        sample = int(outside.reshape(len(labels), -1).any(dim=1).nonzero()[0, 0])
        label = int(labels[outside].flatten()[0])
        which = "is negative" if classes is None else f"is outside the head's {classes} classes, 0 to {classes - 1}"
        raise CalibrationError(f"task {task!r}: label {label} of sample {sample} {which}")


def _kind(given: Any) -> str:
    return f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, Sequence) else "")


def _tensor(what: str, given: Any) -> Tensor:
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given.copy())
    if not isinstance(given, Tensor):
        raise CalibrationError(f"{what}: a tensor or array is needed, not a {type(given).__name__}")
    return given.detach()


def _inputs(name: str, given: Any) -> Inputs:
    if not isinstance(given, Mapping):
        return _tensor(f"task {name!r}: inputs", given)
    if not given:
        raise CalibrationError(f"task {name!r}: inputs is an empty mapping")
    return {str(key): _tensor(f"task {name!r}: inputs {key!r}", values) for key, values in given.items()}


def _head(name: str, given: Any) -> Head:
    if isinstance(given, nn.Module | OwnHead):
        return given
    if not isinstance(given, Sequence) or len(given) != 2:
        raise CalibrationError(
            f"task {name!r}: a head is an nn.Module or (weight (classes, h), bias (classes,)), not {_kind(given)}"
        )
    weight = _tensor(f"task {name!r}: weight of the head", given[0])
    bias = None if given[1] is None else _tensor(f"task {name!r}: bias of the head", given[1])
    fits = weight.dim() == 2 and (bias is None or bias.shape == weight.shape[:1])
    floating = weight.is_floating_point() and (bias is None or bias.is_floating_point())
    if not (fits and floating):
        shapes = f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
        raise CalibrationError(
            f"task {name!r}: a head is floating-point weight (classes, h) and bias (classes,) or None, not {shapes}"
        )
    if not all(part.isfinite().all() for part in (weight, bias) if part is not None):
        raise CalibrationError(f"task {name!r}: the head holds NaN or infinite values")
    return weight, bias
