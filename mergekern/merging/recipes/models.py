"""The models of a recipe: where they lie, and each of them opened once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mergekern.checkpoints import open_checkpoint
from mergekern.checkpoints.adapter import Adapter
from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.folder_files import home
from mergekern.checkpoints.hub import fetch, is_hub_id
from mergekern.checkpoints.selection import Selected, Selection
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.tying import is_embedding
from mergekern.checkpoints.zoo import align
from mergekern.errors import CheckpointError
from mergekern.merging.recipes.schema import ModelPart, PathPart


@dataclass(frozen=True)
class Model:
    """A model of a recipe, opened.

    Attributes:
        text: the model as the recipe names it.
        checkpoint: its tensors; what an adapter adds is in the dtype of the model.
        files: the checkpoints that are read for it.
        folder: the folder of Hugging Face that the model lies in, without its adapter; None for a file.
    """

    text: str
    checkpoint: Checkpoint
    files: tuple[Checkpoint, ...]
    folder: Path | None

    @property
    def rows_of_embedding(self) -> int | None:
        """Rows of its embedding of tokens; None where it has none."""
        tensors = self.checkpoint.tensors
        found = (tensor for name, tensor in tensors.items() if is_embedding(name) and len(tensor.shape) == 2)
        return next((tensor.shape[0] for tensor in found), None)


class Models:
    """Opens the models of a recipe, each once.

    Args:
        place: the folder of the recipe, where paths are looked for that the working folder lacks; None for no other.
        io: how files are read.
    """

    def __init__(self, place: Path | None, io: IO) -> None:
        self._place, self._io = place, io
        self._opened: dict[str, Model] = {}

    def __getitem__(self, part: ModelPart) -> Model:
        """Return a model, opened.

        Raises:
            CheckpointError: it is not there, or cannot be read.
        """
        if part.text not in self._opened:
            self._opened[part.text] = self._open(part)
        return self._opened[part.text]

    @property
    def opened(self) -> list[Model]:
        """All models that were asked for, in that order."""
        return list(self._opened.values())

    def folder(self, part: ModelPart) -> Path:
        """Return the folder of a model, which need not be opened nor hold weights.

        Raises:
            CheckpointError: it is not there, or no folder.
        """
        found = self._find(part.model)
        path = Path(found) if os.path.exists(found) else fetch(found)[0]
        if not path.is_dir():
            raise CheckpointError(f"{part.text}: is no folder")
        return path

    def _open(self, part: ModelPart) -> Model:
        whole = self._there(part.text)
        if part.lora is None or (whole and not self._there(_text(part.model))):
            found = open_checkpoint(whole or self._find(part.model), part.text, io=self._io)
            if isinstance(found, Adapter):
                raise CheckpointError(
                    f"{part.text}: is a LoRA adapter; write the model before it that it was trained on, as "
                    f"MODEL+{part.text}"
                )
            return Model(part.text, found, (found,), home(found))
        # Opened for itself: an adapter may tie or rename what it is added to.
        base = open_checkpoint(self._find(part.model), _text(part.model), io=self._io)
        adapter = open_checkpoint(self._find(part.lora), part.text, io=self._io)
        if not isinstance(adapter, Adapter):
            raise CheckpointError(f"{_text(part.lora)}: is no LoRA adapter, which is what may stand after a plus sign")
        (bound,) = align(base, [adapter]).models
        tensors = {name: Selected(name, tensor.read_dtype) for name, tensor in base.tensors.items()}
        merged = Selection(bound, tensors, {name: name for name in bound.buffers})
        merged.notes += base.notes
        merged.config = base.config
        return Model(part.text, merged, (base, adapter), home(base))

    def _find(self, part: PathPart) -> str:
        text = _text(part)
        found = self._there(text) or (self._there(part.path) if part.revision is None else None)
        if found:
            return found
        if is_hub_id(text) and Path(part.path).suffix != ".safetensors":
            return text
        places = "the working folder" if self._place is None else f"the working folder and in {self._place}"
        raise CheckpointError(f"{text}: no such file or folder in {places}, and no name of a model on the Hub")

    def _there(self, text: str) -> str | None:
        """Return where a path exists, in the working folder or beside the recipe."""
        if os.path.exists(text):
            return text
        beside = self._place / text if self._place else None
        return str(beside) if beside and beside.exists() else None


def _text(part: PathPart) -> str:
    return part.path if part.revision is None else f"{part.path}@{part.revision}"
