"""Where the statistics of a pass over layers go: into memory, into a store, or a share of them into a store."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mergekern._internal.versions import package_version
from mergekern.checkpoints import FactoredLayer, Layer, LayerStream
from mergekern.kernels import dispatch
from mergekern.measurement import Measurement, Pending
from mergekern.measurement.spectra import triplets_of
from mergekern.measurement.tiles import BLOCK_SIZE, Item, Tile, tiles
from mergekern.statistics import LayerStatistics
from mergekern.statistics.assembly import Coverage
from mergekern.statistics.coordinates import CoordinateStatistics
from mergekern.statistics.keys import BlockKey
from mergekern.statistics.layer_block import LayerBlock, Overlaps
from mergekern.statistics.manifest import LayerEntry
from mergekern.statistics.store import Store

Begun = TypeVar("Begun")


class Destination(ABC, Generic[Begun]):
    """Where the statistics of a pass over layers go.

    `begin` is called in file order by one thread, `finish` in the same order by another.
    """

    def wants(self, index: int) -> bool:
        """Tell whether anything of a tensor, by its position in the zoo, is to be measured here."""
        return True

    @abstractmethod
    def begin(self, index: int, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor) -> Begun:
        """Hash a layer, and begin to measure what is not known of it."""

    @abstractmethod
    def finish(self, layer: Layer | FactoredLayer, begun: Begun) -> LayerEntry:
        """Take the statistics of a layer, and return what the manifest says of it."""


class _LayerInMemory(NamedTuple):
    """A layer while the pass works on it; `rounding` as `Layer.rounding` returns it."""

    hashes: list[str]
    rounding: np.ndarray | None
    pending: Pending


class InMemory(Destination[_LayerInMemory]):
    """Memory, which holds the statistics of all layers.

    Attributes:
        layers: the statistics of every tensor, in file order.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.layers: list[LayerStatistics] = []
        self._measurement = measurement

    def begin(self, index: int, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor) -> _LayerInMemory:
        """Hash a layer and begin to measure it."""
        hashes = self._measurement.hashes(layer, pool)
        return _LayerInMemory(hashes, layer.rounding(), self._measurement.begin(layer, layer.zoo, pool))

    def finish(self, layer: Layer | FactoredLayer, begun: _LayerInMemory) -> LayerEntry:
        """Take the statistics of a layer."""
        self.layers.append(begun.pending().without_bases().with_rounding(begun.rounding))
        return LayerEntry(layer.tensor.name, layer.tensor.shape, tuple(begun.hashes), ())


class _MeasuredTile(NamedTuple):
    """A tile that is being measured; `split` as for `Measurement.begin`, `rounding` as for `Layer.rounding`."""

    key: BlockKey
    rounding: np.ndarray | None
    pending: Pending
    split: int


class _StoredTile(NamedTuple):
    """A tile whose block an earlier run left in the store; its overlaps may still be missing, and its interference.

    Attributes:
        key: key of the block.
        has_spectra, has_interference: whether the block has them.
        coordinates: statistics of coordinates that are being measured, and the block lacks; None otherwise.
    """

    key: BlockKey
    has_spectra: bool
    has_interference: bool
    coordinates: Callable[[], CoordinateStatistics] | None


class _LayerInStore(NamedTuple):
    """A layer while the pass works on it.

    Attributes:
        hashes: content hashes of the tensor in the base and in each model; "" of models that are not read.
        known: keys of blocks that an earlier run measured.
        tiles: the pairs that those do not have.
    """

    hashes: list[str]
    known: list[BlockKey]
    tiles: list[_MeasuredTile | _StoredTile]


class InStore(Destination[_LayerInStore]):
    """A store, which keeps blocks of pairs; what it has for the same content is not measured again.

    Args:
        store: keeps the blocks.
        stream: the zoo, of which some models are read at a time.
        measurement: how a layer is measured.
        block_size: how many models are measured together.
    """

    # Whether all models of a layer are measured here, so that their singular vectors can meet.
    _has_all_models = True

    def __init__(
        self, store: Store, stream: LayerStream, measurement: Measurement, block_size: int = BLOCK_SIZE
    ) -> None:
        self.store, self._stream, self._measurement, self._block_size = store, stream, measurement, block_size
        # What the values of a block depend on beside the weights.
        sizes: list[object] = [measurement.top_k, measurement.spectrum_k]
        if measurement.svd_tolerance is not None:
            sizes += ["randomized", measurement.svd_tolerance]
        self._how = json.dumps([package_version("mergekern"), measurement.name, *sizes])

    def begin(self, index: int, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor) -> _LayerInStore:
        """Hash a layer, look up which of its pairs the store has, and begin to measure the others."""
        hashes = self._measurement.hashes(layer, pool)
        blocks, known = self._known(layer, hashes)
        new = sorted(set(range(len(layer.zoo.models))) - set(known))
        lacking = tiles(known, new, self._block_size)
        return _LayerInStore(hashes, blocks, [self._begin_tile(layer, hashes, tile, pool) for tile in lacking])

    def finish(self, layer: Layer | FactoredLayer, begun: _LayerInStore) -> LayerEntry:
        """Put the blocks of a layer into the store, and name all that have pairs of its models."""
        keys = list(begun.known)
        for tile in begun.tiles:
            self._finish_tile(layer, tile, keys)
            keys.append(tile.key)
        models = set(begun.hashes[1:])
        used = [key.file_name for key in keys if key.has_pairs_of(models)]
        return LayerEntry(layer.tensor.name, layer.tensor.shape, tuple(begun.hashes), tuple(dict.fromkeys(used)))

    def _begin_tile(
        self, layer: Layer | FactoredLayer, hashes: list[str], tile: Tile, pool: ThreadPoolExecutor
    ) -> _MeasuredTile | _StoredTile:
        tensor, is_factorised = layer.tensor, self._is_factorised(layer)
        key = BlockKey.from_tile(tensor.name, tensor.shape, self._how, hashes, tile.rows, tile.columns)
        self.store.borrow(key.file_name)
        stored = self.store.get(key.file_name, is_factorised)
        split = len(tile.rows) if tile.columns else 0
        if stored is not None and (not is_factorised or tile.columns or self.store.has_bases(key)):
            coordinates = None
            if "coordinates" in self._measurement.extras and stored.coordinates is None:
                part = self._select(layer, tile.models)
                coordinates = self._measurement.begin_coordinates(part, pool, split)
            return _StoredTile(key, stored.has_spectra, stored.interference is not None, coordinates)
        part = self._select(layer, tile.models)
        rounding = part.rounding() if key.is_diagonal else None
        return _MeasuredTile(key, rounding, self._measurement.begin(part, part.zoo, pool, split=split), split)

    def _select(self, layer: Layer | FactoredLayer, models: tuple[int, ...]) -> Layer | FactoredLayer:
        """Return the layer of some of the models."""
        if models == tuple(range(len(layer.zoo.models))):
            return layer  # it may be held in memory
        return self._stream.select(models, layer.tensor)

    def _is_factorised(self, layer: Layer | FactoredLayer) -> bool:
        return self._measurement.with_spectrum and layer.tensor.is_matrix

    def _extras(self, layer: Layer | FactoredLayer) -> frozenset[str]:
        """Return what else the blocks of a layer have, where all of its models meet."""
        return self._measurement.extras if self._is_factorised(layer) else self._measurement.extras - {"interference"}

    def _known(self, layer: Layer | FactoredLayer, hashes: list[str]) -> tuple[list[BlockKey], list[int]]:
        """Return the keys of an earlier run's blocks that are of use, and the models all of whose pairs they have."""
        base, *models = hashes
        is_factorised = self._is_factorised(layer)
        keys = self.store.found(layer.tensor.name, base, self._how, is_factorised, self._extras(layer))
        known = _covered(models, keys)
        if not is_factorised or len(known) == len(models):
            return keys, known
        # New models meet the singular vectors of the known ones: those must be whole.
        whole = [key for key in keys if not key.is_diagonal or self.store.has_bases(key)]
        return whole, known if len(whole) == len(keys) else _covered(models, whole)

    def _finish_tile(
        self, layer: Layer | FactoredLayer, tile: _MeasuredTile | _StoredTile, before: Sequence[BlockKey]
    ) -> None:
        """Put the block of a tile into the store; `before` are the keys of its tensor's blocks that are there."""
        can_be_joined = self._is_factorised(layer) and (tile.key.is_diagonal or self._has_all_models)
        lacks_overlaps, lacks_interference = can_be_joined, can_be_joined and "interference" in self._extras(layer)
        if isinstance(tile, _StoredTile):
            lacks_overlaps &= not tile.has_spectra
            lacks_interference &= not tile.has_interference
            if not (lacks_overlaps or lacks_interference or tile.coordinates):
                return
            block = LayerBlock.read(self.store.path, tile.key.file_name)
            if tile.coordinates is not None:
                block = replace(block, coordinates=tile.coordinates())
                layer.zoo.check_unchanged()
        else:
            block = self._measured(layer, tile)
            lacks_overlaps &= not block.has_spectra
            lacks_interference &= block.interference is None
        keys = [*before, tile.key]
        if lacks_overlaps:
            block = with_overlaps(block, keys, self.store)
        self.store.put(with_interference(block, keys, self.store) if lacks_interference else block)

    def _measured(self, layer: Layer | FactoredLayer, tile: _MeasuredTile) -> LayerBlock:
        measured = tile.pending()
        layer.zoo.check_unchanged()  # or what was read is not what was hashed
        if tile.key.is_diagonal:
            return LayerBlock.from_layer(tile.key, measured.with_rounding(tile.rounding))
        pairs = slice(None, tile.split), slice(tile.split, None)
        coordinates = None if measured.coordinates is None else measured.coordinates.between(tile.split)
        return LayerBlock(tile.key, measured.inner[pairs], measured.squared_distance[pairs], coordinates=coordinates)


class ShareInStore(InStore):
    """A store that takes a share of the work; the other shares are measured elsewhere, and combined with it later.

    Args:
        items: the share.
        store, stream, measurement, block_size: as for `InStore`.
    """

    # The models of other blocks may be measured elsewhere.
    _has_all_models = False

    def __init__(
        self,
        items: Collection[Item],
        store: Store,
        stream: LayerStream,
        measurement: Measurement,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        super().__init__(store, stream, measurement, block_size)
        self._chosen: dict[int, list[int]] = {}
        for item in items:
            self._chosen.setdefault(item.tensor, []).append(item.tile)

    def wants(self, index: int) -> bool:
        """Tell whether the share has a tile of a tensor."""
        return index in self._chosen

    def begin(self, index: int, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor) -> _LayerInStore:
        """Begin the tiles of a layer that are in the share, and read no model that is in none of them."""
        count = len(layer.zoo.models)
        every = tiles([], range(count), self._block_size)
        chosen = [every[tile] for tile in self._chosen[index]]
        models = sorted({model for tile in chosen for model in tile.models})
        base, *read = self._measurement.hashes(layer, pool, models)
        by_model = dict(zip(models, read, strict=True))
        hashes = [base, *(by_model.get(model, "") for model in range(count))]
        return _LayerInStore(hashes, [], [self._begin_tile(layer, hashes, tile, pool) for tile in chosen])


def with_overlaps(block: LayerBlock, keys: Sequence[BlockKey], store: Store) -> LayerBlock:
    """Return a block of pairs with the overlaps of their subspaces, from the singular vectors of both sides.

    Args:
        block: pairs without overlaps.
        keys: keys of the blocks of the same tensor, among them the diagonal ones of all models.
        store: has the singular vectors.

    Raises:
        StatisticsError: singular vectors are missing or damaged.
    """
    sides = (store.bases(side, keys) for side in (block.key.rows, block.key.columns))
    overlap = dispatch.backends()[0].overlap
    undefined = np.full(block.inner.shape, np.nan)  # of bottom vectors, where a randomised factorisation gave none
    every = zip(*sides, strict=True)
    return block.with_overlaps(
        Overlaps(*(overlap(rows, columns) if rows.shape[2] else undefined for rows, columns in every))
    )


def with_interference(block: LayerBlock, keys: Sequence[BlockKey], store: Store) -> LayerBlock:
    """Return a block with the singular task interference of its pairs, from what the store has of their models.

    Args:
        block, keys, store: as for `with_overlaps`; the block may be a diagonal one.

    Raises:
        StatisticsError: singular values or vectors are missing or damaged.
    """
    triplets = (store.triplets(side, keys) for side in (block.key.rows, block.key.columns) if side)
    return replace(block, interference=dispatch.backends()[0].interference(*(triplets_of(*each) for each in triplets)))


def _covered(models: Sequence[str], keys: Sequence[BlockKey]) -> list[int]:
    """Return the positions of models all of whose pairs some blocks have."""
    coverage = Coverage(models)
    for key in keys:
        coverage.add(key)
    return coverage.known()
