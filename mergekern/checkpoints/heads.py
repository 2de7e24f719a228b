"""Heads: the tensors of a checkpoint that belong to its task alone, so that a merge need not mix them.

A head is what lies outside the body that the architecture of config.json has, what timm names as its classifier, what
is called as heads are, and what not all checkpoints have, or have with another number of rows. A tensor that all
checkpoints tie to the body is none. Nor is one of a numbered layer, an embedding, or one whose other sides differ:
these are mismatches of the bodies.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.errors import OptionError

# What modules of heads are called, in transformers, torchvision and timm; others end with "head".
_NAMES = frozenset({
    "class_labels_classifier", "bbox_predictor", "classifier", "cls", "cls_classifier", "discriminator_predictions",
    "fc", "generator_lm_head", "generator_predictions", "heads", "logits_proj", "multi_label_classifier",
    "pre_classifier", "pred_layer", "predictions", "proj_out", "projector", "qa_outputs", "score", "vocab_projector",
    "vocab_transform", "vocab_layer_norm",
})  # fmt: skip
# Classes of transformers that have a head: BertForMaskedLM, GPT2LMHeadModel, XLMWithLMHeadModel, GPT2DoubleHeadsModel.
_HAS_HEAD = re.compile(r"For[A-Z]|LMHead|DoubleHeads")
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared|tok_embeddings)(\.|$)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
# A layer of a body has more tensors than one of a head's.
_LEAST_OF_LAYER = 4


def find_heads(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    *,
    matched: Mapping[str, Sequence[str]],
    mismatched: Collection[str],
    patterns: Sequence[str] = (),
) -> frozenset[str]:
    """Return the names of the heads' tensors, in any of the checkpoints.

    Args:
        base: whose names hold.
        models: in the names of the base.
        matched: tensors that all have, each with its name in every checkpoint.
        mismatched: the others.
        patterns: names of heads with *, ? and [...] as in file names; without any, the rule above finds them.

    Raises:
        OptionError: a pattern matches no tensor, or there are no heads.
    """
    checkpoints = (base, *models)
    names = dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.tensors)
    if patterns:
        if unused := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]:
            raise OptionError(
                f"head_tensors: no tensor is called {unused[0]!r}; names are such as {next(iter(names))!r}"
            )
        found = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    else:
        found = named_heads(checkpoints)
        layers = {_NUMBER.sub("#", name) for name in matched if _NUMBER.search(name)}
        found |= {name for name in mismatched if name not in found and _is_head(name, checkpoints, layers)}
    found -= _tied_to_body(checkpoints, matched, found)
    if not found:
        raise OptionError(
            "no tensor is a head: all match, and none lies outside the models' body; name those that are by "
            "head_tensors (--head-tensors)"
        )
    return frozenset(found)


def named_heads(checkpoints: Iterable[Checkpoint]) -> set[str]:
    """Return the names of the tensors that the structure of a checkpoint says to be its head.

    >>> from mergekern.checkpoints import open_checkpoint
    >>> import numpy as np
    >>> named_heads([open_checkpoint({"layer.weight": np.ones((3, 4)), "classifier.weight": np.ones((2, 3))})])
    {'classifier.weight'}
    """
    return {name for checkpoint in checkpoints for name in _heads_of(checkpoint)}


def _heads_of(checkpoint: Checkpoint) -> list[str]:
    # As the file calls them: a model's names may have become those of a base without prefix.
    stored = {name: checkpoint.stored_name(name) for name in checkpoint.tensors}
    tops: dict[str, list[str]] = {}
    for name in stored:
        tops.setdefault(stored[name].partition(".")[0], []).append(name)
    classifiers = _classifiers_of_timm(checkpoint.config)
    if classifiers:
        return [name for name, own in stored.items() if own.startswith(classifiers)]
    bodies = [top for top, inside in tops.items() if _has_layers(stored[name] for name in inside)]
    architectures = checkpoint.config.get("architectures")
    named = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if named and not any(_HAS_HEAD.search(name) for name in named):
        return []
    heads = [top for top in tops if top in _NAMES or top.endswith("head")]
    if named and len(bodies) == 1 and bodies[0] not in heads:
        heads = [top for top in tops if top != bodies[0]]
    return [name for top in heads for name in tops[top] if len(tops) > 1 and not _EMBEDDING.search(stored[name])]


def _classifiers_of_timm(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = config.get("pretrained_cfg")
    named = found.get("classifier") if isinstance(found, Mapping) else None
    named = [named] if isinstance(named, str) else named
    return tuple(f"{name}." for name in named if isinstance(name, str)) if isinstance(named, list | tuple) else ()


def _has_layers(names: Iterable[str]) -> bool:
    """Tell whether some of the names are those of a numbered layer with as many tensors as a body's."""
    counts: dict[str, int] = {}
    for name in names:
        if number := _NUMBER.search(name):
            layer = name[: number.end()]
            counts[layer] = counts.get(layer, 0) + 1
    return max(counts.values(), default=0) >= _LEAST_OF_LAYER


def _is_head(name: str, checkpoints: Sequence[Checkpoint], layers: Collection[str]) -> bool:
    """Tell whether a tensor that does not match may be a head; `layers` are the names of layers that all share."""
    if _NUMBER.search(name) and _NUMBER.sub("#", name) in layers:
        return False
    if any(name not in checkpoint.tensors for checkpoint in checkpoints):
        return True
    is_vocabulary = all(c.tensors[name].shape[:1] == (c.config.get("vocab_size"),) for c in checkpoints)
    others = {checkpoint.tensors[name].shape[1:] for checkpoint in checkpoints}
    return len(others) == 1 and not is_vocabulary and not _EMBEDDING.search(name)


def _tied_to_body(
    checkpoints: Sequence[Checkpoint], matched: Mapping[str, Sequence[str]], heads: Collection[str]
) -> set[str]:
    """Return the heads that every checkpoint ties to a tensor that is none."""
    body = set()
    tied = {}
    for name, names in matched.items():
        tied[name] = tuple(c.tensors[own].storage for c, own in zip(checkpoints, names, strict=True))
        if name not in heads:
            body.add(tied[name])
    return {name for name in heads if tied.get(name) in body}
