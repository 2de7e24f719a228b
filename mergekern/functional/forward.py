"""From the tensors of a model to its features, logits and loss: the one way in which models are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mergekern.errors import CalibrationError
from mergekern.functional.batches import rows_of
from mergekern.functional.calibration import Inputs, OwnHead, Task, check_classes
from mergekern.functional.isolation import undisturbed

if TYPE_CHECKING:
    from mergekern.functional.binding import Binding


class Outcome(NamedTuple):
    """How a model does on the samples of a task: mean loss, and share of labels told right (NaN without classes)."""

    loss: float
    accuracy: float


class Forward:
    """Runs the module of a calibration on tensors that are given, as if they were its own.

    Args:
        binding: the module, what it is run on, and how tensors are converted for it.
        device: where it runs.
    """

    def __init__(self, binding: Binding, device: torch.device) -> None:
        self.binding, self.calibration, self.model, self.device = binding, binding.calibration, binding.model, device

    def undisturbed(self) -> AbstractContextManager[None]:
        """Let models run so that nothing around them reaches them; what follows is called within."""
        heads = [task.head for task in self.calibration.tasks.values() if isinstance(task.head, nn.Module)]
        loss = [self.calibration.loss] if isinstance(self.calibration.loss, nn.Module) else []
        return undisturbed([self.model, *heads, *loss], self.device)

    def features(self, tensors: Mapping[str, Tensor], inputs: Inputs) -> Any:
        """Return what the module returns."""
        arguments, keywords = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
        # A dict of its own for every call: what a model assigns to its buffers is written to it.
        return functional_call(self.model, dict(tensors), arguments, keywords)

    def logits(self, name: str, task: Task, tensors: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Return the logits of the module with these tensors and the head of a task; messages call it `name`."""
        if isinstance(task.head, OwnHead):
            own = {key: self.binding.converted(values, self.device) for key, values in task.head.tensors.items()}
            return task.head.logits(self.model, tensors, own, inputs)
        features = self.features(tensors, inputs)
        if isinstance(task.head, nn.Module):
            return self._call(task.head, features)
        weight, bias = task.head
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != weight.shape[1]:
            what = f"{tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise CalibrationError(
                f"model {name!r}: a head of weight {tuple(weight.shape)} takes features (n, {weight.shape[1]}), but "
                f"the model returns {what}; give a head that is an nn.Module, or a model that returns features"
            )
        if self.calibration.normalize_features:
            features = features / features.norm(dim=-1, keepdim=True)
        weight = self.binding.converted(weight, self.device)
        logits = nn.functional.linear(
            features, weight, None if bias is None else self.binding.converted(bias, self.device)
        )
        return logits if self.calibration.logit_scale == 1 else logits * self.calibration.logit_scale

    def loss(self, name: str, task: Task, rows: slice, logits: Tensor) -> Tensor:
        """Return the mean loss of a batch of a task's samples, a scalar."""
        labels = self.binding.converted(task.labels[rows], self.device)
        if self.calibration.uses_classes and task.classes is None:
            check_classes(name, task.labels, logits.shape[1] if logits.dim() > 1 else logits.numel())
        loss = self._call(self.calibration.loss, logits, labels)
        if not isinstance(loss, Tensor) or loss.dim():
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise CalibrationError(
                f"model {name!r}, {described(rows)}: the loss must be a scalar, the mean over the batch, not {what}"
            )
        return loss

    @torch.no_grad()
    def outcome(self, name: str, task: Task, tensors: Mapping[str, Tensor]) -> Outcome:
        """Return how the module with these tensors does on all samples of a task."""
        size, loss, right = self.calibration.activation_batch_size, 0.0, 0.0
        for start in range(0, task.size, size):
            rows = slice(start, min(start + size, task.size))
            inputs = self.binding.inputs([rows_of(task.inputs, rows)], self.device)
            logits = self.logits(name, task, tensors, inputs)
            loss += self.loss(name, task, rows, logits).double().item() * (rows.stop - rows.start)
            if self.calibration.uses_classes and logits.dim() > 1:
                labels = self.binding.converted(task.labels[rows], self.device)
                right += (logits.argmax(dim=1) == labels).double().mean().item() * (rows.stop - rows.start)
            else:
                right = float("nan")
        return Outcome(loss / task.size, right / task.size)

    def _call(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Call a head or a loss; a module runs on its tensors as the encoder does."""
        if not isinstance(function, nn.Module):
            return function(*arguments)
        tensors = {name: self.binding.converted(values, self.device) for name, values in function.named_parameters()}
        for name, values in function.named_buffers():
            tensors[name] = self.binding.converted(values, self.device).clone()
        return functional_call(function, tensors, arguments)


def described(rows: slice) -> str:
    """Return which samples a batch holds, in words.

    >>> described(slice(8, 10))
    'samples 8 to 9'
    """
    return f"samples {rows.start} to {rows.stop - 1}"
