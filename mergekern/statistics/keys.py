"""Keys of blocks, and where the files of a block lie in a folder of statistics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import SUFFIX, read_description

FORMAT = 2
BLOCKS, BASES = "blocks", "bases"
# How blocks were measured that were not made by a run: they have no singular vectors.
SAVED = "saved"


@dataclass(frozen=True)
class BlockKey:
    """What a block is of: it determines every value in it, and so names its file.

    Attributes:
        name, shape: of the tensor.
        how: of what else the values depend on: versions, backend, sizes of subspaces and spectra.
        base: content hash of the tensor in the base.
        rows, columns: content hashes of the tensor in R and C models; no columns for R models among themselves.
    """

    name: str
    shape: tuple[int, ...]
    how: str
    base: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def described(self) -> dict[str, Any]:
        """Its attributes by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @staticmethod
    def from_tile(
        name: str, shape: Sequence[int], how: str, hashes: Sequence[str], rows: Sequence[int], columns: Sequence[int]
    ) -> BlockKey:
        """Return what a tile is of, from the content hashes in the base and in all models, and positions of models."""
        sides = (tuple(hashes[1 + model] for model in side) for side in (rows, columns))
        return BlockKey(name, tuple(shape), how, hashes[0], *sides)

    @staticmethod
    def read(folder: Path, file_name: str) -> BlockKey:
        """Read what a block is of from a folder of statistics, and none of its values; errors as `LayerBlock.read`."""
        path = block_path(folder, file_name)
        return key_of(path, file_name, read_description(path))

    @property
    def is_diagonal(self) -> bool:
        """Whether the pairs are those of some models among themselves, so that spectra belong to the block."""
        return not self.columns

    def has_pairs_of(self, models: Collection[str]) -> bool:
        """Tell whether a pair of models, by their content hashes, is in the block, or one with itself."""
        return all(any(digest in models for digest in side) for side in (self.rows, self.columns or self.rows))

    @cached_property
    def file_name(self) -> str:
        """Name of the block's files."""
        content = [FORMAT, self.name, self.shape, self.how, self.base, self.rows, self.columns]
        return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


def key_of(path: Path, file_name: str, description: dict[str, Any]) -> BlockKey:
    """Return what a block is of, by its description; StatisticsError where that is not what its name says."""
    try:
        said = {field.name: description[field.name] for field in dataclasses.fields(BlockKey)}
        key = BlockKey(**said | {name: tuple(said[name]) for name in ("shape", "rows", "columns")})
    except (KeyError, TypeError) as error:
        raise StatisticsError(f"{path}: not a block of a layer ({type(error).__name__}: {error})") from error
    if key.file_name != file_name:
        raise StatisticsError(f"{path}: a block of other models or of another tensor, {key.name!r}")
    return key


def block_path(folder: Path, file_name: str) -> Path:
    """Return where a block lies in a folder of statistics."""
    return folder / BLOCKS / f"{file_name}{SUFFIX}"


def bases_path(folder: Path, file_name: str) -> Path:
    """Return where the singular vectors of a block lie in a folder of statistics."""
    return folder / BASES / f"{file_name}{SUFFIX}"
