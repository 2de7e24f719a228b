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
        others: names of those that not all have, of the base and of each model; of all where the result is no folder.
    """

    zoos: dict[str, Zoo] = field(default_factory=dict)
    others: tuple[tuple[str, ...], ...] = ()

    def left_out(self, owner: int | None) -> tuple[str, ...]:
        """Return the names of those that are left out of a result whose others are an owner's, or of one without."""
        own = () if owner is None else self.others[owner]
        return tuple(sorted({name for names in self.others for name in names} - set(own)))


def submodels(zoo: Zoo, folder: Path | None, on_mismatch: OnMismatch, io: IO) -> SubModels:
    """Return the sub-folders with weights.

    Args:
        zoo: the models.
        folder: that which the result is laid out like, where it is a folder, else None.
        on_mismatch, io: as for `open_zoo`.

    Raises:
        MismatchError, CheckpointError: as for `open_zoo`.
    """
    homes = [home(checkpoint) for checkpoint in zoo.checkpoints]
    held = [list(folder_files(each).submodels) if each else [] for each in homes]
    if folder is None:
        return SubModels(others=tuple(map(tuple, held)))
    shared = sorted(set(held[0]).intersection(*held[1:]))
    zoos = {name: _open(zoo, homes, name, on_mismatch, io) for name in shared}
    return SubModels(zoos, tuple(tuple(name for name in names if name not in shared) for names in held))


def _open(zoo: Zoo, homes: list[Path | None], name: str, on_mismatch: OnMismatch, io: IO) -> Zoo:
    folders = [each / name for each in homes if each is not None]
    models = {f"{model.name}/{name}": folder for model, folder in zip(zoo.models, folders[1:], strict=True)}
    return open_zoo(models, folders[0], on_mismatch=on_mismatch, io=io)
