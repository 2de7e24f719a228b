"""Blocks of a layer: the statistics of one tensor for some pairs of models, as they are kept on disk.

A model is identified by the content of its tensor, and the values of a pair depend on no other model. So a block serves
every zoo that has its models, in any order and under any names, and the statistics of a zoo are assembled from all
blocks that have its pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import read_block, write_block
from mergekern.statistics.contents import (
    check_arrays,
    check_bases,
    check_errors,
    check_gram,
    check_overlaps,
    check_spectra,
)
from mergekern.statistics.coordinates import OF_PAIRS, CoordinateStatistics
from mergekern.statistics.keys import BlockKey, bases_path, block_path
from mergekern.statistics.layers import Bases, LayerStatistics, SpectrumErrors


class Overlaps(NamedTuple):
    """Overlaps of k-dimensional subspaces, (R, C) each: squared Frobenius norms of the products of two bases."""

    left_top_overlap: np.ndarray
    right_top_overlap: np.ndarray
    right_bottom_overlap: np.ndarray


# Names of these arrays in a file: they are the format, and stay as they are when an attribute gets another name.
OVERLAPS_IN_FILE = ("overlap.left_top", "overlap.right_top", "overlap.right_bottom")
ERRORS_IN_FILE = ("error.values", "error.vectors")
INTERFERENCE_IN_FILE = "interference"
COORDINATE = "coordinate."


class Spectra(NamedTuple):
    """Spectra of one tensor of R models.

    Attributes:
        values: (R, s) float64 leading singular values, descending.
        rank: (R,) number of singular values above 1e-7·σ₁.
        k: dimension of the subspaces that the models' bases span.
        bases: singular vectors of the models. They have a file of their own, and are None in a block that was read.
        errors: estimated errors; None for exact factorisations.
    """

    values: np.ndarray
    rank: np.ndarray
    k: int
    bases: Bases | None = None
    errors: SpectrumErrors | None = None


@dataclass(frozen=True)
class LayerBlock:
    """Statistics of one tensor for R × C pairs of models.

    Attributes:
        key: what the values depend on: the tensor, the models and more.
        inner, squared_distance: (R, C) float64 inner products of the task vectors, and squared distances between them.
        overlaps: overlaps of the models' subspaces. None without spectra, and for pairs on the two sides of a block
            until `with_overlaps` adds those of their bases.
        spectra: spectra of the models of a diagonal block; it has them where it has overlaps.
        rounding: (R,) float64 of the models of a diagonal block, as in `LayerStatistics`; None where it is nothing.
        coordinates: statistics of single coordinates; None where no metric needs them.
        interference: singular task interference of the pairs; None where no metric needs it, and as `overlaps` is.
    """

    key: BlockKey
    inner: np.ndarray
    squared_distance: np.ndarray
    overlaps: Overlaps | None = None
    spectra: Spectra | None = None
    rounding: np.ndarray | None = None
    coordinates: CoordinateStatistics | None = None
    interference: np.ndarray | None = None

    @staticmethod
    def from_layer(key: BlockKey, layer: LayerStatistics) -> LayerBlock:
        """Return the block of models among themselves, from the statistics of a tensor of these models."""
        block = LayerBlock(
            key, layer.inner, layer.squared_distance, rounding=layer.rounding, coordinates=layer.coordinates
        )
        if (spectrum := layer.spectrum) is None:
            return block
        overlaps = Overlaps(spectrum.left_top_overlap, spectrum.right_top_overlap, spectrum.right_bottom_overlap)
        spectra = Spectra(spectrum.values, spectrum.rank, spectrum.k, spectrum.bases, spectrum.errors)
        return dataclasses.replace(block, overlaps=overlaps, spectra=spectra, interference=spectrum.interference)

    @property
    def has_spectra(self) -> bool:
        """Whether the block has everything that the metrics of spectra and subspaces read."""
        return self.overlaps is not None

    def has(self, extras: Collection[str]) -> bool:
        """Whether the block has these of its optional parts, given by the names of their attributes."""
        return all(getattr(self, name) is not None for name in extras)

    def with_overlaps(self, overlaps: Overlaps) -> LayerBlock:
        """Return the same block with overlaps."""
        return dataclasses.replace(self, overlaps=overlaps)

    def write(self, folder: Path) -> None:
        """Write to a folder of statistics.

        The singular vectors are written first, so that they are there whenever the block is.
        """
        arrays, k = {"inner": self.inner, "squared_distance": self.squared_distance}, 0
        if self.overlaps is not None:
            arrays |= dict(zip(OVERLAPS_IN_FILE, self.overlaps, strict=True))
        if self.rounding is not None:
            arrays["rounding"] = self.rounding
        if self.interference is not None:
            arrays[INTERFERENCE_IN_FILE] = self.interference
        if self.coordinates is not None:
            arrays |= {f"{COORDINATE}{name}": getattr(self.coordinates, name) for name in ("sums", *OF_PAIRS)}
        if self.spectra is not None:
            arrays |= {"values": self.spectra.values, "rank": self.spectra.rank}
            if self.spectra.errors is not None:
                arrays |= dict(zip(ERRORS_IN_FILE, self.spectra.errors, strict=True))
            k = self.spectra.k
            if self.spectra.bases is not None:
                write_block(bases_path(folder, self.key.file_name), self.spectra.bases._asdict(), {})
        write_block(block_path(folder, self.key.file_name), arrays, {**self.key.description, "k": k})

    @staticmethod
    def read(folder: Path, file_name: str) -> LayerBlock:
        """Read a block from a folder of statistics, without the singular vectors.

        Raises:
            StatisticsError: the file is missing, is damaged or holds something else.
        """
        path = block_path(folder, file_name)
        arrays, description = read_block(path)
        key = BlockKey.from_description(path, description)
        try:
            return LayerBlock._from_arrays(key, arrays, description["k"])
        except ValueError as error:
            raise StatisticsError(f"{path}: not a block of {key.name!r}: {error}") from error

    @staticmethod
    def _from_arrays(key: BlockKey, arrays: Mapping[str, np.ndarray], k: int) -> LayerBlock:
        """Return the block of arrays as a file holds them; ValueError where they are no statistics of its tensor."""
        pairs = len(key.rows), len(key.rows if key.is_diagonal else key.columns)
        check_arrays(arrays, {"inner": pairs, "squared_distance": pairs})
        check_gram(arrays["inner"], arrays["squared_distance"], key.is_diagonal)
        if "rounding" in arrays:
            check_arrays(arrays, {"rounding": (len(key.rows),)})
        block = LayerBlock(
            key, arrays["inner"], arrays["squared_distance"], rounding=arrays.get("rounding"),
            coordinates=_coordinates(arrays, pairs, key.is_diagonal),
        )  # fmt: skip
        if OVERLAPS_IN_FILE[0] not in arrays:
            return block
        if len(key.shape) != 2:
            raise ValueError(f"overlaps of a tensor of shape {key.shape}")
        overlaps = _overlaps(arrays, pairs)
        check_overlaps(overlaps, k if key.is_diagonal else min(key.shape))
        block = dataclasses.replace(block, overlaps=overlaps, interference=_interference(arrays, pairs))
        if not key.is_diagonal:
            return block
        models = len(key.rows)
        check_arrays(
            arrays, {"values": (models, *arrays["values"].shape[1:])} if "values" in arrays else {"values": ()}
        )
        check_arrays(arrays, {"rank": (models,)}, kind="i")
        check_spectra(arrays["values"], arrays["rank"], k, key.shape)
        errors = _errors(arrays, k)
        if (errors is None) == bool(np.isnan(overlaps.right_bottom_overlap).all()):
            raise ValueError("overlaps of bottom vectors and estimated errors are both there, or neither")
        return dataclasses.replace(block, spectra=Spectra(arrays["values"], arrays["rank"], k, errors=errors))


def _overlaps(arrays: Mapping[str, np.ndarray], pairs: tuple[int, int]) -> Overlaps:
    """Return the overlaps in a file, checked; those of bottom vectors are all NaN where there are none."""
    *top, bottom = OVERLAPS_IN_FILE
    check_arrays(arrays, dict.fromkeys(top, pairs))
    is_undefined = bottom in arrays and arrays[bottom].dtype.kind == "f" and bool(np.isnan(arrays[bottom]).all())
    check_arrays({bottom: np.zeros(arrays[bottom].shape)} if is_undefined else arrays, {bottom: pairs})
    return Overlaps(*(arrays[name] for name in OVERLAPS_IN_FILE))


def _interference(arrays: Mapping[str, np.ndarray], pairs: tuple[int, int]) -> np.ndarray | None:
    """Return the singular task interference in a file, checked; None where there is none."""
    if (found := arrays.get(INTERFERENCE_IN_FILE)) is None:
        return None
    check_arrays(arrays, {INTERFERENCE_IN_FILE: pairs})
    if (found < 0).any():
        raise ValueError("a singular task interference is negative")
    return found


def _coordinates(
    arrays: Mapping[str, np.ndarray], pairs: tuple[int, int], is_diagonal: bool
) -> CoordinateStatistics | None:
    """Return the statistics of coordinates in a file, checked; None where there are none."""
    if not any(name.startswith(COORDINATE) for name in arrays):
        return None
    check_arrays(arrays, {f"{COORDINATE}{name}": pairs for name in OF_PAIRS})
    check_arrays(arrays, {f"{COORDINATE}sums": pairs[:1] if is_diagonal else (0,)})
    found = CoordinateStatistics(*(arrays[f"{COORDINATE}{name}"] for name in ("sums", *OF_PAIRS)))
    found.check()
    return found


def _errors(arrays: Mapping[str, np.ndarray], k: int) -> SpectrumErrors | None:
    """Return the estimated errors in a file, checked; None where there are none."""
    if not any(name in arrays for name in ERRORS_IN_FILE):
        return None
    if missing := [name for name in ERRORS_IN_FILE if name not in arrays]:
        raise ValueError(f"{missing[0]!r} is missing")
    errors = SpectrumErrors(*(arrays[name] for name in ERRORS_IN_FILE))
    check_errors(errors, arrays["values"], k)
    return errors


def read_bases(folder: Path, file_name: str, key: BlockKey | None = None, k: int | None = None) -> Bases:
    """Return the singular vectors of a diagonal block.

    Args:
        folder, file_name: folder and file name of the block.
        key, k: key of the block and dimension of its subspaces, which the vectors are checked against.

    Raises:
        StatisticsError: the file is missing, is damaged or holds something else.
    """
    path = bases_path(folder, file_name)
    arrays, _ = read_block(path)
    if set(arrays) != set(Bases._fields):
        raise StatisticsError(f"{path}: not a file of singular vectors")
    bases = Bases(**arrays)
    if key is not None:
        try:
            check_bases(bases, len(key.rows), key.shape, k)
        except ValueError as error:
            raise StatisticsError(f"{path}: not the singular vectors of {key.name!r}: {error}") from error
    return bases
