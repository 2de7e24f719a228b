"""Checking a folder of statistics: every block that its manifest names, against its checksum."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mergekern.errors import StatisticsError
from mergekern.statistics.assembly import Coverage
from mergekern.statistics.functional import FUNCTIONAL
from mergekern.statistics.keys import SAVED, bases_path, block_path
from mergekern.statistics.layer_block import LayerBlock, read_bases
from mergekern.statistics.manifest import Manifest


class Damage(NamedTuple):
    """A file that is missing or not what it was, and how that shows."""

    path: Path
    what: str


def verify(statistics: str | os.PathLike[str]) -> list[Damage]:
    """Return what is damaged in a folder of statistics, nothing if it is whole.

    A run of the same models on the folder computes damaged and missing blocks again; damaged singular vectors, which
    only added models need, if their files are deleted first.

    Raises:
        StatisticsError: there is no manifest, or it is damaged itself.

    >>> import tempfile, mergekern, numpy as np
    >>> models = {"a": {"w": np.ones((2, 2))}, "b": {"w": np.eye(2)}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = mergekern.measure(models, base={"w": np.zeros((2, 2))}, statistics=folder)
    ...     whole = verify(folder)
    ...     next(Path(folder).glob("blocks/*")).write_bytes(b"")
    ...     whole, len(verify(folder))
    0
    ([], 1)
    """
    folder = Path(statistics)
    manifest = Manifest.read(folder)
    return [*_layers(folder, manifest), *_functional(folder, manifest)]


def _layers(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    for entry in manifest.layers:
        coverage, is_whole = Coverage([digest for digest in entry.hashes[1:] if digest]), True
        for file_name in entry.blocks:
            block = _attempt(LayerBlock.read, folder, file_name)
            if isinstance(block, str):
                is_whole = False
                yield Damage(block_path(folder, file_name), block)
                continue
            coverage.add(block.key)
            vectors = bases_path(folder, file_name)
            if not vectors.exists() and block.key.is_diagonal and block.has_spectra and block.key.how != SAVED:
                yield Damage(vectors, f"{vectors}: is missing; models cannot be added to those of this block")
            if vectors.exists():
                bases = _attempt(read_bases, folder, file_name)
                if isinstance(bases, str):
                    yield Damage(bases_path(folder, file_name), bases)
        if is_whole and manifest.part == (1, 1) and not coverage.pairs.all():
            yield Damage(folder, f"tensor {entry.name!r}: pairs of models are in no block")


def _functional(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    for kind, file_name in manifest.functional.items():
        path = block_path(folder, file_name)
        found = _attempt(FUNCTIONAL[kind].read, path)
        if isinstance(found, str):
            yield Damage(path, found)


def _attempt(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except StatisticsError as error:
        return str(error)
