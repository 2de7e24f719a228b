"""Calibration: the samples, heads and choices with which models are run; checked when they are given."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from torch import nn

from mergekern._internal.validation import positive_integer
from mergekern.errors import CalibrationError, OptionError, did_you_mean
from mergekern.functional.calibration.architectures import (
    OwnHead,
    TransformersModel,
    names_in_files,
    plain_configuration,
)
from mergekern.functional.calibration.folder import (
    HEAD_OPTIONS,
    OPTIONS_FILE,
    SAVED_OPTIONS,
    content_of_task,
    read_options,
    read_task,
    write_folder,
)
from mergekern.functional.calibration.from_models import calibration_parts
from mergekern.functional.calibration.identity import describe_code, describe_module, update, update_by_task
from mergekern.functional.calibration.losses import LOSSES, Loss, name_of
from mergekern.functional.calibration.tasks import Inputs, Task, check_classes, make_task

__all__ = ["OPTIONS_FILE", "Calibration", "Inputs", "OwnHead", "Task", "check_classes", "names_in_files"]

BatchWeighting = Literal["published", "sample"]


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What the activation and gradient metrics run the models on.

    The models run in evaluation mode: no dropout, and batch normalisation by the running statistics of each checkpoint.
    Encoder and head get back the mode they were in; nothing of them changes.

    Args:
        model: an `nn.Module` whose state dict has the names and shapes of the checkpoints, or a function without
            arguments that returns one; its own weights are not used. It takes inputs (n, ...) to features.
        tasks: name of a model -> (inputs, labels, head). Every model of the zoo needs one; activations are averaged
            over the samples of all tasks that are here, also those without a model. A task is

            inputs: (n, ...) tensor, or a mapping of them by the keyword under which the model takes each (token ids,
            attention mask, ...). Floating-point inputs are converted to `dtype`.
            labels: (n,) integer classes, or whatever `loss` takes.
            head: (weight (classes, h), bias (classes,) or None) on features (n, h), or an `nn.Module` that takes what
            the model returns to logits.
        layer: name of the module whose output is the activation, as in `model.named_modules()`. Of a tuple or mapping
            the first is taken; 3-D outputs are averaged over `token_dim` (padding included, as published); those of
            more dimensions are flattened.
        loss: (logits, labels) -> mean loss of the batch, a scalar; or the name of one, which alone a folder keeps:
            "cross_entropy", "next_token" and "tokens" of language models, "by_labels" as transformers chooses for the
            labels of a classifier.
        batch_size: samples in a gradient batch.
        activation_batch_size: samples in an activation batch; it has no influence on the values.
        batch_weighting: "published": the encoder gradient is the sum over batches of the gradients of their mean
            losses, divided by the number of samples n; the input gradient is that of each batch's mean loss. It
            depends on `batch_size`, and its length on n. "sample": both are gradients of the mean loss of all n
            samples.
        token_dim: dimension of 3-D outputs that tokens are along.
        input_layer: name of the module (an embedding, for instance) at whose output the input gradient is taken;
            by default at the inputs themselves, which integer inputs do not allow.
        dtype: in which the models run, whatever the checkpoints are stored in.
        normalize_features: whether features are divided by their length before heads given as weights, as in CLIP's
            zero-shot classifiers and in the study.
        logit_scale: what the logits of such heads are multiplied by; CLIP's exp(logit_scale) is about 100.

    Raises:
        CalibrationError: a task or a layer that cannot be used: labels outside the head's classes, unequal numbers of
            inputs and labels, NaN inputs, a layer that the model does not have.
        OptionError: an option that is out of range.

    >>> encoder = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    >>> draw = torch.Generator().manual_seed(0)
    >>> head = torch.randn(5, 2, generator=draw), torch.zeros(5)
    >>> samples = torch.randn(10, 4, generator=draw), torch.arange(10) % 5
    >>> calibration = Calibration(encoder, {"a": (*samples, head), "b": (*samples, head)}, "1")
    >>> base = encoder.state_dict()
    >>> tuned = {m: {k: v + torch.randn(v.shape, generator=draw) for k, v in base.items()} for m in "ab"}
    >>> import mergekern
    >>> mergekern.compute_all(tuned, base, calibration=calibration, metrics="activation_dot_product")
    MetricTable(2 models, 1 pairs, 1 metrics)
    """

    model: nn.Module | Callable[[], nn.Module]
    tasks: Mapping[str, Any]  # of Task, once they are checked
    layer: str
    _: KW_ONLY
    loss: Any = nn.functional.cross_entropy  # a Loss, once it is checked
    batch_size: int = 8
    activation_batch_size: int = 32
    batch_weighting: BatchWeighting = "published"
    token_dim: int = 1
    input_layer: str | None = None
    dtype: torch.dtype = torch.float32
    normalize_features: bool = False
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check everything, and turn arrays into tensors."""
        if not callable(self.model):
            raise CalibrationError(
                f"model is an nn.Module, or a function that returns one, not a {type(self.model).__name__}"
            )
        if isinstance(self.loss, str) and self.loss in LOSSES:
            object.__setattr__(self, "loss", LOSSES[self.loss])
        if not callable(self.loss):
            raise CalibrationError(
                f"loss is a function of logits and labels, or of {', '.join(LOSSES)}, not {self.loss!r}"
            )
        for name in ("batch_size", "activation_batch_size"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        if self.batch_weighting not in ("published", "sample"):
            raise OptionError(f"batch_weighting must be 'published' or 'sample', not {self.batch_weighting!r}")
        if isinstance(self.token_dim, bool) or self.token_dim not in (0, 1, 2):
            raise OptionError(f"token_dim must be 0, 1 or 2, not {self.token_dim!r}")
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point and self.dtype.itemsize > 1):
            raise OptionError(f"dtype must be float32, float64, bfloat16 or float16 of torch, not {self.dtype!r}")
        if not isinstance(self.tasks, Mapping) or not self.tasks:
            raise CalibrationError("tasks is a mapping of each model's name to (inputs, labels, head)")
        checked = {str(name): make_task(str(name), given, self.uses_classes) for name, given in self.tasks.items()}
        object.__setattr__(self, "tasks", checked)
        self._check_head_options()
        if isinstance(self.model, nn.Module):
            self.check_layers(self.model)

    def _check_head_options(self) -> None:
        if not isinstance(self.normalize_features, bool):
            raise OptionError(f"normalize_features must be True or False, not {self.normalize_features!r}")
        scale = self.logit_scale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise OptionError(f"logit_scale must be a positive number, not {scale!r}")
        modules = [name for name, task in self.tasks.items() if not isinstance(task.head, tuple)]
        if modules and self._head_options():
            raise CalibrationError(
                f"task {modules[0]!r}: normalize_features and logit_scale are of heads given as (weight, bias); this "
                "one is a module, which does so itself"
            )

    def _head_options(self) -> dict[str, Any]:
        """Return the options of heads that are not the default."""
        return {name: getattr(self, name) for name, plain in HEAD_OPTIONS.items() if getattr(self, name) != plain}

    @property
    def uses_classes(self) -> bool:
        """Whether labels are classes: whether the loss is cross-entropy."""
        return self.loss is nn.functional.cross_entropy

    @staticmethod
    def from_folder(
        folder: str | os.PathLike[str],
        model: nn.Module | Callable[[], nn.Module] | None = None,
        layer: str | None = None,
        *,
        loss: Loss | None = None,
        batch_size: int | None = None,
        activation_batch_size: int | None = None,
        batch_weighting: BatchWeighting | None = None,
        token_dim: int | None = None,
        input_layer: str | None = None,
        dtype: torch.dtype | None = None,
        normalize_features: bool | None = None,
        logit_scale: float | None = None,
    ) -> Calibration:
        """Read samples and heads from a folder, so that runs on the same samples can be compared.

        The folder has, for each task, NAME.safetensors with `inputs` (or `inputs.KEYWORD` for each of several),
        `labels`, `head.weight` and, if there is one, `head.bias`; other tensors are left unread. calibration.json may
        give the options. Nothing in the folder is executed: the model is given by the caller, or is one of transformers
        by its configuration. `save` and python/make_digits_zoo.py write such folders.

        Args:
            folder: to be read.
            model: as for `Calibration`; not needed where the folder is of models of transformers.
            layer, loss, batch_size, activation_batch_size, batch_weighting: as for `Calibration`. None takes the value
                in calibration.json, or else the default of `Calibration`.
            token_dim, input_layer, dtype, normalize_features, logit_scale: likewise.

        Raises:
            CalibrationError: a file that is missing, damaged or something else; no layer is given anywhere.

        >>> import tempfile
        >>> encoder, head = nn.Linear(3, 2), nn.Linear(2, 4)
        >>> calibration = Calibration(encoder, {"a": (torch.ones(5, 3), torch.arange(5) % 4, head)}, "")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     calibration.save(folder)
        ...     Calibration.from_folder(folder, encoder).tasks["a"].inputs.shape
        torch.Size([5, 3])
        """
        folder = Path(folder)
        given = {
            "layer": layer, "loss": loss, "batch_size": batch_size, "activation_batch_size": activation_batch_size,
            "batch_weighting": batch_weighting, "token_dim": token_dim, "input_layer": input_layer, "dtype": dtype,
            "normalize_features": normalize_features, "logit_scale": logit_scale,
        }  # fmt: skip
        options = read_options(folder / OPTIONS_FILE)
        options |= {name: value for name, value in given.items() if value is not None}
        kind, config, configs = (options.pop(name, None) for name in ("kind", "config", "configs"))
        if kind is not None and model is None:
            model = TransformersModel(kind, config)
        elif kind is not None:
            raise CalibrationError(f"{folder}: is of {kind} models of transformers, which it builds; give no model")
        if model is None:
            say = (
                "does not say what builds the model; give model= (--model-fn)" if folder.is_dir() else "no such folder"
            )
            raise CalibrationError(f"{folder}: {say}; `mergekern calibrate` writes one of models of transformers")
        if options.pop("own_loss", False) and "loss" not in options:
            raise CalibrationError(f"{folder}: was saved with a loss of its own, which no file holds; give loss=")
        if "layer" not in options:
            raise CalibrationError(f"{folder}: no {OPTIONS_FILE} names the layer of the activations; give layer=")
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        if not files:
            raise CalibrationError(f"{folder}: not a folder of calibration samples, TASK.safetensors")
        tasks = {path.stem: read_task(path, kind, (configs or {}).get(path.stem)) for path in files}
        return Calibration(model, tasks, **options)

    @staticmethod
    def for_causal_lm(
        models: Any, texts: Any, base: Any = None, *, max_length: int = 128, layer: str | None = None
    ) -> Calibration:
        """Return the calibration of language models of transformers: the loss of the next token of texts.

        Nothing is downloaded, and no code of a folder is run. `dataclasses.replace` changes other options.

        Args:
            models: a zoo, as `compute_all` takes it, of folders of transformers, or of LoRA adapters of such a base; or
                a `Zoo`.
            texts: strings, or token ids and attention mask as tensors (n, length) by keyword; the same for all models,
                or a mapping of them by the models' names.
            base: the base, if it is not in the folder.
            max_length: tokens beyond which a text is cut off.
            layer: the module whose output is the activation; by default that of the last hidden state.

        Raises:
            CalibrationError: models are no folders of transformers, the library is missing, or texts do not fit them.
        """
        return Calibration(**calibration_parts("causal-lm", models, base, texts, None, max_length, layer))

    @staticmethod
    def for_seq2seq_lm(
        models: Any, pairs: Any, base: Any = None, *, max_length: int = 128, layer: str | None = None
    ) -> Calibration:
        """Return the calibration of models with encoder and decoder: pairs (text, target). See `for_causal_lm`."""
        return Calibration(**calibration_parts("seq2seq-lm", models, base, pairs, None, max_length, layer))

    @staticmethod
    def for_sequence_classification(
        models: Any,
        texts: Any,
        labels: Any = None,
        base: Any = None,
        *,
        max_length: int = 128,
        layer: str | None = None,
    ) -> Calibration:
        """Return the calibration of classifiers of texts, each with the head of its own folder.

        Args:
            models, base, max_length, layer: as for `for_causal_lm`; heads may differ, and the base need not have one.
            texts: as for `for_causal_lm`; or pairs of strings.
            labels: one for each text, or a mapping of them by the models' names: numbers or names of classes, floats
                of regression, or lists of floats of several labels a text. None takes what each model predicts.
        """
        kind = "sequence-classification"
        return Calibration(**calibration_parts(kind, models, base, texts, labels, max_length, layer))

    @staticmethod
    def for_image_classification(
        models: Any, images: Any, labels: Any = None, base: Any = None, *, layer: str | None = None
    ) -> Calibration:
        """Return the calibration of classifiers of images, each with the head of its own folder.

        Args:
            models, labels, base, layer: as for `for_sequence_classification`.
            images: paths or images of Pillow, or a tensor (n, channels, height, width) as the models take it; the same
                for all models, or a mapping of them by the models' names.
        """
        return Calibration(**calibration_parts("image-classification", models, base, images, labels, 0, layer))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the samples, heads and options to a folder that `from_folder` reads.

        Model and loss are code and are not saved, but models of transformers by their configurations, and losses that
        have a name.

        Raises:
            CalibrationError: a head is a module other than a plain `nn.Linear` (a subclass, or one with hooks, is code
                too), or a name cannot be that of a file.
        """
        contents = {name: content_of_task(name, task) for name, task in self.tasks.items()}
        loss = name_of(self.loss)
        options = {key: getattr(self, key) for key in SAVED_OPTIONS} | {"own_loss": loss is None}
        options |= self._head_options()
        options["dtype"] = str(self.dtype).removeprefix("torch.")
        if loss not in (None, "cross_entropy"):
            options["loss"] = loss
        if isinstance(self.model, TransformersModel):
            heads = {name: task.head for name, task in self.tasks.items() if isinstance(task.head, OwnHead)}
            options |= {"kind": self.model.kind, "config": plain_configuration(self.model.config)}
            options["configs"] = {name: plain_configuration(head.config) for name, head in heads.items()}
        write_folder(Path(folder), contents, options)

    def __repr__(self) -> str:
        """Return what it is in a line."""
        model = self.model if isinstance(self.model, TransformersModel) else getattr(self.model, "__name__", None)
        samples = sum(task.size for task in self.tasks.values())
        return (
            f"Calibration({model or type(self.model).__name__}, {len(self.tasks)} tasks, {samples} samples, "
            f"layer {self.layer!r})"
        )

    def build(self) -> nn.Module:
        """Return the model; torch's random numbers are left as they were.

        Raises:
            CalibrationError: the function does not return a module, or the module lacks a layer.
        """
        if isinstance(self.model, nn.Module):
            model = self.model
        else:
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
            with torch.random.fork_rng(devices):
                model = self.model()
        if not isinstance(model, nn.Module):
            raise CalibrationError(f"the function given as model returned a {type(model).__name__}, not an nn.Module")
        self.check_layers(model)
        return model

    def check_layers(self, model: nn.Module) -> None:
        """Raise CalibrationError if the model does not have the layers that are named."""
        known = dict(model.named_modules())
        for what, name in (("layer", self.layer), ("input_layer", self.input_layer)):
            if name is not None and name not in known:
                hint = did_you_mean(name, known, 3) or f"; it has {', '.join(filter(None, list(known)[:8]))}, …"
                raise CalibrationError(f"{what} {name!r} is not a module of the {type(model).__name__}{hint}")

    def check_input_gradient(self) -> None:
        """Raise CalibrationError if it is not clear what input gradients are with respect to."""
        if self.input_layer is not None:
            return
        for name, task in self.tasks.items():
            every = task.inputs if isinstance(task.inputs, dict) else {"inputs": task.inputs}
            floating = [key for key, values in every.items() if values.is_floating_point()]
            if len(floating) != 1:
                what = f"several floating-point ones ({', '.join(floating)})" if floating else "integers alone"
                raise CalibrationError(
                    f"task {name!r}: its inputs are {what}; name the module at whose output (the embedding, for "
                    "instance) the input gradient is taken, by input_layer="
                )

    def content_hash(self, model: nn.Module) -> str | None:
        """Return a hash of samples, heads, options and of the model's structure.

        The structure is what classes and `repr` of the modules say, the names and shapes of their tensors, and the
        content of buffers that no state dict holds. None where a loss or head is code that cannot be told from other
        code: a closure, or an object with a state of its own.
        """
        if (loss := describe_code(self.loss)) is None:
            return None
        options = {key: str(getattr(self, key)) for key in (*SAVED_OPTIONS, *self._head_options())}
        hasher = xxhash.xxh3_128(json.dumps([options, loss, *describe_module(model)]).encode())
        saved = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name not in saved:
                update(hasher, name, buffer)
        for name, task in sorted(self.tasks.items()):
            update_by_task(hasher, name, task)
        return f"xxh3_128:{hasher.hexdigest()}"

    def provenance(self, model: nn.Module) -> dict[str, Any]:
        """Return what identifies the calibration, for the provenance of a table."""
        options = {key: getattr(self, key) for key in SAVED_OPTIONS}
        return {
            **options,
            **self._head_options(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "loss": getattr(self.loss, "__qualname__", type(self.loss).__qualname__),
            "model": f"{type(model).__module__}.{type(model).__qualname__}",
            "samples": {name: task.size for name, task in self.tasks.items()},
            "content_hash": self.content_hash(model),
        }
