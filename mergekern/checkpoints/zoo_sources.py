"""What a user may give as several models: a folder, a sequence or a mapping; and what of a folder is left out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mergekern.checkpoints import folders
from mergekern.checkpoints.no_model import describe_file, describe_folder, pointers
from mergekern.checkpoints.sources import (
    SUFFIXES,
    CheckpointLike,
    Source,
    ZooLike,
    check_path,
    shown,
)
from mergekern.checkpoints.writer import record_path
from mergekern.errors import CheckpointError, OptionError

# What folders of statistics and of samples hold, which need no word.
_STATISTICS, _SAMPLES = ("manifest.json", "blocks"), ("calibration.json",)
_MERGE = "a merge that mergekern wrote; give its path to have it among the models"


class Given(NamedTuple):
    """The models of a zoo, not yet opened.

    Attributes:
        models: the sources of the models, without the base.
        base: the base that was found among them, or None.
        left_out: one sentence for each file and folder beside them that is no model.
    """

    models: list[Source]
    base: Path | None = None
    left_out: tuple[str, ...] = ()


def zoo_sources(checkpoints: ZooLike, base: CheckpointLike | None = None) -> Given:
    """Return the sources of the models of a zoo, its base if it is found among them, and what is left out.

    Args:
        checkpoints: a folder, a sequence of checkpoints, or a mapping name -> checkpoint.
        base: the base, where it is given beside the zoo; a path among the models that leads to it is no model.

    Raises:
        OptionError: a state dict in place of a zoo; a folder with two bases; something else than a zoo.
        CheckpointError: a path that is no folder, or a folder without checkpoints.
    """
    if isinstance(checkpoints, str | os.PathLike):
        check_path(os.fspath(checkpoints))
        return _from_folder(Path(checkpoints), base)
    if isinstance(checkpoints, Mapping):
        if any(isinstance(value, torch.Tensor) for value in checkpoints.values()):
            raise OptionError(
                "`checkpoints` is a state dict (name -> tensor); give a mapping from model name to checkpoint"
            )
        return Given([Source.from_given(given, str(name)) for name, given in checkpoints.items()])
    if isinstance(checkpoints, Sequence):
        return Given(
            [
                Source.from_given(given, None if isinstance(given, str | os.PathLike) else f"model_{index}")
                for index, given in enumerate(checkpoints)
                if not _is_same(given, base)
            ]
        )
    raise OptionError(
        "`checkpoints` is a folder, a sequence of checkpoints, or a mapping name -> checkpoint, not "
        f"{type(checkpoints).__name__}"
    )


def named_sources(checkpoints: ZooLike) -> dict[str, Any]:
    """Return checkpoints by name; one path may stand for itself, other forms are those of a zoo.

    Raises:
        OptionError: two have one name, or they are given in none of these forms.

    >>> named_sources("zoo/mnist.safetensors")
    {'mnist': PosixPath('zoo/mnist.safetensors')}
    """
    if isinstance(checkpoints, str | os.PathLike) and not is_zoo_folder(checkpoints):
        checkpoints = [checkpoints]
    sources = zoo_sources(checkpoints).models
    if duplicates := duplicate_names(sources):
        raise OptionError(f"duplicate model names: {', '.join(duplicates)}; give a mapping name -> checkpoint")
    return {source.name: source.given for source in sources}


def duplicate_names(sources: Sequence[Source]) -> list[str]:
    """Return the names that several sources have, sorted."""
    names = [source.name for source in sources]
    return sorted({name for name in names if names.count(name) > 1})


def is_zoo_folder(given: Any) -> bool:
    """Tell whether a path is a folder of checkpoints, rather than one checkpoint.

    A model's folder with models in it, such as a Trainer's output with its checkpoint-500/, is one. A folder of nothing
    but one checkpoint-500/ stands for that checkpoint.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    if not isinstance(given, str | os.PathLike) or not os.path.isdir(given):
        return False
    folder = Path(given)
    try:
        own = folders.own_weights(folder)
        if own is None:
            only = folders.find_weights(folder)
            return only is None or not re.fullmatch(r"checkpoint-\d+", only.folder.name)
        return own.folder == folder and (_is_one_of_many(folder, own) or bool(folders.models_inside(folder)))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _from_folder(folder: Path, base: Any) -> Given:
    try:
        if not folder.is_dir():
            what = "not a folder of checkpoints, but a file" if folder.exists() else "there is no such file or folder"
            raise CheckpointError(f"{folder}: {what}")
        own = folders.own_weights(folder)
        if own and own.folder != folder:
            return Given([Source.from_given(folder)])
        if own and (_is_one_of_many(folder, own) or not (own.kind != "file" or folders.has_configuration(folder))):
            own = None
        found = _Scan(folder, base, own)
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and not _is_same(path, base):
                found.look_at(path)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return found.given()


def _is_one_of_many(folder: Path, own: folders.Weights) -> bool:
    """Tell whether a file of a usual name lies among files of other models, rather than being the folder's own."""
    others = _others(folder, own)
    return own.kind == "file" and bool(others) and not (
        folders.has_configuration(folder) and folders.models_inside(folder)
    )  # fmt: skip


def _others(folder: Path, own: folders.Weights) -> list[str]:
    loose = folders.loose_weights(folder, folders.file_names(folder))
    return [name for name in loose if name not in own.files and not folders.is_usual_name(name)]


class _Scan:
    """What was found in a folder of models so far."""

    def __init__(self, folder: Path, base: Any, own: folders.Weights | None) -> None:
        self._folder = folder
        self._given_base = base
        self._base: Path | None = None
        self._models: list[Source] = []
        self._merges: list[Source] = []
        self._left_out: list[str] = []
        self._own = own
        self._loose = _others(folder, own) if own else []
        self._modules = folders.modules_inside(folder) if own else set()
        self._base_is_none: list[str] = []
        if own and not _is_base(folder, own, base):
            note = "the weights in the folder itself are this model"
            self._own_source = [replace(Source.from_given(folder), notes=(note,))]
        else:
            self._own_source = []

    def look_at(self, path: Path) -> None:
        """Take a file or folder as a model or as the base, or say why not."""
        try:
            is_model, what = self._folder_is(path) if path.is_dir() else self._file_is(path)
        except OSError as error:
            # Opening a file of weights gives the same error, and says whose it is.
            is_model = path.suffix in SUFFIXES and not path.is_dir()
            what = None if is_model else f"it cannot be read ({error.strerror})"
        if what:
            self._leave_out(path, what)
        elif is_model:
            self._take(path)

    def given(self) -> Given:
        """Return what was found.

        Raises:
            CheckpointError: no model was found, or what is named base is none.
        """
        if self._base is None and self._base_is_none:
            raise CheckpointError(self._base_is_none[0])
        models = self._models + self._own_source
        if models:
            for merge in self._merges:
                self._leave_out(merge.given, _MERGE)
        else:
            models = self._merges
        if not models:
            seen = "".join(f"; {line}" for line in self._left_out[:3])
            raise CheckpointError(
                f"{self._folder}: no checkpoints in it ({', '.join(SUFFIXES)}, or Hugging Face folders){seen}"
            )
        return Given(models, self._base, tuple(self._left_out))

    def _folder_is(self, path: Path) -> tuple[bool, str | None]:
        """Return whether a folder is a model, and what it is else."""
        if path.name in self._modules:
            return False, f"a module of the sentence-transformers model in {self._folder.name}/"
        weights = folders.find_weights(path)
        if weights is None:
            is_ours = any(all((path / name).exists() for name in names) for names in (_STATISTICS, _SAMPLES))
            return False, None if is_ours else describe_folder(path)
        return not _is_base(weights.folder, weights, self._given_base), pointers(weights)

    def _file_is(self, path: Path) -> tuple[bool, str | None]:
        """Return whether a file is a model, and what it is else; None where it needs no word."""
        if self._own:
            beside = f"a file beside the weights of {self._folder.name}, which is a model itself; give its path"
            return False, beside if path.name in self._loose else None
        # Files of GGUF are refused when they are opened.
        is_model = path.suffix in (*SUFFIXES, ".gguf")
        return is_model, None if path.suffix == ".gguf" and path.is_file() else describe_file(path)

    def _take(self, path: Path) -> None:
        source = Source.from_given(path)
        if source.name == "base":  # never a model, also where another base is given
            if self._base is not None and self._given_base is None:
                raise OptionError(f"{self._folder}: two bases, {self._base.name} and {path.name}; pass base=PATH")
            self._base = path
        elif record_path(path).is_file():
            self._merges.append(source)
        else:
            self._models.append(source)

    def _leave_out(self, path: Path, what: str) -> None:
        if path.stem == "base" and self._given_base is None:
            self._base_is_none.append(f"{path}: cannot be the base: {what}")
        self._left_out.append(f"{shown(path.name)}{'/' if path.is_dir() else ''} is left out: {what}")


def _is_same(given: Any, base: Any) -> bool:
    """Tell whether a path is that of the base, or of the folder that the base's file lies in."""
    if not all(isinstance(path, str | os.PathLike) for path in (given, base)):
        return False
    for each in (given, base):
        check_path(os.fspath(each))
    path, base_path = Path(os.path.realpath(given)), Path(os.path.realpath(base))
    return path == base_path or (path == base_path.parent and base_path.is_file())


def _is_base(folder: Path, own: folders.Weights, base: Any) -> bool:
    """Tell whether the base is the model that a folder itself holds, given as the folder or by its file."""
    return any(_is_same(path, base) for path in (folder / file for file in own.files)) or (
        isinstance(base, str | os.PathLike) and os.path.realpath(folder) == os.path.realpath(base)
    )


def _unreadable(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{folder}: cannot be read ({error.strerror})")
