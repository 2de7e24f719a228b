"""Verification of a folder of statistics: checksum, shapes and contents of every block that its manifest names."""

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
    """A missing or damaged file.

    Attributes:
        path: the file.
        what: what is wrong, in words.
    """

    path: Path
    what: str


def verify(statistics: str | os.PathLike[str]) -> list[Damage]:
    """Return the missing and damaged files of a folder of statistics: an empty list if it is whole.

    A file is whole if its checksum is right, its arrays have the shapes of its models and tensor, every value is
    finite, and they are what they are said to be: inner products within the lengths, symmetric, spectra descending,
    ranks and overlaps within the sizes, bases orthonormal.

    A run with the same models on the folder computes missing and damaged blocks again. Singular vectors are needed only
    where models are added; a run computes damaged ones again after their files have been deleted.

    Raises:
        StatisticsError: there is no manifest, or the manifest is damaged.

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
        coverage, is_whole = Coverage([content for content in entry.hashes[1:] if content]), True
        for file_name in entry.blocks:
            block = _attempt(LayerBlock.read, folder, file_name)
            if isinstance(block, str):
                is_whole = False
                yield Damage(block_path(folder, file_name), block)
                continue
            if (block.key.name, block.key.shape) != (entry.name, entry.shape):
                is_whole = False
                what = f"a block of {block.key.name!r}, {block.key.shape}, not of {entry.name!r}, {entry.shape}"
                yield Damage(block_path(folder, file_name), what)
                continue
            coverage.add(block.key)
            yield from _bases(folder, block)
        if is_whole and manifest.part == (1, 1) and not coverage.is_complete:
            yield Damage(folder, f"tensor {entry.name!r}: pairs of models are in no block")


def _bases(folder: Path, block: LayerBlock) -> Iterator[Damage]:
    """Yield the file of a block's singular vectors if it is missing or damaged."""
    path = bases_path(folder, block.key.file_name)
    if path.exists():
        k = block.spectra.k if block.spectra is not None else None
        bases = _attempt(read_bases, folder, block.key.file_name, block.key, k)
        if isinstance(bases, str):
            yield Damage(path, bases)
    elif block.spectra is not None and block.key.how != SAVED:
        yield Damage(path, f"{path}: is missing; models cannot be added to those of this block")


def _functional(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    for kind, file_name in manifest.functional.items():
        path = block_path(folder, file_name)
        found = _attempt(FUNCTIONAL[kind].read, path)
        if isinstance(found, str):
            yield Damage(path, found)
        elif found.count != len(manifest.functional_models):
            yield Damage(path, f"statistics of {found.count} models, not of {len(manifest.functional_models)}")


def _attempt(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except StatisticsError as error:
        return str(error)
