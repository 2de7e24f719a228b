"""One pass over the models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergekern.errors import CalibrationError, NonFiniteError
from mergekern.functional.batches import batches, length, rows_of, tensors_of
from mergekern.functional.calibration import Inputs, Task
from mergekern.functional.forward import Forward, described
from mergekern.functional.gradients import GradientKeeper, Kept, dense, temporary_folder
from mergekern.functional.hooks import only_output, outputs_of
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.dispatch import Backend
from mergekern.kernels.gram import Blocks, Gram, whole
from mergekern.statistics import (
    ActivationKernelStatistics,
    ActivationStatistics,
    EncoderGradientStatistics,
    FunctionalStatistics,
    InputGradientStatistics,
)

if TYPE_CHECKING:
    from mergekern.functional.binding import Binding

logger = logging.getLogger(__name__)


class ModelRuns:
    """Each model is run, and what it gives is kept until all can be compared."""

    def __init__(
        self, binding: Binding, kinds: frozenset[str], backend: Backend | DeviceBackend, threads: int, max_memory: int,
        folder: Path | None, progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.binding, self.calibration, self.model = binding, binding.calibration, binding.model
        self.forward = Forward(binding, backend.device)
        self.kinds, self.backend, self.threads, self.max_memory = kinds, backend, threads, max_memory
        self.device = backend.device
        self.folder, self.progress = folder, progress

    def measure(self) -> FunctionalStatistics:
        names = self.binding.zoo.model_names
        means: list[np.ndarray] = []
        kernels: list[Kept] = []
        of_encoder: list[Kept] = []
        of_inputs: list[Kept] = []
        shapes: list[tuple[int, ...]] = []
        with temporary_folder(self.folder) as folder:
            keeper = GradientKeeper(folder, self.max_memory, self._gram_of)
            for index, (name, checkpoint) in enumerate(zip(names, self.binding.zoo.models, strict=True)):
                with self.forward.undisturbed():
                    parameters, buffers = self.binding.tensors(checkpoint, self.device)
                    if self.kinds & {"activations", "activation_kernels"}:
                        self._report(f"activations of {name}")
                        mean, kernel = self._activation(name, {**parameters, **buffers})
                        means.append(mean)
                        if kernel is not None:
                            kernels.append(keeper.keep({"kernel": kernel}, f"kernel_{index}"))
                    if self.kinds & {"encoder_gradients", "input_gradients"}:
                        self._report(f"gradients of {name}")
                        encoder, inputs = self._gradients(name, parameters, buffers)
                        if "encoder_gradients" in self.kinds:
                            of_encoder.append(keeper.keep(encoder, f"encoder_{index}"))
                        if "input_gradients" in self.kinds:
                            shapes.append(tuple(inputs["inputs"].shape))
                            of_inputs.append(keeper.keep(inputs, f"inputs_{index}"))
                        del encoder, inputs
                    del parameters, buffers
            return FunctionalStatistics(
                self._activations(means) if "activations" in self.kinds else None,
                self._encoder_gradients(keeper, of_encoder) if "encoder_gradients" in self.kinds else None,
                self._input_gradients(keeper, of_inputs, shapes) if "input_gradients" in self.kinds else None,
                self._activation_kernels(keeper, kernels) if "activation_kernels" in self.kinds else None,
            )

    def _report(self, what: str) -> None:
        logger.info("running the %s", what)
        self.progress(what)

    # --- activations

    @torch.no_grad()
    def _activation(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[np.ndarray, Tensor | None]:
        """Return what the layer gives for the n samples of all tasks: its mean (h,), and its kernel if that is wanted.

        Both are float64; the kernel (n, n) is centred.
        """
        total: Tensor | None = None
        every: list[Tensor] = []
        # Sorted, so that the order in which models or tasks are given has no part in the last bits.
        tasks = [task for _, task in sorted(self.calibration.tasks.items())]
        for parts in batches([task.inputs for task in tasks], self.calibration.activation_batch_size):
            inputs = self.binding.inputs(parts, self.device)
            with outputs_of(self.model, self.calibration.layer) as outputs:
                self.forward.features(tensors, inputs)
            output = only_output(outputs, "layer", self.calibration.layer)
            values, count = self._per_sample(output).double(), sum(map(length, parts))
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
            if "activation_kernels" in self.kinds:
                every.append(values)
        assert total is not None
        mean = total / sum(task.size for task in tasks)
        if not mean.isfinite().all():
            raise NonFiniteError(f"model {name!r}: the output of layer {self.calibration.layer!r} is NaN or infinite")
        return mean.cpu().numpy(), _centred_kernel(torch.cat(every)) if every else None

    def _per_sample(self, output: Tensor) -> Tensor:
        """Return activations as (n, h): 3-D ones averaged over the tokens, others flattened."""
        if output.dim() == 3:
            return output.mean(dim=self.calibration.token_dim)
        return output.reshape(len(output), -1) if output.dim() else output.reshape(1, 1)

    def _activations(self, means: list[np.ndarray]) -> ActivationStatistics:
        gram = self._gram_of(whole(None, [torch.from_numpy(mean) for mean in means]))
        count = sum(task.size for task in self.calibration.tasks.values())
        return ActivationStatistics(np.stack(means), gram.inner, gram.squared_distance, count)

    def _activation_kernels(self, keeper: GradientKeeper, kept: Sequence[Kept]) -> ActivationKernelStatistics:
        (layer,) = keeper.compare(kept)
        return ActivationKernelStatistics(layer.inner, layer.squared_distance, layer.shape[0])

    # --- gradients

    @torch.enable_grad()
    def _gradients(
        self, name: str, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the gradients of a model on its own task: {parameter: gradient}, and {"inputs": (n, ...)}.

        Both are measured whichever is asked for: torch chooses kernels by what requires a gradient, and a value must
        not depend on what else is asked for. Alone, an input gradient would be some 1e-9 away.
        """
        task, size = self.calibration.tasks[name], self.calibration.batch_size
        # Aliases of the weights that gather gradients: the loss is that of the batch, the sum takes no second copy.
        leaves = {key: values.detach().requires_grad_() for key, values in parameters.items()}
        of_inputs = []
        for start in range(0, task.size, size):
            rows = slice(start, min(start + size, task.size))
            inputs = self.binding.inputs([rows_of(task.inputs, rows)], self.device)
            loss, at = self._loss(name, task, rows, {**leaves, **buffers}, inputs)
            if not loss.requires_grad:
                raise CalibrationError(f"model {name!r}: the loss does not depend on the model; is a result detached?")
            share = rows.stop - rows.start if self.calibration.batch_weighting == "sample" else 1
            (loss * share if share > 1 else loss).backward(inputs=[*leaves.values(), *([] if at is None else [at])])
            if at is not None:
                of_inputs.append(dense(at.grad, at).detach())
        encoder, by_inputs = {}, {}
        for key, leaf in leaves.items():
            encoder[self.binding.layer_name(key)] = dense(leaf.grad, leaf).div_(task.size)
            leaf.grad = None
        if of_inputs:
            divisor = task.size if self.calibration.batch_weighting == "sample" else 1
            by_inputs = {"inputs": torch.cat(of_inputs).div_(divisor)}
        for kind, gradients in (("encoder_gradients", encoder), ("input_gradients", by_inputs)):
            for key, gradient in gradients.items():
                if kind in self.kinds and not gradient.isfinite().all():
                    raise NonFiniteError(f"model {name!r}: the gradient with respect to {key!r} is NaN or infinite")
        return encoder, by_inputs

    def _loss(
        self, name: str, task: Task, rows: slice, tensors: Mapping[str, Tensor], inputs: Inputs
    ) -> tuple[Tensor, Tensor | None]:
        """Return the mean loss of a batch, and the tensor whose gradient is the input gradient, if it has a meaning."""
        at: Tensor | None = None
        if self.calibration.input_layer is not None:
            with outputs_of(self.model, self.calibration.input_layer, with_gradient=True) as outputs:
                logits = self.forward.logits(name, task, tensors, inputs)
            at = only_output(outputs, "input_layer", self.calibration.input_layer)
        else:
            floating = [values for values in tensors_of(inputs) if values.is_floating_point()]
            if len(floating) == 1:
                at = floating[0].requires_grad_()
            logits = self.forward.logits(name, task, tensors, inputs)
        loss = self.forward.loss(name, task, rows, logits)
        if not loss.isfinite():
            raise CalibrationError(
                f"model {name!r}, {described(rows)}: the loss is {loss.item()}; check inputs, labels and head, or run "
                "in dtype=torch.float64"
            )
        return loss, at

    def _encoder_gradients(self, keeper: GradientKeeper, kept: Sequence[Kept]) -> EncoderGradientStatistics:
        found = {layer.name: layer for layer in keeper.compare(kept)}
        # In the order of the model: files have another, and sums should not depend on what went to files.
        names = map(self.binding.layer_name, self.binding.parameters)
        return EncoderGradientStatistics(tuple(found[name] for name in names if name in found))

    def _input_gradients(
        self, keeper: GradientKeeper, kept: Sequence[Kept], shapes: Sequence[tuple[int, ...]]
    ) -> InputGradientStatistics:
        inner, squared_distance = (np.full((len(kept),) * 2, np.nan) for _ in range(2))
        for shape in dict.fromkeys(shapes):
            members = [index for index, other in enumerate(shapes) if other == shape]
            (layer,) = keeper.compare([kept[index] for index in members])
            inner[np.ix_(members, members)] = layer.inner
            squared_distance[np.ix_(members, members)] = layer.squared_distance
        return InputGradientStatistics(inner, squared_distance, tuple(shapes))

    def _gram_of(self, blocks: Blocks) -> Gram:
        return self.backend.gram(blocks, self.threads, 0)


def _centred_kernel(activations: Tensor) -> Tensor:
    """Return the inner products of activations (n, h) less their mean: the kernel, centred along both sides.

    >>> _centred_kernel(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    tensor([[ 1., -1.],
            [-1.,  1.]])
    """
    centred = activations - activations.mean(dim=0)
    return centred @ centred.T
