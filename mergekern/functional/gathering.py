"""What merges need of runs of the models: inner products of the inputs of linear layers, and Fisher information.

Each model is run once for each need on the samples of its own task, and what it gives goes to a file, so that the
memory does not grow with the number of models. Merges read it a tensor at a time.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mergekern._internal.claims import Workspace
from mergekern.checkpoints import Checkpoint, Zoo, open_checkpoint
from mergekern.errors import CalibrationError, NonFiniteError, OptionError
from mergekern.functional.batches import batches, rows_of
from mergekern.functional.binding import Binding
from mergekern.functional.calibration import Calibration, Task
from mergekern.functional.forward import Forward
from mergekern.kernels import dispatch
from mergekern.merging.gathered import Gathered, Need, OfModel, run_for
from mergekern.progress import Progress

logger = logging.getLogger(__name__)
# The most classes over which the expectation of squared gradients is taken exactly.
MOST_CLASSES = 100
Tasks = Mapping[str, Task]


def gather(
    binding: Binding, needs: frozenset[Need], device: str | torch.device, *, base: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Gathered:  # fmt: skip
    """Run every model of a zoo on the samples of its own task.

    Args:
        binding: the models, and what they are run on.
        needs: what is gathered.
        device: where the models run.
        base: a name under which the base is run too, on the samples of all tasks; None leaves it out.
        progress: called before each model is run.

    Raises:
        CalibrationError: as for `compute_all`.
        NonFiniteError: NaN or infinite inputs or gradients.
        OptionError: no room on the disk.
    """
    tasks = binding.calibration.tasks
    every: list[tuple[str, Checkpoint, Tasks]] = [
        (name, checkpoint, {name: tasks[name]})
        for name, checkpoint in zip(binding.zoo.model_names, binding.zoo.models, strict=True)
    ]
    if base is not None:
        every.append((base, binding.zoo.base, dict(sorted(tasks.items()))))
    place = Workspace(Path(tempfile.gettempdir()))
    runs, start = _Runs(binding, dispatch.choose(device).device), time.perf_counter()
    found: dict[Need, dict[str, OfModel]] = {need: {} for need in needs}
    for index, (name, checkpoint, own) in enumerate(every):
        for need in sorted(needs):
            what = f"{'inputs' if need == 'inputs' else 'Fisher information'} of {name}"
            logger.info("running the %s", what)
            if progress is not None:
                progress(Progress("", index, len(every), 0, 0, time.perf_counter() - start, what))
            tensors = runs.inputs(name, checkpoint, own) if need == "inputs" else runs.fisher(name, checkpoint, own)
            norm = float(torch.stack([values.double().square().sum() for values in tensors.values()]).sum().sqrt())
            path = place.path / f"{need}_{index}.safetensors"
            _save(path, tensors)
            found[need][name] = OfModel(open_checkpoint(path, f"{need} of {name}"), norm)
    binding.zoo.check_unchanged()
    identity = binding.calibration.content_hash(binding.model)
    return Gathered(found, frozenset(runs.of_rows), identity, tuple(runs.notes), place)


@run_for.register(Calibration)
def _(
    calibration: Calibration, zoo: Zoo, needs: frozenset[Need], device: str | torch.device,
    progress: Callable[[Progress], None] | None,
) -> Gathered:  # fmt: skip
    return gather(Binding(zoo, calibration, frozenset()), needs, device, progress=progress)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > (free := shutil.disk_usage(path.parent).free):
        raise OptionError(
            f"what is gathered of a model takes {size:,} bytes, and {path.parent.parent} has {free:,} left; set TMPDIR "
            "to a folder on a larger disk"
        )
    save_file({name: values.cpu().contiguous() for name, values in tensors.items()}, path)


class _Runs:
    """Runs models, one after the other.

    Attributes:
        of_rows: names of weights whose rows, not columns, belong to the inputs of their layers.
        notes: what is not exactly as defined.
    """

    def __init__(self, binding: Binding, device: torch.device) -> None:
        self._binding, self._device = binding, device
        self._forward, self._size = Forward(binding, device), binding.calibration.activation_batch_size
        self._linear = _linear_layers(binding)
        self.of_rows = {name for module, name in self._linear.items() if not isinstance(module, nn.Linear)}
        self.notes: list[str] = []

    @torch.no_grad()
    def inputs(self, model: str, checkpoint: Checkpoint, tasks: Tasks) -> dict[str, Tensor]:
        """Return XᵀX / rows of the inputs of every linear layer that runs, (n, n) float64, by its weight."""
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}

        def add(module: nn.Module, given: Tensor) -> None:
            name = self._linear[module]
            flat = given.detach().reshape(-1, given.shape[-1]).double()
            product = flat.T @ flat
            sums[name] = sums[name].add_(product) if name in sums else product
            rows[name] = rows.get(name, 0) + len(flat)

        with self._forward.undisturbed(), _inputs_of(self._linear, add):
            parameters, buffers = self._binding.tensors(checkpoint, self._device)
            for name, task in tasks.items():
                for parts in batches([task.inputs], self._size):
                    self._forward.logits(
                        name, task, {**parameters, **buffers}, self._binding.inputs(parts, self._device)
                    )
        if not sums:
            raise CalibrationError(f"model {model!r} runs no linear layer as a module, so that it has no inputs of one")
        for name, values in sums.items():
            if not values.isfinite().all():
                raise NonFiniteError(f"model {model!r}: the inputs of the layer of {name!r} are NaN or infinite")
        return {name: values.div_(rows[name]) for name, values in sums.items()}

    @torch.enable_grad()
    def fisher(self, model: str, checkpoint: Checkpoint, tasks: Tasks) -> dict[str, Tensor]:
        """Return the diagonal of the Fisher information of every parameter, float32, by its name in the zoo."""
        with self._forward.undisturbed():
            parameters, buffers = self._binding.tensors(checkpoint, self._device)
            leaves = {key: values.detach().requires_grad_() for key, values in parameters.items()}
            sums = {key: torch.zeros_like(values, dtype=torch.float64) for key, values in leaves.items()}
            for name, task in tasks.items():
                for sample in range(task.size):
                    for share, value in self._scores(name, task, sample, {**leaves, **buffers}):
                        self._add_squares(sums, leaves, share, value, model)
        samples = sum(task.size for task in tasks.values())
        found = {self._binding.layer_name(key): values.div_(samples) for key, values in sums.items()}
        for name, values in found.items():
            if not values.isfinite().all():
                raise NonFiniteError(f"model {model!r}: the gradient with respect to {name!r} is NaN or infinite")
        return {name: values.float() for name, values in found.items()}

    def _scores(
        self, name: str, task: Task, sample: int, tensors: Mapping[str, Tensor]
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield probabilities, each with the log-likelihood whose squared gradient it weights, of one sample."""
        rows = slice(sample, sample + 1)
        inputs = self._binding.inputs([rows_of(task.inputs, rows)], self._device)
        logits = self._forward.logits(name, task, tensors, inputs)
        if self._binding.calibration.uses_classes and logits.dim() == 2 and logits.shape[1] <= MOST_CLASSES:
            likelihoods = logits[0].log_softmax(0)
            yield from zip(likelihoods.detach().double().exp().tolist(), likelihoods, strict=True)
            return
        note = "is of the labels as they are given, not of the model's own probabilities (the empirical Fisher)"
        if note not in self.notes:
            self.notes.append(note)
        yield 1.0, self._forward.loss(name, task, rows, logits)

    def _add_squares(
        self, sums: dict[str, Tensor], leaves: Mapping[str, Tensor], share: float, value: Tensor, model: str
    ) -> None:
        if not value.requires_grad:
            raise CalibrationError(f"model {model!r}: the loss does not depend on the model; is a result detached?")
        gradients = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        for key, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                sums[key].addcmul_(dense.double(), dense.double(), value=share)


def _linear_layers(binding: Binding) -> dict[nn.Module, str]:
    """Return the linear layers of a model, each with the name of its weight, which no module of another kind has."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in binding.model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), []).append((module, attribute))
    names = {id(binding.model.get_parameter(name)): binding.layer_name(name) for name in binding.parameters}
    found: dict[nn.Module, str] = {}
    for key, held in holders.items():
        kinds = {(_is_linear(module), isinstance(module, nn.Linear), attribute) for module, attribute in held}
        if key in names and kinds in ({(True, True, "weight")}, {(True, False, "weight")}):
            found |= {module: names[key] for module, _ in held}
    return found


def _is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer: of torch, or that of transformers whose weight is transposed."""
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


@contextmanager
def _inputs_of(layers: Mapping[nn.Module, str], add: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Hand over the inputs of modules while models run."""

    def before(module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        given = arguments[0] if arguments else next(iter(keywords.values()))
        add(module, given)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
