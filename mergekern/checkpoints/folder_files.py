"""The files beside the weights in a folder of Hugging Face, and which of them are true of a model made from it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.folders import SINGLE_FILES, own_weights
from mergekern.checkpoints.sources import SUFFIXES

# Weights, in any format: none but the merged ones may lie in the folder of a merge.
_WEIGHTS = (
    *SUFFIXES, ".gguf", ".ggml", ".h5", ".keras", ".msgpack", ".npz", ".onnx", ".onnx_data", ".ot", ".pkl", ".tflite",
    ".index.json",
)  # fmt: skip
# What tells of the base's own making, of its quantisation, or of an adapter: it would be wrong of a merge.
_STALE = re.compile(
    r"readme\.md|mergekern\.json|mergekit_config\.ya?ml|adapter_config\.json|trainer_state\.json|.*_results\.json"
    r"|(hf_)?quant(ize)?_config\.json|zero_to_fp32\.py|latest|events\.out\.tfevents\..*",
    re.IGNORECASE,
)
_OF_TRAINING = re.compile(r"(checkpoint|global_step)-?\d+|runs|wandb|__pycache__")


@dataclass(frozen=True)
class FolderFiles:
    """What lies beside the weights in a folder.

    Attributes:
        copied: files that are as true of a merge, by their path in the folder; links are followed.
        submodels: sub-folders that hold weights of their own, as a checkpoint, with the paths of all their files.
        left: other files and sub-folders, which a merge does not get. Hidden ones are not listed.
    """

    copied: dict[str, Path]
    submodels: dict[str, dict[str, Path]]
    left: tuple[str, ...]


def folder_files(folder: Path, own: Collection[str] = ()) -> FolderFiles:
    """Sort what lies beside the weights in a folder; `own` names the files of the weights.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("tokenizer.json", "README.md", "model.safetensors"):
    ...         Path(folder, name).touch()
    ...     found = folder_files(Path(folder), own=["model.safetensors"])
    ...     list(found.copied), found.left
    (['tokenizer.json'], ('README.md',))
    """
    copied: dict[str, Path] = {}
    submodels: dict[str, dict[str, Path]] = {}
    left = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in own:
            continue
        inside = {str(file.relative_to(folder)): file for file in _files_in(path, {folder.resolve()})}
        if not inside and not path.is_dir():
            left.append(path.name)  # a link that leads nowhere, a pipe
        elif path.is_dir() and _OF_TRAINING.fullmatch(path.name):
            left.append(path.name)
        elif path.is_dir() and holds_checkpoint(path):
            submodels[path.name] = inside
        elif any(file.name.lower().endswith(_WEIGHTS) for file in inside.values()) or _STALE.fullmatch(path.name):
            left.append(path.name)
        else:
            copied |= inside
    return FolderFiles(copied, submodels, tuple(left))


def home(checkpoint: Checkpoint) -> Path | None:
    """Return the folder of Hugging Face or of PEFT that a checkpoint lies in; None for others."""
    path = Path(checkpoint.source)
    if path.is_dir():
        return path
    is_of_folder = path.name in SINGLE_FILES or path.name.endswith(".index.json")
    return path.parent if is_of_folder and path.is_file() else None


def holds_checkpoint(folder: Path) -> bool:
    """Tell whether a folder holds whole weights of its own."""
    found = own_weights(folder)
    return found is not None and found.kind != "adapter"


def notes_on_submodels(folder: Path) -> list[str]:
    """Return a note on sub-folders that hold weights of their own, which are no part of the checkpoint."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    found = [name for name in names if not _OF_TRAINING.fullmatch(name) and holds_checkpoint(folder / name)]
    return [f"weights in sub-folders take no part in metrics: {', '.join(found)}"] if found else []


def _files_in(path: Path, above: set[Path]) -> Iterator[Path]:
    """Yield a file, or all files in a folder that are not hidden; a link to a folder above is not followed."""
    if path.is_file():
        yield path
    elif path.is_dir() and (real := path.resolve()) not in above:
        for name in sorted(os.listdir(path)):
            if not name.startswith("."):
                yield from _files_in(path / name, above | {real})
