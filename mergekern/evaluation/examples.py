"""Examples that ready evaluators are given: a file for each task, or one for all models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from mergekern._internal.text import listed
from mergekern.errors import EvaluationError

TABLES = (".jsonl", ".csv", ".parquet", ".txt")
TENSORS = ".safetensors"


def files_by_task(path: str | os.PathLike[str], suffixes: Sequence[str]) -> tuple[dict[str, Path], bool]:
    """Return the file of each task, and whether one file is for all models.

    Args:
        path: a folder with a file for each task, TASK.jsonl; or one file, whose name is that of the task.
        suffixes: what such files end in.

    Raises:
        EvaluationError: there is no such file, or two are of one task.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix not in suffixes:
            raise EvaluationError(f"{path}: examples are files that end in {' or '.join(suffixes)}")
        return {path.stem: path}, True
    if not path.is_dir():
        raise EvaluationError(f"{path}: no such file, and no folder with a file for each task")
    found: dict[str, Path] = {}
    for file in sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file()):
        if file.stem in found:
            raise EvaluationError(f"{path}: both {found[file.stem].name} and {file.name} are of the task {file.stem!r}")
        found[file.stem] = file
    if not found:
        raise EvaluationError(f"{path}: no file in it is of examples, TASK{' or TASK'.join(suffixes)}")
    return found, False


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows of a .jsonl, .csv, .parquet or .txt file (a text a line), which must have these columns.

    Raises:
        EvaluationError: it cannot be read, lacks a column, or has no row.
    """
    try:
        if path.suffix == ".txt":
            lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
            frame = pd.DataFrame({"text": lines})
        elif path.suffix == ".jsonl":
            frame = pd.DataFrame([json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()])
        elif path.suffix == ".csv":
            frame = pd.read_csv(path, keep_default_na=False)
        else:
            frame = pd.read_parquet(path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path}: examples cannot be read ({error})") from error
    if frame.empty:
        raise EvaluationError(f"{path}: has no example")
    if lacking := [name for name in columns if name not in frame]:
        raise EvaluationError(f"{path}: no {' and no '.join(map(repr, lacking))}; it has {listed(map(str, frame), 8)}")
    return frame


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return `inputs` (or `inputs.KEYWORD` of each), `labels` and the head, if there is one, of a file of samples.

    Where the file also has samples for tests, `test.inputs` and `test.labels`, it is those: the others are for metrics.

    Raises:
        EvaluationError: it cannot be read, or lacks one of them.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            part = "test." if "test.labels" in names else ""
            kinds = [f"{part}inputs", f"{part}labels", "head"]
            wanted = [name for name in names if any(f"{name}.".startswith(f"{kind}.") for kind in kinds)]
            tensors = {name.removeprefix(part): file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise EvaluationError(f"{path}: not a readable safetensors file ({error})") from error
    if "labels" not in tensors or not any(name.split(".")[0] == "inputs" for name in tensors):
        raise EvaluationError(f"{path}: samples are inputs (or inputs.KEYWORD) and labels; it holds {listed(names, 8)}")
    sizes = {name: len(values) for name, values in tensors.items() if not name.startswith("head")}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise EvaluationError(f"{path}: not as many inputs as labels, or none: {sizes}")
    return tensors


def named_texts(texts: Any) -> tuple[dict[str, list[str]], bool]:
    """Return the texts of each task, and whether all models are evaluated on the same.

    Args:
        texts: a path as for `files_by_task`, task -> texts, or texts for all models.

    Raises:
        EvaluationError: they are something else, or there are none.
    """
    is_shared = False
    if isinstance(texts, str | os.PathLike):
        files, is_shared = files_by_task(texts, TABLES)
        found = {task: read_table(path, ["text"])["text"].tolist() for task, path in files.items()}
    elif isinstance(texts, Mapping):
        found = {str(task): list(of_task) for task, of_task in texts.items()}
    else:
        found, is_shared = {"texts": list(texts)}, True
    for task, of_task in found.items():
        if not of_task or not all(isinstance(text, str) for text in of_task):
            raise EvaluationError(f"task {task!r}: texts are one or more strings")
    return found, is_shared
