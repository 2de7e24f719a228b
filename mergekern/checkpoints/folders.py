"""Which of the files of a folder are the weights of its model, as transformers, PEFT and diffusers choose them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mergekern.checkpoints.sources import ADAPTER_CONFIG, SUFFIXES, TORCH_SUFFIXES
from mergekern.checkpoints.training_state import is_training_state

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Names that libraries give to one file of weights; with an index of shards beside it, the one file is what they read.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_KNOWN = re.compile(r"(model|pytorch_model|diffusion_pytorch_model|consolidated)\b.*")
_CONFIGURATIONS = ("config.json", "params.json")
_SHARD = re.compile(r"(?P<set>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_PARALLEL = re.compile(r"consolidated\.\d\d\.pth")
_INDEX = re.compile(r".+\.(safetensors|bin)\.index(\.[\w-]+)?\.json")
# A pointer is about 130 bytes long.
_POINTER_SIZE, _POINTER = 1024, b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Weights:
    """The weights of a model's folder.

    Attributes:
        kind: "file", "index" (shards and their index), "shards" (all shards of a set, without an index), or "adapter".
        folder: the folder that they lie in, which may be inside the one that was asked for.
        files: the file, the index or the shards; empty for an adapter.
        notes: what is to be said of the choice.
    """

    kind: Literal["file", "index", "shards", "adapter"]
    folder: Path
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_weights(folder: Path) -> Weights | None:
    """Return the weights that a folder stands for: its own, or those of the only model in its sub-folders.

    Raises:
        OSError: the folder cannot be read.
    """
    return own_weights(folder) or _only_model_inside(folder)


def own_weights(folder: Path) -> Weights | None:
    """Return the weights that lie in a folder itself; None where there are none, or several and no rule to choose.

    The order is that of `from_pretrained`: an adapter, model.safetensors, its index, pytorch_model.bin, its index. Then
    come the names of diffusers. Other files are taken where they are the only weights of the folder. A model's folder
    in the cache of the Hugging Face Hub stands for the commit that is its main.

    Raises:
        OSError: the folder cannot be read.
    """
    names = file_names(folder)
    known = _of_transformers(folder, names) or _of_diffusers(folder, names)
    if ADAPTER_CONFIG in names and (known is None or not names.isdisjoint(ADAPTER_FILES)):
        # transformers 4 reads base and adapter here, 5 the whole model and the adapter upon it, PEFT the adapter.
        beside = known and f"the adapter is read, not {known.files[0]} beside it; give the path of that file to read it"
        return Weights("adapter", folder, (), (beside,) if beside else ())
    return known or _only_weights(folder, names) or _snapshot(folder)


def file_names(folder: Path) -> set[str]:
    """Return the names of the regular files of a folder, links followed.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.name.startswith(".") and _is_file(entry)}


def folder_names(folder: Path) -> list[str]:
    """Return the names of the sub-folders of a folder, links followed, without hidden ones, sorted.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in found if not name.startswith(".") and name != "__pycache__")


def has_configuration(folder: Path) -> bool:
    """Tell whether a folder says what the model in it is."""
    return any((folder / name).is_file() for name in (*_CONFIGURATIONS, ADAPTER_CONFIG))


def is_usual_name(file: str) -> bool:
    """Tell whether libraries give weights this name, variants included, so that it says nothing of whose they are."""
    return _KNOWN.fullmatch(file) is not None


def modules_inside(folder: Path) -> set[str]:
    """Return the names of the sub-folders that are modules of the sentence-transformers model in a folder."""
    path = folder / "modules.json"
    if not path.is_file() or own_weights(folder) is None:
        return set()
    try:
        return {module["path"] for module in json.loads(path.read_text("utf-8")) if module["path"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


def models_inside(folder: Path) -> list[str]:
    """Return the names of the sub-folders that are models by themselves.

    Raises:
        OSError: the folder cannot be read.
    """
    modules = modules_inside(folder)
    found = []
    for name in folder_names(folder):
        try:
            if name not in modules and own_weights(folder / name):
                found.append(name)
        except OSError:
            continue
    return found


def is_pointer(path: Path) -> bool:
    """Tell whether a file is what Git LFS leaves in place of a file that was not downloaded.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file() or path.stat().st_size > _POINTER_SIZE:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def shards_of_sets(names: Iterable[str]) -> dict[tuple[str, str, int], list[str]]:
    """Return the files of each set of shards, by what stands before the number, the suffix, and how many there are.

    >>> shards_of_sets(["m-00001-of-00002.bin", "m-00002-of-00002.bin", "other.bin"])
    {('m', '.bin', 2): ['m-00001-of-00002.bin', 'm-00002-of-00002.bin']}
    """
    sets: dict[tuple[str, str, int], list[str]] = {}
    for name in sorted(names):
        if (found := _SHARD.fullmatch(name)) and found["suffix"] in SUFFIXES:
            sets.setdefault((found["set"], found["suffix"], int(found["count"])), []).append(name)
    return sets


def loose_weights(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the files that may each be all weights of a model: no shards, no adapters, no state of training."""
    candidates = [name for name in sorted(names) if Path(name).suffix in SUFFIXES and not _SHARD.fullmatch(name)]
    return [name for name in candidates if name not in ADAPTER_FILES and not is_training_state(folder / name)]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links that lead in a circle
        return False


def _of_transformers(folder: Path, names: set[str]) -> Weights | None:
    for file in SINGLE_FILES:
        index = f"{file}.index.json"
        if file in names:
            stale = f"{file} is read, as by transformers, not {index} beside it"
            return Weights("file", folder, (file,), (stale,) if index in names else ())
        if index in names:
            return Weights("index", folder, (index,))
    return None


def _of_diffusers(folder: Path, names: set[str]) -> Weights | None:
    for file in _DIFFUSERS_FILES:
        index = f"{file}.index.json"
        # diffusers reads the index first, and fails where its shards are gone.
        if index in names and (file not in names or not missing_shards(folder, index)):
            both = f"{index} is read, as by diffusers, not {file} beside it"
            return Weights("index", folder, (index,), (both,) if file in names else ())
        if file in names:
            stale = f"{file} is read, as the shards of {index} beside it are gone"
            return Weights("file", folder, (file,), (stale,) if index in names else ())
    return None


def missing_shards(folder: Path, index: str) -> list[str]:
    """Return the shards that an index lists and its folder lacks; none where the index cannot be read."""
    try:
        files = sorted(set(json.loads((folder / index).read_text("utf-8"))["weight_map"].values()))
        return [file for file in files if not (folder / file).is_file()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _only_weights(folder: Path, names: set[str]) -> Weights | None:
    """Return the weights of a folder without the usual names, where only one thing in it can be meant."""
    indices = sorted(name for name in names if _INDEX.fullmatch(name))
    sets = [
        files for (_, _, count), files in shards_of_sets(names).items() if len(files) == count and not indices
    ]  # fmt: skip
    files = loose_weights(folder, names)
    safetensors = [name for name in files if Path(name).suffix not in TORCH_SUFFIXES]
    if sum(_PARALLEL.fullmatch(name) is not None for name in names) > 1 and not safetensors:
        return None
    found = [
        *(Weights("index", folder, (index,)) for index in indices),
        *(Weights("shards", folder, tuple(shards)) for shards in sets),
        *(Weights("file", folder, (file,)) for file in safetensors or files),
    ]
    if len(found) != 1 or any(name in names for name in ADAPTER_FILES):
        return None
    first = found[0].files[0]
    if not (_KNOWN.fullmatch(first) or names.intersection(_CONFIGURATIONS)):
        return None
    what = f"{len(found[0].files)} shards such as {first}" if found[0].kind == "shards" else first
    return replace(found[0], notes=(f"read from {what}, the only weights in the folder",))


def _only_model_inside(folder: Path) -> Weights | None:
    """Return the weights of the one sub-folder that is a model, where the folder itself holds no weights."""
    if (folder / "model_index.json").is_file() or loose_weights(folder, file_names(folder)):
        return None
    inside = models_inside(folder)
    if len(inside) != 1:
        return None
    found = own_weights(folder / inside[0])
    return found and replace(found, notes=(f"read from {inside[0]}/, the only model in the folder", *found.notes))


def _snapshot(folder: Path) -> Weights | None:
    """Return the weights of the commit that the cache of the Hugging Face Hub keeps as main, or of its only commit."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return None
    commits = folder_names(snapshots)
    main = folder / "refs" / "main"
    wanted = main.read_text("utf-8", "replace").strip() if main.is_file() else "".join(commits[:1])
    if wanted not in commits or not (main.is_file() or len(commits) == 1):
        return None
    found = own_weights(snapshots / wanted)
    return found and replace(found, notes=(f"read from snapshots/{wanted}", *found.notes))
