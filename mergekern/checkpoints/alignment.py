"""Models in the names of their base, before their tensors are matched one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekern.checkpoints.adapter import Adapter
from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.names import renamed, take_names_of
from mergekern.checkpoints.tying import tie_heads
from mergekern.errors import OptionError


def rename_as_asked(base: Checkpoint | None, models: Sequence[Checkpoint], rename: Mapping[str, str]) -> None:
    """Rename tensors of the models as the user says; what the base has keeps its name.

    Raises:
        OptionError: no tensor of any model has one of the names' parts.
        MismatchError: two tensors of a model would get one name.
    """
    used: set[str] = set()
    for model in models:
        known = base.tensors.keys() | set(base.buffers) if base is not None else ()
        changed = renamed([*model.tensors, *model.buffers], known, rename, model.source)
        if changed:
            model.rename(changed)
            model.notes.append(f"{len(changed)} of its tensors were renamed as asked")
        used |= {old for old in rename for name in changed if f".{old}." in f".{name}." or not old}
    if unused := [old for old in rename if old not in used]:
        raise OptionError(
            f"rename: no tensor that the base lacks has {unused[0]!r} in its name, as whole parts between dots"
        )


def in_names_of(base: Checkpoint, models: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the models with the base's names where one renaming gives them, tied heads told apart, adapters bound.

    Raises:
        CheckpointError: two parts of an adapter change one tensor of the base, which ties them.
    """
    for model in models:
        take_names_of(base, model, model.factored if isinstance(model, Adapter) else ())
    adapters = [model for model in models if isinstance(model, Adapter)]
    tie_heads(
        base,
        [model for model in models if not isinstance(model, Adapter)],
        factored={name for adapter in adapters for name in adapter.factored},
        saved={name for adapter in adapters for name in adapter.needs_base if name not in adapter.factored},
        is_language_model=any(adapter.options.is_of_language_model for adapter in adapters),
    )
    return [model.bound(base) if isinstance(model, Adapter) else model for model in models]
