"""The statistics folder of a run: what is there for the same inputs is used, what is missing is written.

A block is named by what it was computed from (content hashes of the tensor in the base and in every model, the options,
backend and version), so that a changed input never meets a stale one. Blocks are written whole or not at all: a run
killed at any moment continues from them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import xxhash

from mergekern.errors import StatisticsError
from mergekern.statistics import (
    BLOCKS,
    FORMAT,
    FUNCTIONAL,
    FunctionalStatistics,
    LayerStatistics,
    ZooStatistics,
    block_path,
)

logger = logging.getLogger(__name__)
Block = TypeVar("Block")


class Writable(Protocol):
    """Statistics that can be kept as a block."""

    def write(self, path: Path) -> None:
        """Write to a file."""


class Store:
    """The blocks of one folder, as a run reads and writes them.

    Raises:
        StatisticsError: the path is something else than a statistics folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_new = not path.exists()
        self._was_empty = path.is_dir() and not any(path.iterdir())
        self._written: list[Path] = []
        if not self._is_new and not path.is_dir():
            raise StatisticsError(f"{path}: is a file; statistics are kept in a folder")
        if not self._is_new and any(path.iterdir()) and not (path / BLOCKS).is_dir():
            raise StatisticsError(f"{path}: a folder with other things in it; give a new or empty one for statistics")

    def key(self, name: str, shape: Sequence[int], hashes: Sequence[str], how: Sequence[object]) -> str:
        """Return the name of the block of one tensor, from its content and from how it is measured."""
        content = json.dumps([FORMAT, name, list(shape), list(hashes), list(how)])
        return xxhash.xxh3_128(content.encode()).hexdigest()

    def get(self, key: str, with_spectrum: bool) -> LayerStatistics | None:
        """Return the block of a tensor if it is there, whole, and holds what is needed."""
        layer = self._read(key, LayerStatistics.read)
        lacking = layer is not None and with_spectrum and layer.is_matrix and layer.spectrum is None
        return None if lacking else layer

    def get_functional(self, keys: Mapping[str, str]) -> FunctionalStatistics:
        """Return those of the functional kinds whose blocks are there and whole."""
        return FunctionalStatistics(**{kind: self._read(key, FUNCTIONAL[kind].read) for kind, key in keys.items()})

    def _read(self, key: str, read: Callable[[Path], Block]) -> Block | None:
        path = block_path(self.path, key)
        if not path.exists():
            return None
        try:
            return read(path)
        except StatisticsError as error:
            logger.warning("%s; computing it again", error)
            return None

    def put(self, key: str, block: Writable) -> None:
        """Write a block; one that is there with less in it is replaced."""
        path = block_path(self.path, key)
        if not path.exists():
            self._written.append(path)
        block.write(path)

    def finish(self, statistics: ZooStatistics, keys: Sequence[str], functional: Mapping[str, str]) -> None:
        """Write the manifest and remove the blocks that it does not name, by tensor or by functional kind."""
        functional = {kind: functional[kind] for kind in statistics.functional.kinds}
        statistics.write_manifest(self.path, keys, functional)
        keep = {block_path(self.path, key) for key in (*keys, *functional.values())}
        for path in (self.path / BLOCKS).iterdir():
            if path not in keep and not path.name.startswith("."):
                path.unlink(missing_ok=True)

    def undo(self) -> None:
        """Remove what this run wrote: its input turned out to be bad."""
        for path in self._written:
            path.unlink(missing_ok=True)
        if self._is_new and self.path.exists():
            shutil.rmtree(self.path)
        elif self._was_empty and (self.path / BLOCKS).is_dir():
            (self.path / BLOCKS).rmdir()
