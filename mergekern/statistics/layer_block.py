"""Blocks: what was measured of one tensor for some pairs of models, as it is kept on disk.

Models are told by the content of the tensor, and no value of a pair depends on any other model. So a block serves every
zoo in which its models appear, in any order and under any names, and the statistics of a zoo are put together from
whatever blocks have its pairs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import read_block, write_block
from mergekern.statistics.keys import BlockKey, bases_path, block_path, key_of
from mergekern.statistics.layers import Bases, LayerStatistics


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
        key = key_of(path, file_name, description)
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
