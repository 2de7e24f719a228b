"""Blocks: files of named arrays, which hold statistics. They are written whole or not at all, and checked when read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash

from mergekern._internal.files import write_atomically
from mergekern.errors import StatisticsError

SUFFIX = ".safetensors"


def write_block(path: Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    """Write arrays, a JSON description and a checksum of both as a safetensors file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps(description)
    header = json.dumps({"description": text, "checksum": checksum(arrays, text)})
    write_atomically(path, safetensors.numpy.save(dict(arrays), metadata={"mergekern": header}))


def read_block(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the description that `write_block` wrote.

    Raises:
        StatisticsError: the file is missing, is damaged or is not a block.
    """
    with _opened(path) as (file, header):
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if checksum(arrays, header["description"]) != header["checksum"]:
            raise ValueError("its checksum differs")
        return arrays, _described(header)


def read_description(path: Path) -> dict[str, Any]:
    """Return the description that `write_block` wrote, without reading the arrays.

    The checksum covers the arrays too, so it is not checked here.

    Raises:
        StatisticsError: the file is missing or is not a block; damage is noticed only where it makes this unreadable.
    """
    with _opened(path) as (_, header):
        return _described(header)


def _described(header: Mapping[str, str]) -> dict[str, Any]:
    description = json.loads(header["description"])
    if not isinstance(description, dict):
        raise TypeError(f"its description is a {type(description).__name__}")
    return description


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file, json.loads((file.metadata() or {})["mergekern"])
    except Exception as error:
        raise StatisticsError(f"{path}: a damaged block of statistics ({type(error).__name__}: {error})") from error


def checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """Return a hash of a text and of the names, dtypes, shapes and values of arrays.

    >>> checksum({"a": np.zeros(2)}, "") == checksum({"a": np.zeros(3)}, "")
    False
    """
    hasher = xxhash.xxh3_128(text.encode())
    for name, array in sorted(arrays.items()):
        hasher.update(f"{name}{array.dtype}{array.shape}".encode())
        hasher.update(np.ascontiguousarray(array))
    return hasher.hexdigest()
