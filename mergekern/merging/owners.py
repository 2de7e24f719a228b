"""Owners of results: the checkpoints whose heads, configurations and tokenizers merges have; the base's by default."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekern.checkpoints import Checkpoint, Zoo
from mergekern.checkpoints.adapter import Adapter
from mergekern.checkpoints.configuration import read_configuration
from mergekern.checkpoints.folder_files import folder_files, home
from mergekern.errors import OptionError, did_you_mean

# Position of the base in `Zoo.checkpoints`; models follow.
BASE = 0
EACH = "each"
# Files that say how inputs become numbers; a fine-tuned model is often saved without them.
_OF_INPUTS = re.compile(
    r"(tokenizer|vocab|special_tokens_map|added_tokens|merges|preprocessor|processor|image_processor|feature_extractor"
    r"|video_preprocessor|chat_template|spiece|sentencepiece|source\.|target\.|bpe\.|tekken)[^/]*|[^/]*\.spm",
    re.IGNORECASE,
)
# What PEFT calls tasks -> how transformers ends the names of classes for them.
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering", "CAUSAL_LM": "ForCausalLM",
}  # fmt: skip
_STEM = re.compile(r"(?P<stem>\w+?)(For[A-Z]\w*|(With)?LMHeadModel|DoubleHeadsModel|PreTrainedModel|Model)")


def patterns_of(heads: str | None, head_tensors: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Return the patterns by which a zoo tells heads apart; None where heads are tensors like all others.

    Raises:
        OptionError: patterns are given without heads, or are no strings.
    """
    if heads is not None and not isinstance(heads, str):
        raise OptionError(f"heads is 'each', 'base' or the name of a model, not {heads!r}")
    if heads is None:
        if head_tensors:
            raise OptionError("head_tensors is of use with heads only: 'each', 'base' or the name of a model")
        return None
    patterns = [head_tensors] if isinstance(head_tensors, str) else list(head_tensors or ())
    if not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise OptionError(f"head_tensors are names of tensors, in which * stands for anything, not {head_tensors!r}")
    return tuple(patterns)


def owners_of(heads: str | None, zoo: Zoo, models: Sequence[int]) -> list[int]:
    """Return the positions among `Zoo.checkpoints` of those whose heads the results of one merge have.

    Args:
        heads: "each", "base", the name of a model, or None.
        zoo: the models.
        models: positions of those that are merged.

    Raises:
        OptionError: no model has this name.
    """
    if heads == EACH:
        return [1 + model for model in models]
    if heads in (None, "base"):
        return [BASE]
    if heads not in zoo.model_names:
        choices = (EACH, "base", *zoo.model_names)
        raise OptionError(
            f"heads is 'each', 'base' or the name of a model, not {heads!r}{did_you_mean(heads, choices)}"
        )
    return [1 + zoo.model_names.index(heads)]


def heads_of_owner(owner: Checkpoint, base: Checkpoint, heads: frozenset[str]) -> set[str]:
    """Return which of a zoo's heads an owner has; an adapter that brings a head has not that of its base."""
    own = {name for name in heads if name in owner.tensors}
    brought = own - set(base.tensors)
    return brought if isinstance(owner, Adapter) and brought else own


def configuration_of_owner(owner: Checkpoint, base: Checkpoint, heads: frozenset[str]) -> Mapping[str, Any]:
    """Return config.json of an owner: its own; for an adapter that has none, its base's with the adapter's task."""
    folder = home(owner)
    if not isinstance(owner, Adapter):
        return owner.config
    own = read_configuration(folder) if folder else {}
    if own or not base.config:
        return own
    config = dict(base.config)
    if name := _class_of_adapter(owner, base):
        config["architectures"] = [name]
    brought = {name: owner.tensors[name].shape for name in heads_of_owner(owner, base, heads) - set(base.tensors)}
    labels = min((shape[0] for shape in brought.values() if len(shape) == 2), default=None)
    if labels is not None:
        config["id2label"] = {str(label): f"LABEL_{label}" for label in range(labels)}
        config["label2id"] = {f"LABEL_{label}": label for label in range(labels)}
        config.pop("num_labels", None)
    return config


def _class_of_adapter(adapter: Adapter, base: Checkpoint) -> str | None:
    said = adapter.options.config
    mapping = said.get("auto_mapping")
    if isinstance(mapping, Mapping) and isinstance(mapping.get("base_model_class"), str):
        return mapping["base_model_class"]
    architectures = base.config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    found = _STEM.fullmatch(first) if isinstance(first, str) else None
    end = _CLASSES.get(str(said.get("task_type")))
    return f"{found['stem']}{end}" if found and end else None


def files_of_owner(owner: Checkpoint, base: Checkpoint, laid_out: Mapping[str, Path]) -> tuple[dict[str, Path], str]:
    """Return the files beside the weights of an owner's result that its own layout does not copy, and whose they are.

    Args:
        owner: whose head the result has.
        base: which an owner without tokenizer or preprocessor has these of.
        laid_out: the files that are copied from the folder that the result is laid out like.
    """
    folder = home(owner)
    if isinstance(owner, Adapter):
        return dict(folder_files(folder).copied) if folder else {}, "the adapter's"
    other = home(base)
    if owner is base or other is None or any(map(_OF_INPUTS.fullmatch, laid_out)):
        return {}, ""
    return {name: path for name, path in folder_files(other).copied.items() if _OF_INPUTS.fullmatch(name)}, "the base's"
