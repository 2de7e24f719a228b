"""Reading what `Calibration.save` and python/make_digits_zoo.py write; nothing in a file is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mergekern.errors import CalibrationError

OPTIONS_FILE = "calibration.json"
# What calibration.json may say, and `Calibration.from_folder` may be given instead.
SAVED_OPTIONS = ("layer", "input_layer", "batch_size", "activation_batch_size", "batch_weighting", "token_dim", "dtype")


def read_options(path: Path) -> dict[str, Any]:
    """Return what a calibration.json says, nothing if there is none.

    Raises:
        CalibrationError: it is damaged, or says something else.
    """
    if not path.exists():
        return {}
    try:
        options = dict(json.loads(path.read_text("utf-8")))
        if unknown := options.keys() - {*SAVED_OPTIONS, "own_loss"}:
            raise ValueError(f"unknown options {', '.join(sorted(unknown))}")
        if "dtype" in options:
            options["dtype"] = getattr(torch, options["dtype"])
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: not readable options ({type(error).__name__}: {error})") from error
    return options


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
