"""Weights in sub-folders of a checkpoint's folder, such as 2_Dense of sentence-transformers: merged by themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mergekern.checkpoints import Zoo, open_zoo
from mergekern.checkpoints.folder_files import folder_files, home
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch


@dataclass(frozen=True)
class SubModels:
    """The sub-folders with weights of a zoo's folders.

    Attributes:
        zoos: those that the base and all models have, by name, opened; the models in the order of the zoo.
        of_base: names of those of the base that not all models have.
        left_out: names of the others, and of all where the result is no folder.
    """

    zoos: dict[str, Zoo] = field(default_factory=dict)
    of_base: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def submodels(zoo: Zoo, folder: Path | None, on_mismatch: OnMismatch, io: IO) -> SubModels:
    """Return the sub-folders with weights.

    Args:
        zoo: the models.
        folder: the base's folder where the result is a folder, else None.
        on_mismatch, io: as for `open_zoo`.

    Raises:
        MismatchError, CheckpointError: as for `open_zoo`.
    """
    homes = [home(checkpoint) for checkpoint in zoo.checkpoints]
    held = [list(folder_files(each).submodels) if each else [] for each in homes]
    everyone = sorted({name for names in held for name in names})
    if folder is None:
        return SubModels(left_out=tuple(everyone))
    shared = [name for name in everyone if all(name in names for names in held)]
    of_base = tuple(name for name in held[0] if name not in shared)
    zoos = {name: _open(zoo, homes, name, on_mismatch, io) for name in shared}
    return SubModels(zoos, of_base, tuple(name for name in everyone if name not in (*shared, *of_base)))


def _open(zoo: Zoo, homes: list[Path | None], name: str, on_mismatch: OnMismatch, io: IO) -> Zoo:
    folders = [each / name for each in homes if each is not None]
    models = {f"{model.name}/{name}": folder for model, folder in zip(zoo.models, folders[1:], strict=True)}
    return open_zoo(models, folders[0], on_mismatch=on_mismatch, io=io)
