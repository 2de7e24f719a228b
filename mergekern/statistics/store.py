"""The store of a run: a folder of statistics whose blocks are used where they fit, and which gets those that are new.

A block is named by a hash of everything that it was computed from: content of the tensor in the base and in the models,
options, backend and version. So a changed input never meets a stale block. Blocks are written whole or not at all, so
that a run that was killed at any moment continues from them. Blocks of an earlier run with other models are found too:
by the content of the models that both runs have.
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
from mergekern.statistics.manifest import MANIFEST, REMOVED, Manifest, is_statistics_folder, shards_in

logger = logging.getLogger(__name__)
Read = TypeVar("Read")


class Store:
    """Blocks of one folder of statistics, which a run reads and writes while it has the lock of the folder.

    Args:
        path: the folder.
        lender: another folder of statistics, from which `borrow` brings blocks.

    Raises:
        StatisticsError: the path is not a folder of statistics, and not new or empty.
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

    def found(
        self, name: str, base: str, how: str, with_spectrum: bool, extras: Collection[str] = ()
    ) -> list[BlockKey]:
        """Return the keys of the blocks of one tensor that an earlier run left in the folder and that are of use.

        A block is of use if it is whole, was measured in the same way against the same base, and has spectra and extras
        where they are needed.

        Args:
            name: the tensor.
            base: content hash of the tensor in the base.
            how: as in `BlockKey`.
            with_spectrum: whether spectra are needed.
            extras: names of the optional parts of a block that are needed.
        """
        keys = []
        for file_name in self._entries[name].blocks if name in self._entries else ():
            block = self.get(file_name, with_spectrum)
            if block is None or (block.key.base, block.key.how) != (base, how):
                continue
            if (block.has_spectra or not with_spectrum) and block.has(extras):
                keys.append(block.key)
        return keys

    def borrow(self, file_name: str) -> None:
        """Bring a block and its singular vectors from the lender, if this folder lacks it and the lender has it.

        Raises:
            OutputError: the files cannot be written.
        """
        if self._lender is None or block_path(self.path, file_name).exists():
            return
        if block_path(self._lender, file_name).exists():
            # The singular vectors first, so that they are there whenever the block is.
            for path_in in (bases_path, block_path):
                if path_in(self._lender, file_name).exists():
                    self.bring(path_in(self._lender, file_name), path_in(self.path, file_name))

    def get(self, file_name: str, with_spectrum: bool) -> LayerBlock | None:
        """Return a block of the folder, or None if it is missing, is damaged or lacks the spectra that are needed.

        A block of pairs is returned without its overlaps too: they can be made from singular vectors.

        Args:
            file_name: names the block's files, without suffix.
            with_spectrum: whether a diagonal block needs spectra, with their singular vectors.
        """
        if not block_path(self.path, file_name).exists():
            return None
        block = self._attempt(LayerBlock.read, self.path, file_name)
        if block is None or not (with_spectrum and block.key.is_diagonal):
            return block
        return block if block.has_spectra and bases_path(self.path, file_name).exists() else None

    def has_bases(self, key: BlockKey) -> bool:
        """Tell whether the singular vectors of a diagonal block are in the folder, undamaged."""
        return self._attempt(read_bases, self.path, key.file_name, key) is not None

    def bases(self, models: Sequence[str], blocks: Sequence[BlockKey]) -> Bases:
        """Return the singular vectors of one tensor of some models, from the diagonal blocks that have them.

        Args:
            models: content hash of the tensor in each model.
            blocks: keys of the blocks of this tensor.

        Raises:
            StatisticsError: a file is missing or damaged, or no diagonal block has one of the models.
        """
        parts: dict[int, Bases] = {}
        left = dict.fromkeys(models)
        for key in blocks:
            rows = {content: row for row, content in enumerate(key.rows) if content in left}
            if not key.is_diagonal or not rows:
                continue
            every = read_bases(self.path, key.file_name, key)
            for position, content in enumerate(models):
                if content in rows:
                    parts[position] = Bases(*(side[rows[content]] for side in every))
            left = {content: None for content in left if content not in rows}
        if left:
            raise StatisticsError(f"{self.path}: no singular vectors of {len(left)} models")
        return Bases(*(np.stack(side) for side in zip(*(parts[i] for i in range(len(models))), strict=True)))

    def triplets(self, models: Sequence[str], blocks: Sequence[BlockKey]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return singular values (N, s) and the leading vectors of both sides of one tensor of some models.

        Args:
            models, blocks: as for `bases`.

        Raises:
            StatisticsError: as for `bases`, or a block is damaged.
        """
        vectors = self.bases(models, blocks)
        values: dict[str, np.ndarray] = {}
        for key in (key for key in blocks if key.is_diagonal and not values.keys() >= set(models)):
            spectra = LayerBlock.read(self.path, key.file_name).spectra
            if spectra is not None:
                values = {**dict(zip(key.rows, spectra.values, strict=True)), **values}
        return np.stack([values[model] for model in models]), vectors.left_top, vectors.right_top

    def put(self, block: LayerBlock) -> None:
        """Write a block; it replaces a block of the same key.

        Raises:
            OutputError: the block cannot be written.
        """
        self._write(block_path(self.path, block.key.file_name), lambda: block.write(self.path))

    def functional_file_name(self, kind: str, hashes: Sequence[str], how: Sequence[object]) -> str:
        """Return the file name, without suffix, of one kind of functional statistics.

        Args:
            kind: a name in `FUNCTIONAL`.
            hashes: content hashes of the models.
            how: everything else that the values depend on.
        """
        return xxhash.xxh3_128_hexdigest(json.dumps([FORMAT, kind, list(hashes), list(how)]).encode())

    def get_functional(self, file_names: Mapping[str, str]) -> FunctionalStatistics:
        """Return the functional statistics that are in the folder, undamaged; `file_names` are by kind."""
        found = {}
        for kind, file_name in file_names.items():
            path = block_path(self.path, file_name)
            if path.exists():
                found[kind] = self._attempt(FUNCTIONAL[kind].read, path)
        return FunctionalStatistics(**found)

    def put_functional(self, statistics: FunctionalStatistics, file_names: Mapping[str, str]) -> None:
        """Write functional statistics, to file names by kind.

        Raises:
            OutputError: a file cannot be written.
        """
        for kind, part in statistics.kinds.items():
            path = block_path(self.path, file_names[kind])
            self._write(path, partial(part.write, path))

    def bring(self, source: Path, target: Path) -> None:
        """Bring a file of another folder into this one: by a link on the same disk, by a copy otherwise.

        Raises:
            OutputError: the file cannot be written.
        """
        self._write(target, lambda: link_or_copy(source, target))

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest and remove the blocks that it does not name. After this, `undo` removes nothing.

        Raises:
            OutputError: the manifest cannot be written.
        """
        self._write(self.path / MANIFEST, lambda: manifest.write(self.path))
        self._written, self._is_new = [], False
        remove_others(self.path, manifest.file_names)

    def undo(self) -> None:
        """Remove everything that this run wrote, because its input turned out to be bad."""
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
    """Give the store of a folder, with the folder locked. If the input turns out to be bad, new files are removed.

    A store may be given instead of a folder: then the caller has the lock.

    Args:
        folder: the folder, or its store.
        lender: another folder of statistics, from which the store may borrow blocks.

    Raises:
        StatisticsError: the path is not a folder of statistics, and not new or empty.
        OutputError: another process has the lock, or the folder cannot be written to.
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
    """Raise StatisticsError if a path exists and is neither a folder of statistics nor an empty folder."""
    if path.exists() and not path.is_dir():
        raise StatisticsError(f"{path}: is a file; statistics are kept in a folder")
    if path.exists() and not is_statistics_folder(path) and _content(path):
        raise StatisticsError(f"{path}: a folder with other things in it; give a new or empty one for statistics")


def shard_folder(folder: Path, index: int, count: int) -> Path:
    """Return the folder of a shard's own statistics inside a folder of statistics."""
    return folder / f"shard-{index}-of-{count}"


def remove_others(folder: Path, file_names: Collection[str]) -> None:
    """Remove the blocks with other file names from a folder of statistics, and unfinished files of killed runs."""
    for kind in (BLOCKS, BASES):
        if (folder / kind).is_dir():
            for path in (folder / kind).iterdir():
                if path.stem not in file_names:
                    path.unlink(missing_ok=True)
    for path in folder.glob(f".{MANIFEST}.*"):
        path.unlink(missing_ok=True)


def _content(folder: Path) -> list[Path]:
    ours = {*LOCK_FILES, *(path.name for path in (*shards_in(folder), *folder.glob(f".{REMOVED}-*")))}
    return [path for path in folder.iterdir() if path.name not in ours]
