"""Blocks: what was measured of one tensor for some pairs of models, as it is kept on disk.

Models are told by the content of the tensor, and no value of a pair depends on any other model. So a block serves every
zoo in which its models appear, in any order and under any names, and the statistics of a zoo are put together from
whatever blocks have its pairs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import SUFFIX, read_block, read_description, write_block
from mergekern.statistics.layers import Bases, LayerStatistics, SpectrumStatistics

FORMAT = 2
BLOCKS, BASES = "blocks", "bases"
# How blocks were measured that were not made by a run: they have no singular vectors.
SAVED = "saved"


class Overlaps(NamedTuple):
    """Squared Frobenius norms of the products of k-dimensional bases, (R, C) each."""

    left_top_overlap: np.ndarray
    right_top_overlap: np.ndarray
    right_bottom_overlap: np.ndarray


# Names of these arrays in a file: they are the format, and stay as they are when an attribute gets another name.
OVERLAPS_IN_FILE = ("overlap.left_top", "overlap.right_top", "overlap.right_bottom")


class Spectra(NamedTuple):
    """Leading singular values (R, s) of R models, and ranks (R,)."""

    values: np.ndarray
    rank: np.ndarray


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
        return _key_of(path, file_name, read_description(path))

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


@dataclass(frozen=True)
class LayerBlock:
    """Statistics of one tensor for R × C pairs of models.

    Attributes:
        key: the tensor and the models.
        inner, squared_distance: (R, C) float64.
        overlaps: of subspaces, where spectra were wanted; None for pairs whose bases have not met yet.
        spectra: of the models of a diagonal block.
        k: dimension of the subspaces; 0 where no spectra were wanted.
        bases: singular vectors of the models of a diagonal block, in a file of their own; here until it is written.
    """

    key: BlockKey
    inner: np.ndarray
    squared_distance: np.ndarray
    overlaps: Overlaps | None = None
    spectra: Spectra | None = None
    k: int = 0
    bases: Bases | None = None

    @staticmethod
    def from_layer(key: BlockKey, layer: LayerStatistics) -> LayerBlock:
        """Return the block of models among themselves."""
        spectrum = layer.spectrum
        if spectrum is None:
            return LayerBlock(key, layer.inner, layer.squared_distance)
        overlaps = Overlaps(spectrum.left_top_overlap, spectrum.right_top_overlap, spectrum.right_bottom_overlap)
        spectra = Spectra(spectrum.values, spectrum.rank)
        return LayerBlock(key, layer.inner, layer.squared_distance, overlaps, spectra, spectrum.k, spectrum.bases)

    @property
    def has_spectra(self) -> bool:
        """Whether it has all that the metrics of subspaces read."""
        return self.overlaps is not None

    def with_overlaps(self, overlaps: Overlaps) -> LayerBlock:
        """Return a block of pairs with the overlaps of their subspaces."""
        return dataclasses.replace(self, overlaps=overlaps)

    def write(self, folder: Path) -> None:
        """Write to the folder of statistics: singular vectors first, since the block says that they are there."""
        if self.bases is not None:
            write_block(bases_path(folder, self.key.file_name), self.bases._asdict(), {})
        arrays = {"inner": self.inner, "squared_distance": self.squared_distance}
        if self.overlaps is not None:
            arrays |= dict(zip(OVERLAPS_IN_FILE, self.overlaps, strict=True))
        if self.spectra is not None:
            arrays |= self.spectra._asdict()
        write_block(block_path(folder, self.key.file_name), arrays, {**self.key.described, "k": self.k})

    @staticmethod
    def read(folder: Path, file_name: str) -> LayerBlock:
        """Read from a folder of statistics, without the singular vectors.

        Raises:
            StatisticsError: the file is missing, damaged or something else.
        """
        path = block_path(folder, file_name)
        arrays, description = read_block(path)
        key = _key_of(path, file_name, description)
        try:
            overlaps = spectra = None
            if OVERLAPS_IN_FILE[0] in arrays:
                overlaps = Overlaps(*(arrays[name] for name in OVERLAPS_IN_FILE))
            if "values" in arrays:
                spectra = Spectra(arrays["values"], arrays["rank"])
            block = LayerBlock(key, arrays["inner"], arrays["squared_distance"], overlaps, spectra, description["k"])
        except (KeyError, TypeError, ValueError) as error:
            raise StatisticsError(f"{path}: not a block of a layer ({type(error).__name__}: {error})") from error
        return block


def _key_of(path: Path, file_name: str, description: dict[str, Any]) -> BlockKey:
    """Return what a block is of, by its description; StatisticsError where that is not what its name says."""
    try:
        said = {field.name: description[field.name] for field in dataclasses.fields(BlockKey)}
        key = BlockKey(**said | {name: tuple(said[name]) for name in ("shape", "rows", "columns")})
    except (KeyError, TypeError) as error:
        raise StatisticsError(f"{path}: not a block of a layer ({type(error).__name__}: {error})") from error
    if key.file_name != file_name:
        raise StatisticsError(f"{path}: a block of other models or of another tensor, {key.name!r}")
    return key


def read_bases(folder: Path, file_name: str) -> Bases:
    """Return the singular vectors of a diagonal block.

    Raises:
        StatisticsError: the file is missing, damaged or something else.
    """
    path = bases_path(folder, file_name)
    arrays, _ = read_block(path)
    if set(arrays) != set(Bases._fields):
        raise StatisticsError(f"{path}: not a file of singular vectors")
    return Bases(**arrays)


def block_path(folder: Path, file_name: str) -> Path:
    """Return where a block lies in a folder of statistics."""
    return folder / BLOCKS / f"{file_name}{SUFFIX}"


def bases_path(folder: Path, file_name: str) -> Path:
    """Return where the singular vectors of a block lie in a folder of statistics."""
    return folder / BASES / f"{file_name}{SUFFIX}"


class Coverage:
    """Which pairs of N models some blocks of one tensor have.

    Args:
        models: content hashes of the tensor in the models.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self.models = models
        self.pairs = np.zeros((len(models), len(models)), dtype=bool)

    def add(self, key: BlockKey) -> tuple[np.ndarray, np.ndarray]:
        """Count in a block, and return the positions of its rows and columns at each model: −1 where it has none."""
        rows = _positions(key.rows, self.models)
        columns = rows if key.is_diagonal else _positions(key.columns, self.models)
        pairs = np.logical_and.outer(rows >= 0, columns >= 0)
        if not key.is_diagonal:
            # A model that is on both sides, as the same content under two names, has its spectra elsewhere.
            np.fill_diagonal(pairs, False)
        self.pairs |= pairs | pairs.T
        return rows, columns

    def known(self) -> list[int]:
        """Return models, as many as a look at one after the other finds, all of whose pairs are there."""
        found: list[int] = []
        for model in range(len(self.models)):
            if self.pairs[model, model] and self.pairs[model, found].all():
                found.append(model)
        return found


def assemble(blocks: Iterable[LayerBlock], models: Sequence[str]) -> LayerStatistics:
    """Return the statistics of one tensor of N models from blocks that have all of their pairs.

    Args:
        blocks: of one tensor, one at least.
        models: content hashes of the tensor in the models.

    Raises:
        StatisticsError: a pair is in none of them.
    """
    coverage, of_overlaps, count = Coverage(models), Coverage(models), len(models)
    inner, squared_distance = np.empty((count, count)), np.empty((count, count))
    overlaps, spectra, k, block = None, None, 0, None
    for block in blocks:
        rows, columns = coverage.add(block.key)
        put = _Put(rows, columns)
        put(inner, block.inner)
        put(squared_distance, block.squared_distance)
        if block.overlaps is not None:
            of_overlaps.add(block.key)
            overlaps = overlaps or Overlaps(*(np.empty((count, count)) for _ in Overlaps._fields))
            for whole, part in zip(overlaps, block.overlaps, strict=True):
                put(whole, part)
        if block.spectra is not None:
            values, rank = block.spectra
            spectra = spectra or Spectra(np.empty((count, values.shape[1])), np.empty(count, dtype=rank.dtype))
            k, mine = block.k, rows >= 0
            spectra.values[mine], spectra.rank[mine] = values[rows[mine]], rank[rows[mine]]
    if block is None or not coverage.pairs.all():
        raise StatisticsError("a block is missing")
    spectrum = None
    # Where models were added for metrics that need no spectra, those of the others are not enough.
    if overlaps is not None and spectra is not None and of_overlaps.pairs.all():
        spectrum = SpectrumStatistics(spectra.values, spectra.rank, *overlaps, k)
    return LayerStatistics(block.key.name, block.key.shape, inner, squared_distance, spectrum)


def _positions(hashes: Sequence[str], models: Sequence[str]) -> np.ndarray:
    at = {digest: position for position, digest in reversed(list(enumerate(hashes)))}
    return np.array([at.get(digest, -1) for digest in models], dtype=np.int64)


class _Put:
    """Copies the values of a block to where its pairs are in (N, N) matrices, on both sides of the diagonal."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray) -> None:
        at_rows, at_columns = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
        self._there = np.ix_(at_rows, at_columns)
        self._here = np.ix_(rows[at_rows], columns[at_columns])

    def __call__(self, whole: np.ndarray, part: np.ndarray) -> None:
        values = part[self._here]
        whole[self._there] = values
        whole.T[self._there] = values
