"""A model bound to the checkpoints of a zoo: which tensor of them is which parameter of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mergekern.checkpoints import Checkpoint, Zoo
from mergekern.checkpoints.heads import named_heads
from mergekern.errors import CalibrationError, MismatchError, did_you_mean
from mergekern.functional.calibration import Calibration, Inputs, OwnHead, names_in_files


@dataclass
class Binding:
    """A model bound to the checkpoints whose tensors it runs on, checked before any weights are read.

    Attributes:
        zoo: whose models are run.
        calibration: what they are run on.
        wanted: the kinds of functional statistics that metrics ask for; attributes of `FunctionalStatistics`.
        model: that runs.
        parameters: every name of each parameter of it, in the module and in files, by the first.

    Raises:
        CalibrationError: samples are missing for a model, a layer does not exist, an input gradient has no meaning.
        MismatchError: a checkpoint does not fit the model.
    """

    zoo: Zoo
    calibration: Calibration
    wanted: frozenset[str]
    model: nn.Module = field(init=False)
    parameters: dict[str, list[str]] = field(init=False)
    _buffers: dict[str, list[str]] = field(init=False)  # those that a state dict holds
    _own_buffers: list[str] = field(init=False)  # the others
    _zoo_names: frozenset[str] = field(init=False)
    _of_heads: frozenset[str] = field(init=False)  # tensors that the tasks have, not the models
    _heads: frozenset[str] = field(init=False)  # tensors of the checkpoints that are heads
    _are_of_library: bool = field(init=False)  # whether the heads are those of models of transformers

    def __post_init__(self) -> None:
        """Build the model, and check everything."""
        tasks = self.calibration.tasks
        if lacking := [name for name in self.zoo.model_names if name not in tasks]:
            raise CalibrationError(
                f"no calibration samples for {', '.join(map(repr, lacking))}{did_you_mean(lacking[0], tasks)}; "
                "every model needs a task of its name"
            )
        if "input_gradients" in self.wanted:
            self.calibration.check_input_gradient()
        self.model = self.calibration.build()
        files = names_in_files(self.model)
        self.parameters = _by_first_name(self.model.named_parameters(remove_duplicate=False), files)
        saved = self.model.state_dict().keys()
        buffers = _by_first_name(self.model.named_buffers(remove_duplicate=False), files)
        self._buffers = {name: names for name, names in buffers.items() if saved & set(names)}
        self._own_buffers = [name for name in buffers if name not in self._buffers]
        self._zoo_names = frozenset(tensor.name for tensor in self.zoo.tensors)
        own = [task.head.own_names(self.model) for task in tasks.values() if isinstance(task.head, OwnHead)]
        self._of_heads = frozenset(set.intersection(*own)) - self._zoo_names if own else frozenset()
        heads = named_heads(self.zoo.checkpoints)
        # Where a model has no head, that of another one is no part of what all are.
        every = all(not heads.isdisjoint(model.tensors) for model in self.zoo.models)
        self._heads = frozenset(heads) if every or own else frozenset()
        self._are_of_library = bool(own)
        for checkpoint in self.zoo.models:
            self.check_fit(checkpoint)

    def provenance(self) -> dict[str, Any]:
        """Return how the models were run, for the provenance of a table."""
        return self.calibration.provenance(self.model)

    def layer_name(self, parameter: str) -> str:
        """Return the name under which the zoo has a parameter, which the model may tie to others."""
        return next((name for name in self.parameters[parameter] if name in self._zoo_names), parameter)

    def tensors(self, checkpoint: Checkpoint, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return parameters and buffers for the model to run on: those of the checkpoint, which are not copied where
        dtype and device are right, and copies of the buffers, which a model may write to. Parameters that the models
        do not share, but the heads of the tasks have, are among the buffers where the checkpoint holds them.
        """
        shared = {name: names for name, names in self.parameters.items() if self._of_heads.isdisjoint(names)}
        parameters = {name: self._read(checkpoint, names, device) for name, names in shared.items()}
        held = {name: names for name, names in self.parameters.items() if name not in shared}
        own = {name: n for name, n in held.items() if not checkpoint.tensors.keys().isdisjoint(n)}
        buffers = {name: self._read(checkpoint, names, device) for name, names in own.items()}
        buffers |= {name: self._read(checkpoint, names, device).clone() for name, names in self._buffers.items()}
        for name in self._own_buffers:
            buffers[name] = self.converted(self.model.get_buffer(name), device).clone()
        return parameters, buffers

    def _read(self, checkpoint: Checkpoint, names: Sequence[str], device: torch.device) -> Tensor:
        present = [name for name in names if name in checkpoint.tensors]
        if not present:
            name = next(name for name in names if name in checkpoint.buffers)
            values = checkpoint.read_buffer(name)
            self._check_shape(checkpoint, names[0], tuple(values.shape))
            return self.converted(values, device)
        values = checkpoint.read(present[0])
        for other in present[1:]:
            is_same = checkpoint.tensors[other].storage == checkpoint.tensors[present[0]].storage
            if not is_same and not torch.equal(values, checkpoint.read(other)):
                raise MismatchError(
                    f"the {type(self.model).__name__} ties {present[0]!r} and {other!r}, but {checkpoint.name!r} "
                    "holds different values under these names"
                )
        return self.converted(values, device)

    def converted(self, values: Tensor, device: torch.device) -> Tensor:
        """Return values on the device and, if they are floating-point, in the dtype that the models run in."""
        dtype = self.calibration.dtype if values.is_floating_point() else values.dtype
        values = values.detach().to(device, dtype)
        # A tensor made in inference mode takes no part in gradients.
        return values.clone() if values.is_inference() else values

    def inputs(self, parts: Sequence[Inputs], device: torch.device) -> Inputs:
        """Return several inputs as one, copied, on the device and in the dtype that the models run in."""
        first = parts[0]
        if isinstance(first, dict):
            return {key: self._joined([part[key] for part in parts], device) for key in first}  # type: ignore[index]
        return self._joined(list(parts), device)  # type: ignore[arg-type]

    def _joined(self, parts: list[Tensor], device: torch.device) -> Tensor:
        return self.converted(torch.cat(parts), device)

    def check_fit(self, checkpoint: Checkpoint) -> None:
        """Raise MismatchError if a checkpoint lacks tensors of the model, has others, or other shapes."""
        expected = self.parameters | self._buffers
        missing, wrong = [], []
        for name, names in expected.items():
            present = [n for n in names if n in checkpoint.tensors]
            is_of_head = not self._of_heads.isdisjoint(names)
            if not (present or is_of_head or (name in self._buffers and any(n in checkpoint.buffers for n in names))):
                missing.append(name)
            for n in present:
                if checkpoint.tensors[n].shape != (shape := self._shape(name)):
                    wrong.append(f"{n} is {checkpoint.tensors[n].shape} instead of {shape}")
        known = {name for names in expected.values() for name in names}
        storages = {checkpoint.tensors[name].storage for name in known if name in checkpoint.tensors}
        # Heads are those of the tasks; what else models of transformers do not share takes no part, and is noted.
        left = known | self._heads | (checkpoint.tensors.keys() - self._zoo_names if self._are_of_library else set())
        extra = [n for n, t in checkpoint.tensors.items() if n not in left and t.storage not in storages]
        found = [f"missing: {_some(missing)}"] * bool(missing)
        found += [f"not in the model: {_some(extra)}"] * bool(extra) + [f"shapes: {_some(wrong)}"] * bool(wrong)
        if found:
            raise MismatchError(
                f"checkpoint {checkpoint.name!r} does not fit the {type(self.model).__name__} of the calibration; "
                f"{'; '.join(found)}"
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        *path, last = name.split(".")
        return tuple(getattr(self.model.get_submodule(".".join(path)), last).shape)

    def _check_shape(self, checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
        if shape != (expected := self._shape(name)):
            raise MismatchError(f"checkpoint {checkpoint.name!r}: {name} is {shape} instead of {expected}")


def _by_first_name(named: Iterator[tuple[str, Tensor]], files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return all names of each tensor, by its first name: a module may have several for one, and files others."""
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
    found = {
        every[0]: [*every, *(other for name in every for other in files.get(name, ()))] for every in names.values()
    }
    return {first: list(dict.fromkeys(every)) for first, every in found.items()}


def _some(lines: Sequence[str]) -> str:
    return ", ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
