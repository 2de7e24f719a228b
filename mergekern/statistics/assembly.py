"""Putting the statistics of one tensor together from blocks: which pairs they have, and where their values go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.keys import BlockKey
from mergekern.statistics.layer_block import LayerBlock, Overlaps, Spectra
from mergekern.statistics.layers import LayerStatistics, SpectrumStatistics


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
