"""The statistics folder of a run: what is there for the same inputs is used, what is missing is written.

Blocks are named by what they were computed from (content hashes of the tensor in the base and in the models, options,
backend and version), so that a changed input never meets a stale one. They are written whole or not at all: a run that
is killed at any moment continues from them. What an earlier run measured of some of the models is found by content too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from mergekern._internal.files import link_or_copy, not_written
from mergekern._internal.locks import LOCK_FILES, locked
from mergekern.errors import MergekernError, OutputError, StatisticsError
from mergekern.statistics.functional import FUNCTIONAL, FunctionalStatistics
from mergekern.statistics.keys import BASES, BLOCKS, FORMAT, BlockKey, bases_path, block_path
from mergekern.statistics.layer_block import LayerBlock, read_bases
from mergekern.statistics.layers import Bases
from mergekern.statistics.manifest import MANIFEST, Manifest, is_statistics_folder, shards_in

logger = logging.getLogger(__name__)
Read = TypeVar("Read")


class Store:
    """The blocks of one folder, as a run reads and writes them; nobody else does while it has the lock.

    Raises:
        StatisticsError: the path is something else than a statistics folder.
    """

    def __init__(self, path: Path, lender: Path | None = None) -> None:
        check_folder(path)
        self.path, self._lender = path, lender
        self._is_new = not path.exists() or not _content(path)
        self._written: list[Path] = []
        self._warned: set[str] = set()
        self.manifest: Manifest | None = None
        if (path / MANIFEST).exists():
            self.manifest = self._attempt(Manifest.read, path)
        self._entries = {} if self.manifest is None else {entry.name: entry for entry in self.manifest.layers}

    def found(self, name: str, base: str, how: str, with_spectrum: bool) -> list[BlockKey]:
        """Return what the blocks of one tensor are of, that the manifest names and that are whole and hold what is
        needed.
        """
        if name not in self._entries:
            return []
        blocks = (self.get(file_name, with_spectrum) for file_name in self._entries[name].blocks)
        return [
            block.key
            for block in blocks
            if block is not None
            and (block.key.base, block.key.how) == (base, how)
            and (block.has_spectra or not with_spectrum)
        ]

    def get(self, file_name: str, with_spectrum: bool) -> LayerBlock | None:
        """Return a block if it is there, whole, and holds what is needed: of pairs without overlaps these can be made.

        Args:
            file_name: of the block, without suffix.
            with_spectrum: whether spectra are needed, and the singular vectors that they come with.
        """
        if not block_path(self.path, file_name).exists():
            if self._lender is None or not block_path(self._lender, file_name).exists():
                return None
            for path_in in (bases_path, block_path):
                if path_in(self._lender, file_name).exists():
                    self.bring(path_in(self._lender, file_name), path_in(self.path, file_name))
        block = self._attempt(LayerBlock.read, self.path, file_name)
        if block is None or not (with_spectrum and block.key.is_diagonal):
            return block
        return block if block.has_spectra and bases_path(self.path, file_name).exists() else None

    def has_bases(self, key: BlockKey) -> bool:
        """Tell whether the singular vectors of a diagonal block are whole."""
        return self._attempt(read_bases, self.path, key.file_name) is not None

    def bases(self, models: Sequence[str], blocks: Sequence[BlockKey]) -> Bases:
        """Return the singular vectors of models from the diagonal blocks that have them.

        Args:
            models: content hashes of the tensor.
            blocks: of this tensor.

        Raises:
            StatisticsError: a file is damaged, or no block has a model.
        """
        parts: dict[int, Bases] = {}
        left = dict.fromkeys(models)
        for key in blocks:
            rows = {digest: row for row, digest in enumerate(key.rows) if digest in left}
            if not key.is_diagonal or not rows:
                continue
            every = read_bases(self.path, key.file_name)
            for position, digest in enumerate(models):
                if digest in rows:
                    parts[position] = Bases(*(side[rows[digest]] for side in every))
            left = {digest: None for digest in left if digest not in rows}
        if left:
            raise StatisticsError(f"{self.path}: no singular vectors of {len(left)} models")
        return Bases(*(np.stack(side) for side in zip(*(parts[i] for i in range(len(models))), strict=True)))

    def put(self, block: LayerBlock) -> None:
        """Write a block; one that is there with less in it is replaced.

        Raises:
            OutputError: it cannot be written.
        """
        self._write(block_path(self.path, block.key.file_name), lambda: block.write(self.path))

    def functional_file_name(self, kind: str, hashes: Sequence[str], how: Sequence[object]) -> str:
        """Return the name of the block of one functional kind, from the models' content and from how they are run."""
        return xxhash.xxh3_128_hexdigest(json.dumps([FORMAT, kind, list(hashes), list(how)]).encode())

    def get_functional(self, file_names: Mapping[str, str]) -> FunctionalStatistics:
        """Return those of the functional kinds whose blocks are there and whole."""
        found = {}
        for kind, file_name in file_names.items():
            path = block_path(self.path, file_name)
            if path.exists():
                found[kind] = self._attempt(FUNCTIONAL[kind].read, path)
        return FunctionalStatistics(**found)

    def put_functional(self, statistics: FunctionalStatistics, file_names: Mapping[str, str]) -> None:
        """Write the blocks of what running the models gave; OutputError as for `put`."""
        for kind, part in statistics.kinds.items():
            path = block_path(self.path, file_names[kind])
            self._write(path, partial(part.write, path))

    def bring(self, source: Path, target: Path) -> None:
        """Make a file of another folder one of this one: by a link where the disk is the same, or by a copy."""
        self._write(target, lambda: link_or_copy(source, target))

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest and remove the blocks that it does not name: what was written stays from now on."""
        self._write(self.path / MANIFEST, lambda: manifest.write(self.path))
        self._written, self._is_new = [], False
        remove_others(self.path, manifest.file_names)

    def undo(self) -> None:
        """Remove what this run wrote: its input turned out to be bad."""
        for path in self._written:
            path.unlink(missing_ok=True)
        if self._is_new:
            for folder in (BLOCKS, BASES):
                shutil.rmtree(self.path / folder, ignore_errors=True)

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        try:
            for folder in (BLOCKS, BASES):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            self._written += [each for each in (path, bases_path(self.path, path.stem)) if not each.exists()]
            write()
        except OSError as error:
            remedy = "what was measured before is kept, and the same command continues from it"
            raise not_written(path, error, remedy) from error

    def _attempt(self, read: Callable[..., Read], *arguments: Any) -> Read | None:
        try:
            return read(*arguments)
        except StatisticsError as error:
            if str(error) not in self._warned:
                logger.warning("%s; computing it again", error)
            self._warned.add(str(error))
            return None


@contextmanager
def writing(folder: str | os.PathLike[str] | Store, lender: Path | None = None) -> Iterator[Store]:
    """Give a folder's store, locked; what was written is removed again if the input turns out to be bad.

    A store that is given is the caller's, who has the lock. What the store lacks and `lender`, another folder of
    statistics, has, is taken from there.

    Raises:
        StatisticsError: the path is something else than a statistics folder.
        OutputError: another process has it, or it cannot be written to.
    """
    if isinstance(folder, Store):
        yield folder
        return
    folder = Path(folder)
    check_folder(folder)
    is_new = not folder.exists()
    with locked(folder):
        store = Store(folder, lender)
        try:
            yield store
        except OutputError:
            raise
        except MergekernError:
            store.undo()
            raise
        finally:
            if is_new and not _content(folder):
                shutil.rmtree(folder)


def check_folder(path: Path) -> None:
    """Raise StatisticsError if a path is there and is no folder of statistics, nor empty."""
    if path.exists() and not path.is_dir():
        raise StatisticsError(f"{path}: is a file; statistics are kept in a folder")
    if path.exists() and not is_statistics_folder(path) and _content(path):
        raise StatisticsError(f"{path}: a folder with other things in it; give a new or empty one for statistics")


def shard_folder(folder: Path, index: int, count: int) -> Path:
    """Return where a shard's own statistics lie, in a folder of statistics."""
    return folder / f"shard-{index}-of-{count}"


def remove_others(folder: Path, file_names: Collection[str]) -> None:
    """Remove blocks with other names from a folder of statistics, and what killed runs left of unfinished ones."""
    for kind in (BLOCKS, BASES):
        if (folder / kind).is_dir():
            for path in (folder / kind).iterdir():
                if path.stem not in file_names:
                    path.unlink(missing_ok=True)
    for path in folder.glob(f".{MANIFEST}.*"):
        path.unlink(missing_ok=True)


def _content(folder: Path) -> list[Path]:
    ours = {*LOCK_FILES, *(path.name for path in shards_in(folder))}
    return [path for path in folder.iterdir() if path.name not in ours]
