"""Models of transformers, built from their configurations: bodies that tasks share, and what tasks have of their own.

Nothing is downloaded and no code of a model's folder is run: classes are those of the library, by the name of their
kind in the configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mergekern._internal.extras import needs
from mergekern.errors import CalibrationError


class Kind(NamedTuple):
    """A kind of task: the Auto class of its models, whether each task has a head of its own, and its loss."""

    auto: str
    has_heads: bool
    loss: str


KINDS = {
    "causal-lm": Kind("AutoModelForCausalLM", False, "next_token"),
    "seq2seq-lm": Kind("AutoModelForSeq2SeqLM", False, "tokens"),
    "sequence-classification": Kind("AutoModelForSequenceClassification", True, "cross_entropy"),
    "image-classification": Kind("AutoModelForImageClassification", True, "cross_entropy"),
}
# Attribute of a built module: what files may call its tensors.
_NAMES = "_names_in_files"
# What a configuration may say that would run code of others, load kernels, or quantise.
_NOT_TAKEN = (
    "auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_commit_hash", "custom_pipelines",
)  # fmt: skip
# What a configuration counts -> more than any model has of it.
_MOST = {re.compile(r"layer|depth|block|expert"): 10_000, re.compile(r"labels|classes"): 10_000_000}


def library() -> Any:
    """Return the module of transformers.

    Raises:
        CalibrationError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise CalibrationError(needs("a model of transformers", "evaluation", error)) from error
    return transformers


def plain_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, and those of its parts, without what would run code or load kernels.

    >>> plain_configuration({"model_type": "bert", "auto_map": {"AutoModel": "theirs.py"}})
    {'model_type': 'bert'}
    """
    return {
        key: plain_configuration(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NOT_TAKEN
    }


def build(kind: str, config: Mapping[str, Any], what: str) -> Any:
    """Return a model of transformers with weights of no meaning; messages call what it is of `what`.

    Raises:
        CalibrationError: the library does not know the model's kind, or has no such class of it.
    """
    transformers = library()
    if reason := excess(config):
        raise CalibrationError(f"{what}: {reason}")
    said = plain_configuration(config) | {"use_cache": False}
    model_type = said.pop("model_type", None)
    try:
        # In the precision that the caller converts from; torch's random numbers stay as they were.
        with torch.random.fork_rng([]):
            configuration = transformers.AutoConfig.for_model(model_type, **said)
            model = getattr(transformers, KINDS[kind].auto).from_config(
                configuration, attn_implementation="eager", trust_remote_code=False, dtype=torch.float32
            )
    except Exception as error:  # of many kinds, as the library checks values in many ways
        line = str(error).strip().partition("\n")[0][:200]
        raise CalibrationError(f"{what}: transformers builds no {kind} model of its configuration: {line}") from error
    return model.eval()


def excess(config: Mapping[str, Any]) -> str:
    """Return why a configuration is of no model that can be built: more parts than any model has; else "".

    The library makes a module of each, and a name of each label.

    >>> excess({"text_config": {"num_hidden_layers": 2**31}})
    'config.json says num_hidden_layers=2147483648, more than any model has'
    """
    for key, value in config.items():
        if isinstance(value, Mapping) and (found := excess(value)):
            return found
        most = next((most for pattern, most in _MOST.items() if pattern.search(str(key))), None)
        for number in value if isinstance(value, list) else [value]:
            if most is not None and isinstance(number, int | float) and number > most:
                return f"config.json says {key}={str(number)[:20]}, more than any model has"
    return ""


def other_names(model: Any) -> dict[str, list[str]]:
    """Return what files may call the parameters and buffers of a model of transformers, by their names in its module.

    Files keep the names of older modules, which the library converts when it loads them. Parameters that it makes of
    several tensors of a file have no other name.
    """
    named: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5
        stored = dict(named)
    else:
        stored = revert_weight_conversion(model, dict(named))
    by_tensor = {id(tensor): name for name, tensor in stored.items()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, list[str]] = {}
    for name, tensor in named.items():
        names = [by_tensor.get(id(tensor), name), name]
        names += [each.removeprefix(prefix) for each in names]
        found[name] = list(dict.fromkeys(names))
    return found


@dataclass(frozen=True)
class TransformersModel:
    """Builds the module that all tasks share: the whole model of language models, the body of classifiers.

    Attributes:
        kind: one of `KINDS`.
        config: configuration of transformers, as config.json has it.
    """

    kind: str
    config: Mapping[str, Any] = field(repr=False)

    def __call__(self) -> nn.Module:
        """Return the module, which knows what files may call its tensors.

        Raises:
            CalibrationError: transformers cannot build it, or it has no body of its own.
        """
        whole = build(self.kind, self.config, "the calibration")
        names = other_names(whole)
        body = whole
        if KINDS[self.kind].has_heads:
            body = body_of(whole)
            prefix = f"{whole.base_model_prefix}."
            names = {name.removeprefix(prefix): every for name, every in names.items() if name.startswith(prefix)}
        vars(body)[_NAMES] = names
        return body


def names_in_files(module: nn.Module) -> dict[str, list[str]]:
    """Return what files may call the tensors of a module, where `TransformersModel` built it; else nothing."""
    return vars(module).get(_NAMES, {})


def body_of(whole: Any) -> nn.Module:
    """Return the body of a model of transformers.

    Raises:
        CalibrationError: its class does not keep body and head apart.
    """
    if whole.base_model is whole:
        raise CalibrationError(
            f"{type(whole).__name__} of transformers keeps no body apart from its head; give Calibration a model and "
            "heads yourself"
        )
    return whole.base_model


class OwnHead:
    """What a task has of its own beside the body that all share: the class of its model, and its tensors.

    Args:
        kind: one of `KINDS`.
        config: configuration of the task's model.
        tensors: its head, and what else the body has that not all models share, by their names in its file.

    Attributes:
        kind, config, tensors: as given.
        classes: the number of its logits.
    """

    def __init__(self, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.kind, self.config, self.tensors = kind, config, dict(tensors)
        labels = config.get("id2label")
        self.classes = len(labels) if isinstance(labels, Mapping) and labels else int(config.get("num_labels", 2))
        self._whole: Any = None
        self._prefix = ""
        self._own: dict[str, str] = {}  # parameters of the whole model -> names in `tensors`

    def __repr__(self) -> str:
        """Return what it is in a line."""
        return f"OwnHead({self.config.get('model_type')}, {self.classes} classes)"

    @property
    def identity(self) -> list[Any]:
        """What tells it from other heads, beside its tensors."""
        return [self.kind, json.dumps(plain_configuration(self.config), sort_keys=True), _version()]

    def own_names(self, body: nn.Module) -> set[str]:
        """Return the names in files of the tensors of a body that it has in place of what the models share."""
        return {name for every in names_in_files(body).values() for name in every if name in self.tensors}

    def logits(self, body: nn.Module, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], inputs: Any) -> Any:
        """Return the logits of the task's model with the tensors of a body.

        Args:
            body: the module that all tasks share, as `TransformersModel` built it.
            tensors: its parameters and buffers.
            own: `self.tensors`, converted as these are.
            inputs: by keyword.
        """
        self._bind(body)
        values = {f"{self._prefix}{name}": values for name, values in tensors.items()}
        values |= {name: own[stored] for name, stored in self._own.items()}
        return functional_call(self._whole, values, (), inputs).logits

    def _bind(self, body: nn.Module) -> None:
        if self._whole is not None and self._whole.base_model is body:
            return
        with torch.device("meta"):
            whole = build(self.kind, self.config, "a task's head")
        names = other_names(whole)
        body_of(whole)
        setattr(whole, whole.base_model_prefix, body)
        self._whole, self._prefix = whole, f"{whole.base_model_prefix}."
        own = {name: next((each for each in names[name] if each in self.tensors), None) for name in names}
        lacking = [name for name, stored in own.items() if stored is None and not name.startswith(self._prefix)]
        if lacking:
            raise CalibrationError(f"{self!r} lacks {', '.join(lacking[:5])}; it has {', '.join(self.tensors)}")
        self._own = {name: stored for name, stored in own.items() if stored is not None}


class Logits(nn.Module):
    """The head of language models, whose logits are part of what the model returns."""

    def forward(self, output: Any) -> Tensor:
        """Return the logits of an output of transformers."""
        return output["logits"]


def _version() -> str:
    return library().__version__
