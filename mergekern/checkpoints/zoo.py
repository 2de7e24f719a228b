"""From what the user gives to N named checkpoints and a base, matched tensor by tensor, once and up front."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mergekern._internal.validation import one_of
from mergekern.checkpoints.adapter import Adapter, ImpliedBase
from mergekern.checkpoints.alignment import in_names_of, rename_as_asked
from mergekern.checkpoints.checkpoint import Change, Checkpoint
from mergekern.checkpoints.complex_numbers import refuse_changed_complex
from mergekern.checkpoints.heads import find_heads
from mergekern.checkpoints.mismatches import Mismatches, hint
from mergekern.checkpoints.names import check_rename
from mergekern.checkpoints.opening import open_checkpoint
from mergekern.checkpoints.rounding import note_rounding
from mergekern.checkpoints.sources import IO, CheckpointLike, ZooLike
from mergekern.checkpoints.zoo_sources import duplicate_names, zoo_sources
from mergekern.errors import CheckpointError, MismatchError, OptionError

logger = logging.getLogger(__name__)
OnMismatch = Literal["error", "skip"]

NO_BASE = (
    "no base checkpoint: task vectors are tuned − base, so pass base=PATH (--base on the command line), or, "
    "for a folder, name one checkpoint in it base.safetensors (or a subfolder base/); only metrics of nothing but LoRA "
    "adapters need none"
)


@dataclass(frozen=True)
class ZooTensor:
    """A tensor that the base and all models of a zoo have, under possibly different (tied) names."""

    name: str
    shape: tuple[int, ...]
    names: tuple[str, ...]  # in the base, then in each model

    @property
    def is_matrix(self) -> bool:
        """Whether singular values and vectors are defined for it."""
        return len(self.shape) == 2

    def select(self, models: Sequence[int]) -> ZooTensor:
        """Return it as a zoo of some of the models has it."""
        return replace(self, names=(self.names[0], *(self.names[1 + model] for model in models)))


@dataclass(frozen=True)
class Zoo:
    """A base and N models fine-tuned from it, with every tensor they share.

    Attributes:
        tensors: in the file order of the base, tied tensors once.
        skipped: one line for each tensor left out by `on_mismatch="skip"`.
        left_out: one sentence for each file and folder beside the models that is no model.
        heads: tensors of the heads, in any of the checkpoints, where they are told apart; they are not in `tensors`.
        tied: from each other name in the base of a tensor that all checkpoints tie, to its name in `tensors`.
    """

    base: Checkpoint
    models: tuple[Checkpoint, ...]
    tensors: tuple[ZooTensor, ...]
    skipped: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    heads: frozenset[str] = frozenset()

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models, in the order of every statistic and table."""
        return tuple(model.name for model in self.models)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The base, then the models: the order of `ZooTensor.names`."""
        return (self.base, *self.models)

    @property
    def notes(self) -> dict[str, list[str]]:
        """What is said of checkpoints, by their names; without those of which nothing is said."""
        return {checkpoint.name: checkpoint.notes for checkpoint in self.checkpoints if checkpoint.notes}

    def select(self, models: Sequence[int], tensor: ZooTensor) -> Zoo:
        """Return the zoo of some of the models, with one tensor."""
        return replace(self, models=tuple(self.models[model] for model in models), tensors=(tensor.select(models),))

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file is not the one that was opened."""
        for checkpoint in self.checkpoints:
            checkpoint.check_unchanged()

    def changes(self, tensor: ZooTensor) -> tuple[Change, ...]:
        """Return how each model comes to a tensor: "whole", by "factors" of the difference, or "none"."""
        return tuple(model.change(name) for model, name in zip(self.models, tensor.names[1:], strict=True))

    def nbytes(self, tensor: ZooTensor) -> int:
        """Bytes that are held of one tensor, in all models and, if any of them holds it whole, in the base."""
        base, *held = (c.bytes_of(name) for c, name in zip(self.checkpoints, tensor.names, strict=True))
        return sum(held) + (base if "whole" in self.changes(tensor) else 0)


def open_zoo(
    checkpoints: ZooLike,
    base: CheckpointLike | None = None,
    *,
    on_mismatch: OnMismatch = "error",
    io: IO = "mmap",
    needs_base: bool = True,
    first_as_base: bool = False,
    least: int = 2,
    rename: Mapping[str, str] | None = None,
    heads: Sequence[str] | None = None,
) -> Zoo:
    """Open N models and their base and match them.

    Args:
        checkpoints: a folder (each checkpoint in it a model, but the one named `base.*` the base, which `base`
            overrides; a folder that is a model itself, such as a Trainer's output, is one beside those in it; what is
            no model is named in `Zoo.left_out`), a sequence of paths or of in-memory checkpoints, or a mapping name ->
            checkpoint.
        base: the checkpoint all models were fine-tuned from; needed unless the folder has one, or `needs_base` is False
            and all models are LoRA adapters.
        on_mismatch: "error" reports every mismatch at once; "skip" leaves those tensors out.
        io: "mmap" or "pread".
        needs_base: whether the values of the base will be asked for also where no model holds a tensor whole.
        first_as_base: whether the first model takes the place of a base that is neither given nor found.
        least: how many models there must be.
        rename: parts of the models' tensor names to replace, OLD -> NEW, where the base lacks the name: the first place
            where the parts OLD stand between dots becomes NEW. An empty OLD is the beginning of every name, an empty
            NEW leaves the parts out. Wrappers such as `module.` or `_orig_mod.`, and prefixes that one renaming of all
            tensors adds, removes or moves, are seen without it, and said in `notes`.
        heads: patterns of the names of heads, which are told apart from the tensors that are matched; an empty sequence
            lets the rule of `checkpoints.heads` find them. None takes heads for tensors as all others.

    Raises:
        OptionError: no base, fewer than two models, duplicate names.
        CheckpointError: a checkpoint cannot be read.
        MismatchError: the checkpoints do not fit together.

    >>> import torch
    >>> models = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}
    >>> open_zoo(models, base={"w": torch.zeros(2)}).model_names
    ('a', 'b')
    """
    one_of("on_mismatch", on_mismatch, ("error", "skip"))
    one_of("io", io, ("mmap", "pread"))
    sources, found_base, left_out = zoo_sources(checkpoints, base)
    base = base if base is not None else found_base
    if base is None and first_as_base and sources:
        base = sources[0].given
    if base is None and (needs_base or not sources):
        raise OptionError(NO_BASE)
    if len(sources) < least:
        raise OptionError(
            f"{len(sources)} model{'' if len(sources) == 1 else 's'} found beside the base; "
            f"{'at least two are needed' if least == 2 else f'{least} is the least'}"
            + "".join(f"; {line}" for line in left_out[:3])
        )
    if any(source.name == "base" for source in sources):
        raise OptionError(
            "a model is called 'base', as the base itself is in messages and provenance; give it another name"
        )
    if duplicates := duplicate_names(sources):
        raise OptionError(
            f"duplicate model names: {', '.join(duplicates)}; give a mapping name -> checkpoint, or NAME=PATH on the "
            "command line, to name them yourself"
        )
    opened = tuple(open_checkpoint(source.given, source.name, io=io) for source in sources)
    for checkpoint, source in zip(opened, sources, strict=True):
        checkpoint.notes += source.notes
    rename = check_rename(rename)
    if base is None:
        rename_as_asked(None, opened, rename)
        return replace(align(_implied_base(opened, on_mismatch), opened, on_mismatch), left_out=left_out)
    opened_base = open_checkpoint(base, "base", io=io)
    if isinstance(opened_base, Adapter):
        raise CheckpointError(
            f"{opened_base.source}: a LoRA adapter cannot be the base; give the model it was trained on"
        )
    rename_as_asked(opened_base, opened, rename)
    zoo = replace(align(opened_base, opened, on_mismatch, heads), left_out=left_out)
    note_rounding(zoo.base, zoo.models, [tensor.names for tensor in zoo.tensors])
    return zoo


def _implied_base(models: Sequence[Checkpoint], on_mismatch: OnMismatch) -> Checkpoint:
    """Return the base of adapters as far as they tell it."""
    adapters = [model for model in models if isinstance(model, Adapter)]
    if len(adapters) < len(models):
        raise OptionError(NO_BASE)
    for adapter in adapters:
        if adapter.needs_base and on_mismatch == "error":
            raise OptionError(
                f"{adapter.source}: holds {adapter.needs_base[0]!r} whole (as modules_to_save, biases and embeddings "
                f"are), whose task vector is known with the base only: pass base={adapter.base_name or 'PATH'}, or "
                'on_mismatch="skip" to leave such tensors out'
            )
    if len(trained_on := {adapter.base_name for adapter in adapters if adapter.base_name}) > 1:
        logger.warning("the adapters name different bases: %s; are they adapters of one model?", ", ".join(trained_on))
    return ImpliedBase(adapters)


def align(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    on_mismatch: OnMismatch = "error",
    heads: Sequence[str] | None = None,
) -> Zoo:
    """Match the tensors of the models to those of the base; see `open_zoo`."""
    held = set(base.tensors)
    models = in_names_of(base, models)
    refuse_changed_complex(base, models)
    mismatches = Mismatches(len(models))
    tied: dict[Hashable, list[str]] = {}
    for name, tensor in base.tensors.items():
        tied.setdefault(tensor.storage, []).append(name)
    firsts = [
        {
            storage: first
            for storage, tie in tied.items()
            if (first := next((n for n in tie if n in model.tensors), None))
        }
        for model in models
    ]
    names: dict[str, list[str]] = {name: [name] for name in base.tensors}
    for name, tensor in base.tensors.items():
        for model, first_of in zip(models, firsts, strict=True):
            # A name that the base ties to another may be absent where a model was saved with the tie undone.
            found = name if name in model.tensors else first_of.get(tensor.storage)
            if found is None:
                kind = "integers" if name in model.buffers else "missing"
                mismatches.add(name, f"in {base.name!r} but {kind} in {{}}", model.name)
            elif model.tensors[found].shape != tensor.shape:
                shapes = f"shape {tensor.shape} in {base.name!r}, {model.tensors[found].shape} in {{}}"
                mismatches.add(name, shapes, model.name)
            else:
                names[name].append(found)
    for model in models:
        known = {model.tensors[name].storage for name in base.tensors if name in model.tensors}
        for name, tensor in model.tensors.items():
            if name not in base.tensors and tensor.storage not in known:
                kind = "integers" if name in base.buffers else "missing"
                mismatches.add(name, f"in {{}} but {kind} in {base.name!r}", model.name)
    found_heads: frozenset[str] = frozenset()
    if heads is not None:
        shared = {name: found for name, found in names.items() if name not in mismatches}
        found_heads = find_heads(base, models, matched=shared, mismatched=list(mismatches), patterns=heads)
        mismatches.leave(found_heads)
    lines = mismatches.lines
    if lines and on_mismatch == "error":
        raise mismatches.error(base, models)
    left = {*mismatches, *found_heads}
    matched = {name: tuple(found) for name, found in names.items() if name not in left}
    tensors, aliases = _tied_once((base, *models), matched)
    if not tensors:
        what = f"{base.name!r} and the models share no floating-point tensor"
        raise MismatchError("\n  ".join([what, *lines[:10], hint(base, models)]).rstrip())
    for name in aliases.keys() - held:  # Names of heads that proved to be the embedding everywhere, as the base has it.
        del aliases[name], base.tensors[name]
    return Zoo(base, tuple(models), tensors, lines, aliases, heads=found_heads)


def _tied_once(
    checkpoints: Sequence[Checkpoint], matched: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[ZooTensor, ...], dict[str, str]]:
    """Return each matched tensor that is not empty, once where every checkpoint ties names; and those other names."""
    found: dict[tuple[Hashable, ...], ZooTensor] = {}
    aliases = {}
    for name, names in matched.items():
        storages = tuple(c.tensors[n].storage for c, n in zip(checkpoints, names, strict=True))
        if storages in found:
            aliases[name] = found[storages].name
        elif checkpoints[0].tensors[name].count:
            found[storages] = ZooTensor(name, checkpoints[0].tensors[name].shape, names)
    return tuple(found.values()), aliases
