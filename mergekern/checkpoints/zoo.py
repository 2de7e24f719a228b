"""From what the user gives to N named checkpoints and a base, matched tensor by tensor, once and up front."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mergekern.checkpoints.adapter import Adapter, ImpliedBase
from mergekern.checkpoints.checkpoint import Change, Checkpoint
from mergekern.checkpoints.formats import IO, SUFFIXES, checkpoint_name, is_checkpoint, open_checkpoint
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

    def of(self, models: Sequence[int]) -> ZooTensor:
        """Return it as a zoo of some of the models has it."""
        return replace(self, names=(self.names[0], *(self.names[1 + model] for model in models)))


@dataclass(frozen=True)
class Zoo:
    """A base and N models fine-tuned from it, with every tensor they share.

    Attributes:
        tensors: in the file order of the base, tied tensors once.
        skipped: one line for each tensor left out by `on_mismatch="skip"`.
        tied: from each other name in the base of a tensor that all checkpoints tie, to its name in `tensors`.
    """

    base: Checkpoint
    models: tuple[Checkpoint, ...]
    tensors: tuple[ZooTensor, ...]
    skipped: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models, in the order of every statistic and table."""
        return tuple(model.name for model in self.models)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The base, then the models: the order of `ZooTensor.names`."""
        return (self.base, *self.models)

    def of(self, models: Sequence[int], tensor: ZooTensor) -> Zoo:
        """Return the zoo of some of the models, with one tensor."""
        return replace(self, models=tuple(self.models[model] for model in models), tensors=(tensor.of(models),))

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
    checkpoints: Any,
    base: Any = None,
    *,
    on_mismatch: OnMismatch = "error",
    io: IO = "mmap",
    needs_base: bool = True,
    least: int = 2,
) -> Zoo:
    """Open N models and their base and match them.

    Args:
        checkpoints: a folder (each checkpoint in it a model, but the one named `base.*` the base, which `base`
            overrides), a sequence of paths or of in-memory checkpoints, or a mapping name -> checkpoint.
        base: the checkpoint all models were fine-tuned from; needed unless the folder has one, or `needs_base` is False
            and all models are LoRA adapters.
        on_mismatch: "error" reports every mismatch at once; "skip" leaves those tensors out.
        io: "mmap" or "pread".
        needs_base: whether the values of the base will be asked for also where no model holds a tensor whole.
        least: how many models there must be.

    Raises:
        OptionError: no base, fewer than two models, duplicate names.
        CheckpointError: a checkpoint cannot be read.
        MismatchError: the checkpoints do not fit together.

    >>> models = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}
    >>> open_zoo(models, base={"w": torch.zeros(2)}).model_names
    ('a', 'b')
    """
    if on_mismatch not in ("error", "skip"):
        raise OptionError(f"on_mismatch must be 'error' or 'skip', not {on_mismatch!r}")
    if io not in ("mmap", "pread"):
        raise OptionError(f"io must be 'mmap' or 'pread', not {io!r}")
    sources, found_base = _sources(checkpoints, base)
    base = base if base is not None else found_base
    if base is None and (needs_base or not sources):
        raise OptionError(NO_BASE)
    if len(sources) < least:
        raise OptionError(
            f"{len(sources)} model{'' if len(sources) == 1 else 's'} found beside the base; "
            f"{'at least two are needed' if least == 2 else f'{least} is the least'}"
        )
    names = [name for name, _ in sources]
    if "base" in names:
        raise OptionError(
            "a model is called 'base', as the base itself is in messages and provenance; give it another name"
        )
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise OptionError(
            f"duplicate model names: {', '.join(duplicates)}; give a mapping name -> checkpoint to name them yourself"
        )
    opened = tuple(open_checkpoint(source, name, io=io) for name, source in sources)
    if base is None:
        return align(_implied_base(opened, on_mismatch), opened, on_mismatch)
    opened_base = open_checkpoint(base, "base", io=io)
    if isinstance(opened_base, Adapter):
        raise CheckpointError(
            f"{opened_base.source}: a LoRA adapter cannot be the base; give the model it was trained on"
        )
    return align(opened_base, opened, on_mismatch)


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


def align(base: Checkpoint, models: Sequence[Checkpoint], on_mismatch: OnMismatch = "error") -> Zoo:
    """Match the tensors of the models to those of the base; see `open_zoo`."""
    models = [model.bound(base) if isinstance(model, Adapter) else model for model in models]
    mismatches: dict[str, list[str]] = {}

    def mismatch(name: str, what: str) -> None:
        mismatches.setdefault(name, []).append(what)

    tied: dict[Hashable, list[str]] = {}
    for name, tensor in base.tensors.items():
        tied.setdefault(tensor.storage, []).append(name)
    names: dict[str, list[str]] = {}
    for name, tensor in base.tensors.items():
        names[name] = [name]
        for model in models:
            # A name that the base ties to another may be absent where a model was saved with the tie undone.
            found = next((n for n in (name, *tied[tensor.storage]) if n in model.tensors), None)
            if found is None:
                kind = "integers" if name in model.buffers else "missing"
                mismatch(name, f"in {base.name!r} but {kind} in {model.name!r}")
            elif model.tensors[found].shape != tensor.shape:
                mismatch(name, f"shape {tensor.shape} in {base.name!r}, {model.tensors[found].shape} in {model.name!r}")
            else:
                names[name].append(found)
    for model in models:
        known = {model.tensors[name].storage for name in base.tensors if name in model.tensors}
        for name, tensor in model.tensors.items():
            if name not in base.tensors and tensor.storage not in known:
                kind = "integers" if name in base.buffers else "missing"
                mismatch(name, f"in {model.name!r} but {kind} in {base.name!r}")
    lines = tuple(f"{name}: {'; '.join(what)}" for name, what in mismatches.items())
    if lines and on_mismatch == "error":
        count = f"{len(lines)} tensor{'s do' if len(lines) > 1 else ' does'}"
        shown = "\n  ".join(lines)
        raise MismatchError(
            f"{count} not match between the checkpoints:\n  {shown}\n"
            'Give checkpoints of one architecture, or on_mismatch="skip" to leave these tensors out.'
        )
    matched = {name: tuple(found) for name, found in names.items() if name not in mismatches}
    tensors, aliases = _tied_once((base, *models), matched)
    if not tensors:
        raise MismatchError("\n  ".join([f"{base.name!r} and the models share no floating-point tensor", *lines[:10]]))
    return Zoo(base, tuple(models), tensors, lines, aliases)


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


def _sources(checkpoints: Any, base: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Return [(name, source)] of the models, without the base, and the base found among them, if any."""
    if isinstance(checkpoints, str | os.PathLike):
        return _folder_sources(Path(checkpoints), base)
    if isinstance(checkpoints, Mapping):
        if any(isinstance(value, torch.Tensor) for value in checkpoints.values()):
            raise OptionError(
                "`checkpoints` is a state dict (name -> tensor); give a mapping from model name to checkpoint"
            )
        return [(str(name), source) for name, source in checkpoints.items()], None
    if isinstance(checkpoints, Sequence):
        return [
            (checkpoint_name(Path(item)) if isinstance(item, str | os.PathLike) else f"model_{index}", item)
            for index, item in enumerate(checkpoints)
            if not _is_same(item, base)
        ], None
    raise OptionError(
        "`checkpoints` is a folder, a sequence of checkpoints, or a mapping name -> checkpoint, not "
        f"{type(checkpoints).__name__}"
    )


def named_sources(checkpoints: Any) -> dict[str, Any]:
    """Return checkpoints by name; one path may stand for itself, other forms are those of `open_zoo`.

    Raises:
        OptionError: two have one name, or they are given in none of these forms.

    >>> named_sources("zoo/mnist.safetensors")
    {'mnist': 'zoo/mnist.safetensors'}
    """
    is_path = isinstance(checkpoints, str | os.PathLike)
    is_folder = is_path and Path(checkpoints).is_dir() and not is_checkpoint(Path(checkpoints))
    if is_path and not is_folder:
        checkpoints = [checkpoints]
    sources, _ = _sources(checkpoints, None)
    if duplicates := sorted({name for name, _ in sources if sum(name == other for other, _ in sources) > 1}):
        raise OptionError(f"duplicate model names: {', '.join(duplicates)}; give a mapping name -> checkpoint")
    return dict(sources)


def _is_same(source: Any, base: Any) -> bool:
    """Tell whether a path is that of the base, or of the folder that the base's file lies in."""
    if not all(isinstance(path, str | os.PathLike) for path in (source, base)):
        return False
    path, base_path = Path(source).resolve(), Path(base).resolve()
    return path == base_path or (path == base_path.parent and base_path.is_file())


def _folder_sources(folder: Path, base: Any) -> tuple[list[tuple[str, Any]], Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder of checkpoints")
    sources: list[tuple[str, Any]] = []
    found_base = None
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_checkpoint(path) or _is_same(path, base):
            continue
        if checkpoint_name(path) == "base":  # never a model, also where another base is given
            if found_base is not None and base is None:
                raise OptionError(f"{folder}: two bases, {found_base.name} and {path.name}; pass base=PATH")
            found_base = path
        else:
            sources.append((checkpoint_name(path), path))
    if not sources:
        raise CheckpointError(f"{folder}: no checkpoints in it ({', '.join(SUFFIXES)}, or Hugging Face folders)")
    return sources, found_base
