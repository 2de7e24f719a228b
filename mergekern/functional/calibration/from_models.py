"""Calibrations of zoos of transformers: samples become what models take, and heads are those of the models' folders."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mergekern.checkpoints import Checkpoint, Zoo, open_zoo
from mergekern.checkpoints.adapter import Adapter
from mergekern.checkpoints.folder_files import home
from mergekern.errors import CalibrationError, did_you_mean
from mergekern.functional.calibration.architectures import (
    KINDS,
    Logits,
    OwnHead,
    TransformersModel,
    names_in_files,
)
from mergekern.functional.calibration.inputs import INPUTS
from mergekern.functional.calibration.losses import LOSSES
from mergekern.merging.owners import configuration_of_owner

# Samples that a model is run on at a time where its own predictions are taken for labels.
_RUN = 32


def calibration_parts(
    kind: str, models: Any, base: Any, samples: Any, labels: Any, max_length: int, layer: str | None
) -> dict[str, Any]:
    """Return the arguments of a `Calibration` for a zoo of transformers.

    Args:
        kind: one of `KINDS`.
        models, base: as for `open_zoo`, or a `Zoo`.
        samples: texts or images, or a mapping of them by the name of the model whose task they are.
        labels: likewise; None takes what each model predicts.
        max_length: tokens of a text beyond which it is cut off.
        layer: whose output the activation is; None for the last hidden state.

    Raises:
        CalibrationError: models are no folders of transformers, or samples or labels do not fit them.
    """
    zoo = models if isinstance(models, Zoo) else open_zoo(models, base, on_mismatch="skip", heads=None)
    configs = {model.name: _configuration(model, zoo, kind) for model in zoo.models}
    shared = TransformersModel(kind, zoo.base.config if _is_of(zoo.base, kind) else next(iter(configs.values())))
    module = shared()
    tasks: dict[str, tuple[Any, Any, Any]] = {}
    predicted = labels is None
    for model in zoo.models:
        own = _of_model(samples, model.name, zoo, "samples")
        inputs, targets, pad = INPUTS[kind](own, _homes(model, zoo), max_length)
        inputs = _accepted(module, inputs)
        if not KINDS[kind].has_heads:
            tasks[model.name] = (inputs, targets, Logits())
            continue
        config = {**configs[model.name], **({} if pad is None else {"pad_token_id": pad})}
        head = OwnHead(kind, config, _own_tensors(model, zoo, module))
        given = (
            _predictions(model, zoo, module, head, inputs)
            if predicted
            else _labels(_of_model(labels, model.name, zoo, "labels"), config, model.name)
        )
        tasks[model.name] = (inputs, given, head)
    loss = KINDS[kind].loss
    if any(task[1].is_floating_point() for task in tasks.values()):
        loss = "by_labels"
    return {
        "model": shared, "tasks": tasks, "layer": _last_layer(module) if layer is None else layer,
        "loss": LOSSES[loss], "input_layer": _embedding(module) if kind != "image-classification" else None,
    }  # fmt: skip


def kind_of(zoo: Zoo) -> str:
    """Return the kind of task that the models of a zoo are for, by their architectures.

    Raises:
        CalibrationError: they do not say one, or different ones.
    """
    ends = {
        "ForCausalLM": "causal-lm", "LMHeadModel": "causal-lm", "ForConditionalGeneration": "seq2seq-lm",
        "ForSequenceClassification": "sequence-classification", "ForImageClassification": "image-classification",
    }  # fmt: skip
    found = set()
    for model in zoo.models:
        config = configuration_of_owner(model, zoo.base, zoo.heads)
        said = config.get("architectures")
        named = [str(name) for name in said] if isinstance(said, list) else []
        found |= {kind for end, kind in ends.items() if any(name.endswith(end) for name in named)} or {"another kind"}
    if len(found) != 1 or "another kind" in found:
        raise CalibrationError(
            f"the architectures of the models are of {' and of '.join(sorted(found))}; say what to run them as, of "
            f"{', '.join(KINDS)} (--task)"
        )
    return found.pop()


def _is_of(base: Checkpoint, kind: str) -> bool:
    """Tell whether the base is a language model itself, so that its configuration is that of all."""
    return not KINDS[kind].has_heads and "model_type" in base.config


def _configuration(model: Checkpoint, zoo: Zoo, kind: str) -> Mapping[str, Any]:
    config = configuration_of_owner(model, zoo.base, _unshared(model, zoo))
    if "model_type" not in config:
        raise CalibrationError(
            f"model {model.name!r}: {model.source} has no config.json of transformers, by which to build a {kind} "
            "model; give Calibration a model yourself"
        )
    return config


def _unshared(model: Checkpoint, zoo: Zoo) -> frozenset[str]:
    """Return the names of a model's tensors that not all checkpoints of the zoo share."""
    position = zoo.checkpoints.index(model)
    return frozenset(model.tensors) - {tensor.names[position] for tensor in zoo.tensors}


def _homes(model: Checkpoint, zoo: Zoo) -> list[Path]:
    """Return the folders in which a model's tokenizer or preprocessor may lie."""
    return [folder for folder in (home(model), home(zoo.base)) if folder is not None]


def _of_model(given: Any, name: str, zoo: Zoo, what: str) -> Any:
    """Return what is given for a model, where it is not the same for all."""
    if not isinstance(given, Mapping) or not set(given) & set(zoo.model_names):
        return given
    if name not in given:
        raise CalibrationError(f"no {what} for {name!r}{did_you_mean(name, given)}; every model needs some")
    return given[name]


def _accepted(module: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that a model takes."""
    known = inspect.signature(module.forward).parameters
    said = (getattr(module.config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    start = next((token for token in said if token is not None), None)
    if "decoder_input_ids" in known and "decoder_input_ids" not in inputs and start is not None:
        # Classifiers give the decoder the text itself, one token later; the body of T5 alone does not.
        decoder = torch.full_like(inputs["input_ids"], start)
        decoder[:, 1:] = inputs["input_ids"][:, :-1]
        inputs = {**inputs, "decoder_input_ids": decoder}
    return {name: values for name, values in inputs.items() if name in known}


def _own_tensors(model: Checkpoint, zoo: Zoo, module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model that are no part of the body, or that not all models share, by stored names."""
    of_body = {name for names in names_in_files(module).values() for name in names}
    unshared = _unshared(model, zoo)
    wanted = [name for name in model.tensors if name in unshared or not {name, model.stored_name(name)} & of_body]
    if isinstance(model, Adapter) and any(name not in zoo.base.tensors for name in wanted):
        wanted = [name for name in wanted if name not in zoo.base.tensors]
    return {model.stored_name(name): model.read(name).clone() for name in wanted}


def body_tensors(model: Checkpoint, module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a body that a checkpoint holds, in float32."""
    found = {}
    for name, names in names_in_files(module).items():
        held = next((each for each in names if each in model.tensors), None)
        if held is not None:
            found[name] = model.read(held).to(torch.float32)
    return found


@torch.no_grad()
def _predictions(model: Checkpoint, zoo: Zoo, module: nn.Module, head: OwnHead, inputs: dict[str, Tensor]) -> Tensor:
    """Return the classes that a model predicts for its samples, (n,)."""
    if head.config.get("problem_type") in ("regression", "multi_label_classification") or head.classes < 2:
        raise CalibrationError(f"model {model.name!r}: is no classifier of one label a sample; give labels")
    own = {name: values.to(torch.float32) for name, values in head.tensors.items()}
    tensors = {**dict(module.named_buffers()), **body_tensors(model, module)}
    size = len(next(iter(inputs.values())))
    found = []
    for start in range(0, size, _RUN):
        rows = {key: values[start : start + _RUN] for key, values in inputs.items()}
        found.append(head.logits(module, tensors, own, rows).argmax(dim=1))
    return torch.cat(found)


def _labels(given: Any, config: Mapping[str, Any], model: str) -> Tensor:
    """Return labels as a tensor: classes as integers, by number or by the name that the configuration has for them."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise CalibrationError(f"model {model!r}: labels are one for each sample, not {type(given).__name__}")
    found: list[Any] = list(given)
    said = config.get("label2id")
    names = said if isinstance(said, Mapping) else {}
    for index, label in enumerate(found):
        if isinstance(label, str):
            if label not in names:
                raise CalibrationError(f"model {model!r}: no label is called {label!r}{did_you_mean(label, names)}")
            found[index] = names[label]
        elif label is None:
            raise CalibrationError(f"model {model!r}: sample {index} has no label; give all of them one, or none")
    try:
        labels = torch.tensor(found)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"model {model!r}: labels are no numbers or names of classes ({error})") from error
    return labels.float() if labels.is_floating_point() else labels


def _last_layer(module: Any) -> str:
    """Return the name of the part of a model whose output is the last hidden state."""
    prefix = getattr(module, "base_model_prefix", "")
    if type(module).__name__.endswith(("Model", "Encoder")) and not hasattr(module, "lm_head"):
        return ""
    return prefix if hasattr(module, prefix) and prefix else "decoder" if hasattr(module, "decoder") else ""


def _embedding(module: Any) -> str | None:
    """Return the name of the embedding of tokens: the encoder's, where a decoder has its own."""
    encoder = module.get_encoder() if getattr(module.config, "is_encoder_decoder", False) else module
    embedding = encoder.get_input_embeddings()
    return next((name for name, part in module.named_modules(remove_duplicate=False) if part is embedding), None)
