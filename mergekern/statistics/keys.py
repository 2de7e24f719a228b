"""Keys of blocks, and where the files of a block lie in a folder of statistics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import SUFFIX, read_description

FORMAT = 2
BLOCKS, BASES = "blocks", "bases"
# `how` of blocks that `ZooStatistics.save` wrote: they have no singular vectors.
SAVED = "saved"


@dataclass(frozen=True)
class BlockKey:
    """Key of a block: everything that its values depend on. Its hash names the files of the block.

    Attributes:
        name, shape: name and shape of the tensor.
        how: what the values depend on besides weights: version, backend, sizes of subspaces and spectra.
        base: content hash of the tensor in the base.
        rows, columns: content hashes of the tensor in R and in C models. A diagonal block has no columns: it is of R
            models among themselves.
    """

    name: str
    shape: tuple[int, ...]
    how: str
    base: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def description(self) -> dict[str, Any]:
        """The attributes by name, as a block's file holds them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @staticmethod
    def from_tile(
        name: str, shape: Sequence[int], how: str, hashes: Sequence[str], rows: Sequence[int], columns: Sequence[int]
    ) -> BlockKey:
        """Return the key of the block of a tile.

        Args:
            name, shape, how: as in `BlockKey`.
            hashes: content hashes of the tensor in the base and in each model.
            rows, columns: positions of the tile's models.
        """
        sides = (tuple(hashes[1 + model] for model in side) for side in (rows, columns))
        return BlockKey(name, tuple(shape), how, hashes[0], *sides)

    @staticmethod
    def read(folder: Path, file_name: str) -> BlockKey:
        """Read the key of a block from a folder of statistics, without reading its values.

        Raises:
            StatisticsError: the file is missing, is damaged or is another block.
        """
        path = block_path(folder, file_name)
        return BlockKey.from_description(path, read_description(path))

    @staticmethod
    def from_description(path: Path, description: Mapping[str, Any]) -> BlockKey:
        """Return the key of the block in a file, from the description in it.

        Raises:
            StatisticsError: the description is not that of a block, or it disagrees with the name of the file.
        """
        from mergekern._internal.documents import checked
        from mergekern.statistics.schemas import BlockDescription

        try:
            said = checked(BlockDescription, description)
        except ValueError as error:
            raise StatisticsError(f"{path}: not a block of a layer ({error})") from error
        sides = tuple(said.rows), tuple(said.columns)
        key = BlockKey(said.name, tuple(said.shape), said.how, said.base, *sides)
        if key.file_name != path.stem:
            raise StatisticsError(f"{path}: a block of other models or of another tensor, {key.name!r}")
        return key

    @property
    def is_diagonal(self) -> bool:
        """Whether the block has the pairs of R models among themselves, and so the spectra of these models."""
        return not self.columns

    def has_pairs_of(self, models: Collection[str]) -> bool:
        """Tell whether the block has a pair of these models, given by content hashes, or a model with itself."""
        return all(any(content in models for content in side) for side in (self.rows, self.columns or self.rows))

    @cached_property
    def file_name(self) -> str:
        """Name of the block's files, without suffix: a hash of the key."""
        content = [FORMAT, self.name, self.shape, self.how, self.base, self.rows, self.columns]
        return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


def block_path(folder: Path, file_name: str) -> Path:
    """Return the path of a block in a folder of statistics."""
    return folder / BLOCKS / f"{file_name}{SUFFIX}"


def bases_path(folder: Path, file_name: str) -> Path:
    """Return the path of a block's singular vectors in a folder of statistics."""
    return folder / BASES / f"{file_name}{SUFFIX}"
