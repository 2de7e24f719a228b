"""Reading what `Calibration.save` and python/make_digits_zoo.py write; nothing in a file is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mergekern.errors import CalibrationError

OPTIONS_FILE = "calibration.json"
# What calibration.json may say, and `Calibration.from_folder` may be given instead.
HEAD_OPTIONS = {"normalize_features": False, "logit_scale": 1.0}  # said where they are not these
SAVED_OPTIONS = ("layer", "input_layer", "batch_size", "activation_batch_size", "batch_weighting", "token_dim", "dtype")


def read_options(path: Path) -> dict[str, Any]:
    """Return what a calibration.json says, nothing if there is none.

    Raises:
        CalibrationError: it is damaged, or says something else.
    """
    if not path.exists():
        return {}
    from mergekern._internal.documents import read_document
    from mergekern.functional.calibration.schemas import OptionsDocument

    try:
        said = read_document(path, OptionsDocument)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: not readable options ({error})") from error
    options = said.model_dump(exclude_unset=True)
    if said.dtype is not None:
        options["dtype"] = getattr(torch, said.dtype)
    return {name: value for name, value in options.items() if value is not None}


def read_task(path: Path) -> tuple[Any, Any, Any]:
    """Return inputs, labels and head of a task.

    Raises:
        CalibrationError: the file is missing or damaged, or lacks one of them.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            wanted = [n for n in names if n in ("inputs", "labels", "head.weight", "head.bias") or n[:7] == "inputs."]
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"{path}: not a readable safetensors file ({error})") from error
    inputs = {name.removeprefix("inputs."): values for name, values in tensors.items() if name[:7] == "inputs."}
    given = inputs or tensors.get("inputs")
    if lacking := [n for n in ("labels", "head.weight") if n not in tensors] + ["inputs"] * (given is None):
        raise CalibrationError(f"{path}: lacks {', '.join(lacking)}; it holds {', '.join(names) or 'nothing'}")
    return given, tensors["labels"], (tensors["head.weight"], tensors.get("head.bias"))
