"""Gradients of N models, held or in files until all can be compared."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mergekern._internal.claims import workspace
from mergekern.checkpoints import Layer, LayerStream, open_checkpoint
from mergekern.checkpoints.zoo import align
from mergekern.errors import OptionError
from mergekern.kernels.gram import Blocks, Gram
from mergekern.statistics import LayerStatistics

FOLDER_PREFIX = ".gradients-"
# What one model's gradients are kept as: the tensors by name, or the file that they were written to.
Kept = dict[str, Tensor] | Path


class GradientKeeper:
    """Keeps gradients within a budget of memory, the others in files, and compares those of several models.

    Args:
        folder: for files.
        max_memory: bytes held at a time.
        gram: the kernel.
    """

    def __init__(self, folder: Path, max_memory: int, gram: Callable[[Blocks], Gram]) -> None:
        self._folder, self._max_memory, self._gram = folder, max_memory, gram
        self._held = 0

    def keep(self, tensors: dict[str, Tensor], name: str) -> Kept:
        """Return the tensors if the budget has room for them, else the path that they are written to.

        Raises:
            OptionError: no room on the disk.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._held + size <= self._max_memory:
            self._held += size
            return {name: tensor.cpu() for name, tensor in tensors.items()}
        if size > (free := shutil.disk_usage(self._folder).free):
            raise OptionError(
                f"the gradients of a model take {size:,} bytes and do not fit max_memory={self._max_memory:,}; "
                f"{self._folder.parent} has {free:,} left. Give statistics= on a larger disk, or set TMPDIR"
            )
        path = self._folder / f"{name}.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
        return path

    def compare(self, every: Sequence[Kept]) -> Iterator[LayerStatistics]:
        """Yield the Gram of each tensor of the gradients of several models, read as the weights of a zoo are."""
        opened = [open_checkpoint(kept, f"gradients_{index}") for index, kept in enumerate(every)]
        # A gradient has no base: the first one stands in its place, and is left out.
        for layer in LayerStream(align(opened[0], opened), self._max_memory):
            gram = self._gram(partial(_without_base, layer))
            layer.release()
            yield LayerStatistics(layer.tensor.name, layer.tensor.shape, *gram)


def _without_base(layer: Layer) -> Iterator[tuple[None, list[Tensor]]]:
    for base, gradients in layer.blocks():
        del base
        yield None, gradients
        del gradients


def dense(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return a gradient as a dense tensor; that of what the loss does not depend on is zero."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient.to_dense() if gradient.is_sparse else gradient


@contextmanager
def temporary_folder(parent: Path | None) -> Iterator[Path]:
    """Make a folder for gradients, in a folder of statistics or where temporary files are kept; then remove it."""
    if parent is None:
        with workspace(Path(tempfile.gettempdir())) as place:
            yield place
        return
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{FOLDER_PREFIX}*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
