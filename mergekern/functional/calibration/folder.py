"""Reading what `Calibration.save` and python/make_digits_zoo.py write; nothing in a file is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mergekern._internal.files import write_atomically
from mergekern.errors import CalibrationError
from mergekern.functional.calibration.architectures import KINDS, Logits, OwnHead
from mergekern.functional.calibration.losses import LOSSES
from mergekern.functional.calibration.tasks import Task, tensors_of_head

if TYPE_CHECKING:
    from mergekern.functional.calibration.schemas import OptionsDocument

OPTIONS_FILE = "calibration.json"
_PARTS = ("inputs", "labels", "head.weight", "head.bias")
# What calibration.json may say, and `Calibration.from_folder` may be given instead.
HEAD_OPTIONS = {"normalize_features": False, "logit_scale": 1.0}  # said where they are not these
SAVED_OPTIONS = ("layer", "input_layer", "batch_size", "activation_batch_size", "batch_weighting", "token_dim", "dtype")


def is_unfinished(folder: Path) -> bool:
    """Tell whether a folder is a calibration whose writing was stopped.

    Raises:
        CalibrationError: its calibration.json is damaged, or says something else.
    """
    path = folder / OPTIONS_FILE
    return path.exists() and _document(path).unfinished


def write_folder(folder: Path, contents: Mapping[str, bytes], options: Mapping[str, Any]) -> None:
    """Write the files of tasks, by name, and a calibration.json, to a folder that is made.

    While it is written the folder says so: a run that is killed leaves what the next one writes anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / OPTIONS_FILE, b'{"unfinished": true}\n')
    for name, content in contents.items():
        write_atomically(folder / f"{name}.safetensors", content)
    write_atomically(folder / OPTIONS_FILE, f"{json.dumps(options, indent=2)}\n".encode())


def read_options(path: Path) -> dict[str, Any]:
    """Return what a calibration.json says, nothing if there is none.

    Raises:
        CalibrationError: it is damaged, says something else, or was not written to its end.
    """
    if not path.exists():
        return {}
    said = _document(path)
    if said.unfinished:
        raise CalibrationError(f"{path.parent}: the calibration was not written to its end; write it again")
    options = said.model_dump(exclude_unset=True, exclude={"unfinished"})
    if said.dtype is not None:
        options["dtype"] = getattr(torch, said.dtype)
    if said.loss is not None:
        options["loss"] = LOSSES[said.loss]
    if (said.kind is None) != (said.config is None):
        raise CalibrationError(f"{path}: kind and config belong together")
    return {name: value for name, value in options.items() if value is not None}


def _document(path: Path) -> OptionsDocument:
    from mergekern._internal.documents import read_document
    from mergekern.functional.calibration.schemas import OptionsDocument

    try:
        return read_document(path, OptionsDocument)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: not readable options ({error})") from error


def read_task(path: Path, kind: str | None, config: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
    """Return inputs, labels and head of a task.

    Args:
        path: the file.
        kind: kind of models of transformers that the folder is of; None for heads that are weight and bias.
        config: configuration of the task's model, where that has a head of its own.

    Raises:
        CalibrationError: the file is missing or damaged, or lacks one of them.
    """
    has_own = kind is not None and KINDS[kind].has_heads
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            wanted = [n for n in names if n in _PARTS or n[:7] == "inputs." or (has_own and n[:5] == "head.")]
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"{path}: not a readable safetensors file ({error})") from error
    inputs = {name.removeprefix("inputs."): values for name, values in tensors.items() if name[:7] == "inputs."}
    given = inputs or tensors.get("inputs")
    needed = ["labels"] if kind is not None else ["labels", "head.weight"]
    if lacking := [n for n in needed if n not in tensors] + ["inputs"] * (given is None):
        raise CalibrationError(f"{path}: lacks {', '.join(lacking)}; it holds {', '.join(names) or 'nothing'}")
    if kind is None:
        return given, tensors["labels"], (tensors["head.weight"], tensors.get("head.bias"))
    if not has_own:
        return given, tensors["labels"], Logits()
    if config is None:
        raise CalibrationError(f"{path}: {OPTIONS_FILE} has no configuration of {path.stem!r}")
    own = {name.removeprefix("head."): values for name, values in tensors.items() if name[:5] == "head."}
    return given, tensors["labels"], OwnHead(str(kind), config, own)


def content_of_task(name: str, task: Task) -> bytes:
    """Return the content of the file of a task.

    Raises:
        CalibrationError: its head is code, or its name cannot be that of a file.
    """
    try:
        head = tensors_of_head(task.head)
    except CalibrationError as error:
        raise CalibrationError(f"task {name!r}: {error}") from None
    if Path(name).name != name:
        raise CalibrationError(f"task {name!r}: cannot be the name of a file")
    inputs = task.inputs if isinstance(task.inputs, dict) else {"": task.inputs}
    tensors = {f"inputs.{key}" if key else "inputs": values for key, values in inputs.items()}
    tensors |= {"labels": task.labels, **{f"head.{key}": values for key, values in head.items()}}
    # Cloned: safetensors refuses tensors that share memory.
    return save({key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()})
