"""Assembly of the statistics of one tensor from blocks: which pairs they cover, and where their values go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.coordinates import OF_PAIRS, CoordinateStatistics
from mergekern.statistics.keys import BlockKey
from mergekern.statistics.layer_block import LayerBlock, Overlaps, Spectra
from mergekern.statistics.layers import LayerStatistics, SpectrumErrors, SpectrumStatistics


def assemble(name: str, shape: tuple[int, ...], blocks: Iterable[LayerBlock], models: Sequence[str]) -> LayerStatistics:
    """Return the statistics of one tensor of N models, assembled from blocks that cover all of their pairs.

    Args:
        name, shape: name and shape of the tensor, from the manifest.
        blocks: blocks of this tensor; one at a time is held.
        models: content hash of the tensor in each model.

    Raises:
        StatisticsError: no block has some pair.
    """
    products, overlaps = _PairMatrices(2, models), _PairMatrices(len(Overlaps._fields), models)
    interference, coordinates = _PairMatrices(1, models), _PairMatrices(len(OF_PAIRS), models)
    sums = np.zeros(len(models))
    spectra: list[tuple[np.ndarray, Spectra]] = []
    rounding: np.ndarray | None = None
    for block in blocks:
        placement = products.add(block.key, (block.inner, block.squared_distance))
        if block.overlaps is not None:
            overlaps.add(block.key, block.overlaps)
        if block.interference is not None:
            interference.add(block.key, [block.interference])
        if block.coordinates is not None:
            coordinates.add(block.key, block.coordinates.of_pairs)
            if block.key.is_diagonal:
                here = placement.rows >= 0
                sums[here] = block.coordinates.sums[placement.rows[here]]
        if block.spectra is not None:
            spectra.append((placement.rows, block.spectra))
        if (block.key.name, block.key.shape) != (name, shape):
            raise StatisticsError(f"a block is of {block.key.name!r}, {block.key.shape}, not {shape}")
        if block.rounding is not None:
            rounding = np.zeros(len(models)) if rounding is None else rounding
            here = placement.rows >= 0
            rounding[here] = block.rounding[placement.rows[here]]
    if not products.coverage.is_complete:
        raise StatisticsError("a block is missing")
    spectrum = None
    # Models that were added for metrics without spectra have no overlaps: then the overlaps of the others are no use.
    if overlaps.coverage.is_complete:
        found = _gathered(spectra, len(models))
        every = Overlaps(*overlaps.matrices)
        if found.errors is None and np.isnan(every.right_bottom_overlap).any():
            raise StatisticsError("a block has no overlaps of bottom vectors")
        spectrum = SpectrumStatistics(
            found.values, found.rank, *every, found.k, errors=found.errors, interference=interference.complete(0)
        )
    inner, squared_distance = products.matrices
    signs = CoordinateStatistics(sums, *coordinates.matrices) if coordinates.coverage.is_complete else None
    return LayerStatistics(name, shape, inner, squared_distance, spectrum, rounding, signs)


class Placement(NamedTuple):
    """Where N models are in a block.

    Attributes:
        rows, columns: (N,) position of each model among the rows and among the columns, −1 where it is not among them.
    """

    rows: np.ndarray
    columns: np.ndarray

    @staticmethod
    def from_key(key: BlockKey, models: Sequence[str]) -> Placement:
        """Return where models, given by content hashes, are in the block of a key."""
        rows = _positions(models, key.rows)
        return Placement(rows, rows if key.is_diagonal else _positions(models, key.columns))

    @property
    def pairs(self) -> np.ndarray:
        """(N, N) bool, not symmetric: the pairs of a model among the rows and a model among the columns."""
        return np.logical_and.outer(self.rows >= 0, self.columns >= 0)

    def copy(self, part: np.ndarray, whole: np.ndarray) -> None:
        """Copy the (R, C) values of the block into an (N, N) matrix, on both sides of its diagonal."""
        in_rows, in_columns = np.flatnonzero(self.rows >= 0), np.flatnonzero(self.columns >= 0)
        values = part[np.ix_(self.rows[in_rows], self.columns[in_columns])]
        whole[np.ix_(in_rows, in_columns)] = values
        whole[np.ix_(in_columns, in_rows)] = values.T


class Coverage:
    """The pairs of N models that some blocks of one tensor have.

    Args:
        models: content hash of the tensor in each model.

    Attributes:
        pairs: (N, N) bool, symmetric: whether a block has the pair; on the diagonal, whether one has the model's own
            values.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self.models = models
        self.pairs = np.zeros((len(models), len(models)), dtype=bool)

    def add(self, key: BlockKey) -> Placement:
        """Add the pairs of a block, and return where the models are in it."""
        placement = Placement.from_key(key, self.models)
        pairs = placement.pairs
        if not key.is_diagonal:
            # A model is on both sides where another has the same content; its own values are in a diagonal block.
            np.fill_diagonal(pairs, False)
        self.pairs |= pairs | pairs.T
        return placement

    @property
    def is_complete(self) -> bool:
        """Whether all pairs are covered."""
        return bool(self.pairs.all())

    def known(self) -> list[int]:
        """Return a set of models whose pairs are all covered. Greedy: not necessarily the largest such set."""
        found: list[int] = []
        for model in range(len(self.models)):
            if self.pairs[model, model] and self.pairs[model, found].all():
                found.append(model)
        return found


class _PairMatrices:
    """(N, N) matrices that are filled with the values of blocks, and the pairs that have been filled so far."""

    def __init__(self, count: int, models: Sequence[str]) -> None:
        self.matrices: list[np.ndarray] = []  # made with the first values: of most kinds there are none
        self.coverage = Coverage(models)
        self._count = count

    def add(self, key: BlockKey, parts: Iterable[np.ndarray]) -> Placement:
        """Copy the values of a block, one (R, C) array for each matrix, and return where the models are in it."""
        placement = self.coverage.add(key)
        if not self.matrices:
            self.matrices = [np.empty((len(self.coverage.models),) * 2) for _ in range(self._count)]
        for part, matrix in zip(parts, self.matrices, strict=True):
            placement.copy(part, matrix)
        return placement

    def complete(self, index: int) -> np.ndarray | None:
        """Return one of the matrices, or None where pairs are missing."""
        return self.matrices[index] if self.coverage.is_complete else None


def _gathered(parts: Sequence[tuple[np.ndarray, Spectra]], models: int) -> Spectra:
    """Return the spectra of all models from those of diagonal blocks, each with the rows of all models in it."""
    first = parts[0][1]
    values, rank = np.empty((models, first.values.shape[1])), np.empty(models, dtype=first.rank.dtype)
    errors = None
    if first.errors is not None:
        errors = SpectrumErrors(np.empty_like(values), np.empty((models, first.errors.vectors.shape[1])))
    for rows, spectra in parts:
        if (spectra.values.shape[1], spectra.k) != (values.shape[1], first.k):
            raise StatisticsError("its blocks have spectra of different sizes")
        if (spectra.errors is None) != (errors is None):
            raise StatisticsError("its blocks are of svd='exact' and of svd='randomized'")
        here = rows >= 0
        values[here], rank[here] = spectra.values[rows[here]], spectra.rank[rows[here]]
        if errors is not None and spectra.errors is not None:
            for whole, part in zip(errors, spectra.errors, strict=True):
                whole[here] = part[rows[here]]
    return Spectra(values, rank, first.k, errors=errors)


def _positions(models: Sequence[str], side: Sequence[str]) -> np.ndarray:
    """Return the first position of each model in one side of a block, −1 where it is not there."""
    at = {content: position for position, content in reversed(list(enumerate(side)))}
    return np.array([at.get(content, -1) for content in models], dtype=np.int64)
