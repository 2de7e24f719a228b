"""Probes: the one module that runs models, each once over its inputs, for the activation and gradient metrics.

Nothing is copied and nothing is left changed: `torch.func.functional_call` runs one module on the tensors of each
checkpoint in turn, in evaluation mode. A model's gradient is as large as the model, so that those of N models never are
in memory together: what `max_memory` does not hold goes to files, which are then read a tensor of all models at a time,
as the weights are, for the same `gram` kernel.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from mergekern.calibration import Calibration, Inputs, Task, check_classes
from mergekern.checkpoints import Checkpoint, LayerStream, Zoo, open_checkpoint
from mergekern.checkpoints.zoo import align
from mergekern.errors import CalibrationError, MismatchError, NonFiniteError, OptionError, did_you_mean
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.dispatch import Backend
from mergekern.kernels.gram import Gram
from mergekern.statistics import (
    FUNCTIONAL,
    ActivationStatistics,
    EncoderGradientStatistics,
    FunctionalStatistics,
    InputGradientStatistics,
    LayerStatistics,
)
from mergekern.store import Store

logger = logging.getLogger(__name__)

# functional_call swaps the tensors of a module, which threads may share.
_ONE_AT_A_TIME = threading.Lock()
# Elements of a tensor that are hashed at a time.
_HASHED = 1 << 24
GRADIENTS_FOLDER = ".gradients-"


@dataclass
class Probes:
    """A model, and what it is run for, checked against the checkpoints before any weights are read.

    Attributes:
        zoo: whose models are run.
        calibration: what they are run on.
        wanted: the kinds of functional statistics that metrics ask for; attributes of `FunctionalStatistics`.
        model: that runs.
        parameters: every name of each parameter of it, by the first.

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
        self.parameters = _by_first_name(self.model.named_parameters(remove_duplicate=False))
        saved = self.model.state_dict().keys()
        buffers = _by_first_name(self.model.named_buffers(remove_duplicate=False))
        self._buffers = {name: names for name, names in buffers.items() if saved & set(names)}
        self._own_buffers = [name for name in buffers if name not in self._buffers]
        self._zoo_names = frozenset(tensor.name for tensor in self.zoo.tensors)
        for checkpoint in self.zoo.models:
            self._check_fit(checkpoint)

    def measure(
        self,
        backend: Backend | DeviceBackend,
        threads: int,
        max_memory: int,
        store: Store | None = None,
        how: Sequence[object] = (),
        progress: Callable[[str], None] = lambda what: None,
    ) -> tuple[FunctionalStatistics, dict[str, str]]:
        """Run every model, or take what a store has for the same inputs.

        Args:
            backend: its device runs the models, and its `gram` kernel compares what they give.
            threads: that the kernel may use.
            max_memory: bytes of gradients held at a time, beside those of the model that is running.
            store: where the statistics are kept.
            how: what else the values depend on, such as versions.
            progress: called with what is run, before it is.

        Returns:
            The statistics, and the keys of their blocks in the store.

        Raises:
            CalibrationError: the loss is NaN or no scalar, a label is outside the classes of the logits, the head does
                not fit the features, a named layer does not run exactly once.
            NonFiniteError: NaN or infinite activations or gradients.
            MismatchError: tensors that the model ties differ in a checkpoint.
            OptionError: no room on the disk for the gradients.
        """
        keys: dict[str, str] = {}
        found = FunctionalStatistics()
        if store is not None:
            # Where the content cannot be known, the statistics are kept to be loaded, but not used for another run.
            calibration_hash = self.calibration.content_hash(self.model) or uuid.uuid4().hex
            hashes = [_content_hash(checkpoint) for checkpoint in self.zoo.models]
            how = [*how, torch.__version__, backend.name, calibration_hash, list(self.zoo.model_names)]
            keys = {kind: store.key(kind, (), hashes, how) for kind in FUNCTIONAL}
            found = store.get_functional(keys)
        if lacking := self.wanted - found.kinds.keys():
            folder = None if store is None else store.path
            runs = _Runs(self, lacking, backend, threads, max_memory, folder, progress)
            measured = runs.measure()
            if store is not None:
                for kind, part in measured.kinds.items():
                    store.put(keys[kind], part)
            found = dataclasses.replace(found, **measured.kinds)  # type: ignore[arg-type]
        return found, keys

    def provenance(self) -> dict[str, Any]:
        """Return what a table says of how the models were run."""
        return self.calibration.provenance(self.model)

    def layer_name(self, parameter: str) -> str:
        """Return the name under which the zoo has a parameter, which the model may tie to others."""
        return next((name for name in self.parameters[parameter] if name in self._zoo_names), parameter)

    def tensors(self, checkpoint: Checkpoint, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return parameters and buffers for the model to run on: those of the checkpoint, which are not copied where
        dtype and device are right, and copies of the buffers, which a model may write to.
        """
        parameters = {name: self._read(checkpoint, names, device) for name, names in self.parameters.items()}
        buffers = {name: self._read(checkpoint, names, device).clone() for name, names in self._buffers.items()}
        for name in self._own_buffers:
            buffers[name] = self.converted(self.model.get_buffer(name), device).clone()
        return parameters, buffers

    def _read(self, checkpoint: Checkpoint, names: Sequence[str], device: torch.device) -> Tensor:
        present = [name for name in names if name in checkpoint.tensors]
        if not present:
            name = next(name for name in names if name in checkpoint.buffers)
            values = checkpoint.read_buffer(name)
            self._check_shape(checkpoint, name, tuple(values.shape))
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

    def _check_fit(self, checkpoint: Checkpoint) -> None:
        """Raise MismatchError if a checkpoint lacks tensors of the model, has others, or other shapes."""
        expected = self.parameters | self._buffers
        missing, wrong = [], []
        for name, names in expected.items():
            present = [n for n in names if n in checkpoint.tensors]
            if not present and (name in self.parameters or not any(n in checkpoint.buffers for n in names)):
                missing.append(name)
            for n in present:
                if checkpoint.tensors[n].shape != (shape := self._shape(n)):
                    wrong.append(f"{n} is {checkpoint.tensors[n].shape} instead of {shape}")
        known = {name for names in expected.values() for name in names}
        storages = {checkpoint.tensors[name].storage for name in known if name in checkpoint.tensors}
        extra = [n for n, t in checkpoint.tensors.items() if n not in known and t.storage not in storages]
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


class _Runs:
    """One pass over the models: each is run, and what it gives is kept until all can be compared."""

    def __init__(
        self, probes: Probes, kinds: frozenset[str], backend: Backend | DeviceBackend, threads: int, max_memory: int,
        folder: Path | None, progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.probes, self.calibration, self.model = probes, probes.calibration, probes.model
        self.kinds, self.backend, self.threads, self.max_memory = kinds, backend, threads, max_memory
        self.device = backend.device
        self.folder, self.progress = folder, progress
        self.held = 0

    def measure(self) -> FunctionalStatistics:
        names = self.probes.zoo.model_names
        means: list[np.ndarray] = []
        kept: dict[str, list[Any]] = {"encoder": [], "inputs": []}
        shapes: list[tuple[int, ...]] = []
        with _temporary_folder(self.folder) as folder:
            for index, (name, checkpoint) in enumerate(zip(names, self.probes.zoo.models, strict=True)):
                with _undisturbed(self._modules(), self.device):
                    parameters, buffers = self.probes.tensors(checkpoint, self.device)
                    if "activations" in self.kinds:
                        self._report(f"activations of {name}")
                        means.append(self._mean_activation(name, {**parameters, **buffers}))
                    if self.kinds & {"encoder_gradients", "input_gradients"}:
                        self._report(f"gradients of {name}")
                        encoder, inputs = self._gradients(name, parameters, buffers)
                        kept["encoder"].append(self._keep(encoder, folder / f"encoder_{index}.safetensors"))
                        shapes.append(tuple(inputs["inputs"].shape) if inputs else ())
                        kept["inputs"].append(self._keep(inputs, folder / f"inputs_{index}.safetensors"))
                        del encoder, inputs
                    del parameters, buffers
            return FunctionalStatistics(
                self._activations(means) if "activations" in self.kinds else None,
                self._encoder_gradients(kept["encoder"]) if "encoder_gradients" in self.kinds else None,
                self._input_gradients(kept["inputs"], shapes) if "input_gradients" in self.kinds else None,
            )

    def _report(self, what: str) -> None:
        logger.info("running the %s", what)
        self.progress(what)

    def _modules(self) -> list[nn.Module]:
        heads = [task.head for task in self.calibration.tasks.values() if isinstance(task.head, nn.Module)]
        return [self.model, *heads, *([self.calibration.loss] if isinstance(self.calibration.loss, nn.Module) else [])]

    def _forward(self, tensors: Mapping[str, Tensor], inputs: Inputs) -> Any:
        arguments, keywords = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
        # A dict of its own for every call: what a model assigns to its buffers is written to it.
        return functional_call(self.model, dict(tensors), arguments, keywords)

    # --- activations

    @torch.no_grad()
    def _mean_activation(self, name: str, tensors: Mapping[str, Tensor]) -> np.ndarray:
        """Return the mean over the samples of all tasks of the layer's output, (h,) float64."""
        total: Tensor | None = None
        # Sorted, so that the order in which models or tasks are given has no part in the last bits.
        tasks = [task for _, task in sorted(self.calibration.tasks.items())]
        for parts in _batches([task.inputs for task in tasks], self.calibration.activation_batch_size):
            inputs = self.probes.inputs(parts, self.device)
            with _outputs_of(self.model, self.calibration.layer) as outputs:
                self._forward(tensors, inputs)
            output = _only(outputs, "layer", self.calibration.layer)
            values, count = self._per_sample(output).double(), sum(map(_length, parts))
            if len(values) != count:
                raise CalibrationError(
                    f"layer {self.calibration.layer!r} gives {tuple(output.shape)} for {count} samples; with "
                    f"token_dim={self.calibration.token_dim} that are {len(values)} activations"
                )
            if total is not None and values.shape[1] != len(total):
                raise CalibrationError(
                    f"layer {self.calibration.layer!r} gives {len(total)} values for some samples and "
                    f"{values.shape[1]} for others, so that they have no mean"
                )
            total = values.sum(dim=0) + (0.0 if total is None else total)
        assert total is not None
        mean = total / sum(task.size for task in tasks)
        if not mean.isfinite().all():
            raise NonFiniteError(f"model {name!r}: the output of layer {self.calibration.layer!r} is NaN or infinite")
        return mean.cpu().numpy()

    def _per_sample(self, output: Tensor) -> Tensor:
        """Return activations as (n, h): 3-D ones averaged over the tokens, others flattened."""
        if output.dim() == 3:
            return output.mean(dim=self.calibration.token_dim)
        return output.reshape(len(output), -1) if output.dim() else output.reshape(1, 1)

    def _activations(self, means: list[np.ndarray]) -> ActivationStatistics:
        gram = self._gram_of([torch.from_numpy(mean) for mean in means])
        count = sum(task.size for task in self.calibration.tasks.values())
        return ActivationStatistics(np.stack(means), gram.inner, gram.squared_distance, count)

    # --- gradients

    @torch.enable_grad()
    def _gradients(
        self, name: str, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the gradients of a model on its own task: {parameter: gradient}, and {"inputs": (n, ...)}."""
        with_encoder, with_inputs = "encoder_gradients" in self.kinds, "input_gradients" in self.kinds
        task, size = self.calibration.tasks[name], self.calibration.batch_size
        # Aliases of the weights that gather gradients: the loss is that of the batch, the sum takes no second copy.
        leaves = {key: values.detach().requires_grad_(with_encoder) for key, values in parameters.items()}
        of_inputs = []
        for start in range(0, task.size, size):
            rows = slice(start, min(start + size, task.size))
            inputs = self.probes.inputs([_rows(task.inputs, rows)], self.device)
            loss, at = self._loss(name, task, rows, {**leaves, **buffers}, inputs, with_inputs)
            if not loss.requires_grad:
                raise CalibrationError(f"model {name!r}: the loss does not depend on the model; is a result detached?")
            share = rows.stop - rows.start if self.calibration.batch_weighting == "sample" else 1
            wanted = [*(leaves.values() if with_encoder else ()), *([at] if at is not None else [])]
            (loss * share if share > 1 else loss).backward(inputs=wanted)
            if at is not None:
                of_inputs.append(torch.zeros_like(at) if at.grad is None else _dense(at.grad))
        encoder, by_inputs = {}, {}
        if with_encoder:
            for key, leaf in leaves.items():
                gradient = torch.zeros_like(leaf) if leaf.grad is None else _dense(leaf.grad)
                encoder[self.probes.layer_name(key)] = gradient.div_(task.size)
                leaf.grad = None
        if with_inputs:
            divisor = task.size if self.calibration.batch_weighting == "sample" else 1
            by_inputs = {"inputs": torch.cat([gradient.detach() for gradient in of_inputs]).div_(divisor)}
        for key, gradient in (*encoder.items(), *by_inputs.items()):
            if not gradient.isfinite().all():
                raise NonFiniteError(f"model {name!r}: the gradient with respect to {key!r} is NaN or infinite")
        return encoder, by_inputs

    def _loss(
        self, name: str, task: Task, rows: slice, tensors: Mapping[str, Tensor], inputs: Inputs, with_inputs: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the mean loss of a batch, and the tensor whose gradient is the input gradient, if it is wanted."""
        at: Tensor | None = None
        input_layer = self.calibration.input_layer
        if with_inputs and input_layer is None:
            every = inputs.values() if isinstance(inputs, dict) else [inputs]
            at = next(values for values in every if values.is_floating_point()).requires_grad_()
        if with_inputs and input_layer is not None:
            with _outputs_of(self.model, input_layer, with_gradient=True) as outputs:
                features = self._forward(tensors, inputs)
            at = _only(outputs, "input_layer", input_layer)
        else:
            features = self._forward(tensors, inputs)
        logits = self._logits(name, task, features)
        labels = self.probes.converted(task.labels[rows], self.device)
        if self.calibration.uses_classes and task.classes is None:
            check_classes(name, task.labels, logits.shape[1] if logits.dim() > 1 else logits.numel())
        loss = self._call(self.calibration.loss, logits, labels)
        where = f"model {name!r}, samples {rows.start} to {rows.stop - 1}"
        if not isinstance(loss, Tensor) or loss.dim():
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise CalibrationError(f"{where}: the loss must be a scalar, the mean over the batch, not {what}")
        if not loss.isfinite():
            raise CalibrationError(
                f"{where}: the loss is {loss.item()}; check inputs, labels and head, or run in dtype=torch.float64"
            )
        return loss, at

    def _logits(self, name: str, task: Task, features: Any) -> Tensor:
        if isinstance(task.head, nn.Module):
            return self._call(task.head, features)
        weight, bias = task.head
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != weight.shape[1]:
            what = f"{tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise CalibrationError(
                f"model {name!r}: a head of weight {tuple(weight.shape)} takes features (n, {weight.shape[1]}), but "
                f"the model returns {what}; give a head that is an nn.Module, or a model that returns features"
            )
        weight = self.probes.converted(weight, self.device)
        return nn.functional.linear(
            features, weight, None if bias is None else self.probes.converted(bias, self.device)
        )

    def _call(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Call a head or a loss; a module runs on its tensors as the encoder does."""
        if not isinstance(function, nn.Module):
            return function(*arguments)
        tensors = {name: self.probes.converted(values, self.device) for name, values in function.named_parameters()}
        for name, values in function.named_buffers():
            tensors[name] = self.probes.converted(values, self.device).clone()
        return functional_call(function, tensors, arguments)

    def _keep(self, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor] | Path:
        """Return the tensors if the budget has room for them, else the path that they are written to."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.held + size <= self.max_memory:
            self.held += size
            return {name: tensor.cpu() for name, tensor in tensors.items()}
        if size > (free := shutil.disk_usage(path.parent).free):
            raise OptionError(
                f"the gradients of a model take {size:,} bytes and do not fit max_memory={self.max_memory:,}; "
                f"{path.parent.parent} has {free:,} left. Give statistics= on a larger disk, or set TMPDIR"
            )
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
        return path

    def _encoder_gradients(self, kept: Sequence[Any]) -> EncoderGradientStatistics:
        found = {layer.name: layer for layer in self._gram_layers(kept)}
        # In the order of the model: files have another, and sums should not depend on what went to files.
        names = map(self.probes.layer_name, self.probes.parameters)
        return EncoderGradientStatistics(tuple(found[name] for name in names if name in found))

    def _input_gradients(self, kept: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> InputGradientStatistics:
        inner, squared_distance = (np.full((len(kept),) * 2, np.nan) for _ in range(2))
        for shape in dict.fromkeys(shapes):
            members = [index for index, other in enumerate(shapes) if other == shape]
            (layer,) = self._gram_layers([kept[index] for index in members])
            inner[np.ix_(members, members)] = layer.inner
            squared_distance[np.ix_(members, members)] = layer.squared_distance
        return InputGradientStatistics(inner, squared_distance, tuple(shapes))

    def _gram_layers(self, sources: Sequence[dict[str, Tensor] | Path]) -> Iterator[LayerStatistics]:
        """Yield the Gram of each tensor of the gradients of several models, read as the weights of a zoo are."""
        opened = [open_checkpoint(source, f"gradients_{index}") for index, source in enumerate(sources)]
        # A gradient has no base: the first one stands in its place, and is left out.
        for layer in LayerStream(align(opened[0], opened), self.max_memory):
            gram = Gram(*(np.zeros((len(opened),) * 2) for _ in range(2)))
            for _, gradients in layer.blocks():
                part = self._gram_of(gradients)
                gram = Gram(gram.inner + part.inner, gram.squared_distance + part.squared_distance)
                del gradients
            layer.release()
            yield LayerStatistics(layer.tensor.name, layer.tensor.shape, *gram)

    def _gram_of(self, vectors: Sequence[Tensor]) -> Gram:
        return self.backend.gram(None, [vector.to(self.device) for vector in vectors], self.threads)


@contextmanager
def _undisturbed(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Evaluation mode, products in full precision, the same random numbers for every model; then all as it was.

    What a caller has set around it does not reach the models: autocast, inference mode, TF32. Dropout is off; a model
    that draws random numbers all the same draws the same ones in every run.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_full_precision(device))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
            # The other kernels of attention add up in any order.
            stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        try:
            for part, _ in modes:
                part.training = False
            yield
        finally:
            for part, mode in modes:
                part.training = mode


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Give products and convolutions of float32 their own precision, in an order that does not change."""
    backends: Any = torch.backends
    flags: list[tuple[Any, str, Any]] = []
    has_one_name = hasattr(backends, "fp32_precision")  # torch 2.9; earlier there is one flag for each library
    if device.type == "cuda":
        flags = [(backends.cudnn, "deterministic", True), (backends.cudnn, "benchmark", False)]
        if has_one_name:
            parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
            flags += [(part, "fp32_precision", "ieee") for part in parts]
        else:
            flags += [(part, "allow_tf32", False) for part in (backends.cuda.matmul, backends.cudnn)]
    elif has_one_name:
        parts = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
        # "none" is the default, which is full precision.
        flags = [(part, "fp32_precision", "ieee") for part in parts if part.fp32_precision != "none"]
    before = [getattr(part, name) for part, name, _ in flags]
    try:
        for part, name, value in flags:
            setattr(part, name, value)
        yield
    finally:
        for (part, name, _), value in zip(flags, before, strict=True):
            setattr(part, name, value)


@contextmanager
def _outputs_of(model: nn.Module, layer: str, with_gradient: bool = False) -> Iterator[list[Any]]:
    """Gather the outputs of a module while the model runs; with their gradients, once they are computed."""
    outputs: list[Any] = []

    def gather(module: nn.Module, arguments: Any, output: Any) -> None:
        found = _first(output)
        if with_gradient and isinstance(found, Tensor) and found.is_floating_point():
            if not found.requires_grad:
                found.requires_grad_()
            found.retain_grad()
        outputs.append(found)

    handle = model.get_submodule(layer).register_forward_hook(gather)
    try:
        yield outputs
    finally:
        handle.remove()


def _first(output: Any) -> Any:
    """Return the tensor of an output, the first of a tuple or mapping."""
    while isinstance(output, tuple | list | Mapping) and len(output):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


def _only(outputs: Sequence[Any], what: str, layer: str) -> Tensor:
    if len(outputs) != 1:
        times = f"{len(outputs)} times" if outputs else "not at all"
        raise CalibrationError(f"{what} {layer!r} runs {times} when the model does; name a module that runs once")
    if not isinstance(outputs[0], Tensor) or not outputs[0].is_floating_point():
        found = outputs[0].dtype if isinstance(outputs[0], Tensor) else f"a {type(outputs[0]).__name__}"
        raise CalibrationError(f"{what} {layer!r} gives {found}, not a floating-point tensor")
    return outputs[0]


def _batches(every: Sequence[Inputs], size: int) -> Iterator[list[Inputs]]:
    """Yield the samples of several inputs, `size` at a time; a batch holds samples of one shape and kind."""
    pending: list[Inputs] = []
    room = size
    for inputs in every:
        start, count = 0, _length(inputs)
        while start < count:
            if pending and (room == 0 or _signature(pending[0]) != _signature(inputs)):
                yield pending
                pending, room = [], size
            stop = min(count, start + room)
            pending.append(_rows(inputs, slice(start, stop)))
            room -= stop - start
            start = stop
    if pending:
        yield pending


def _length(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def _rows(inputs: Inputs, rows: slice) -> Inputs:
    return {key: values[rows] for key, values in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def _signature(inputs: Inputs) -> Any:
    every = inputs.items() if isinstance(inputs, dict) else [("", inputs)]
    return sorted((key, str(values.dtype), tuple(values.shape[1:])) for key, values in every)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _by_first_name(named: Iterator[tuple[str, Tensor]]) -> dict[str, list[str]]:
    """Return all names of each tensor, by its first name: a module may know one under several."""
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
    return {every[0]: every for every in names.values()}


def _some(lines: Sequence[str]) -> str:
    return ", ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")


def _content_hash(checkpoint: Checkpoint) -> str:
    """Return a hash of every tensor of a checkpoint."""
    hasher = xxhash.xxh3_128()
    for name, tensor in sorted(checkpoint.tensors.items()):
        hasher.update(f"{name}\0{tensor.read_dtype}{tensor.shape}".encode())
        for start in range(0, tensor.count, _HASHED):
            block = checkpoint.read_range(name, start, min(start + _HASHED, tensor.count))
            hasher.update(block.view(torch.uint8).numpy())
    for name in sorted(checkpoint.buffers):
        values = checkpoint.read_buffer(name).contiguous()
        hasher.update(f"{name}\0{values.dtype}{tuple(values.shape)}".encode())
        hasher.update(values.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


@contextmanager
def _temporary_folder(parent: Path | None) -> Iterator[Path]:
    """Make a folder for gradients, in a folder of statistics or where temporary files are kept; then remove it."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{GRADIENTS_FOLDER}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=GRADIENTS_FOLDER, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
