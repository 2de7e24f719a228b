"""One pass over the tensors of a zoo: from the layer stream to statistics."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import xxhash

from mergekern._internal.versions import package_version
from mergekern.checkpoints import FactoredLayer, Layer, LayerStream
from mergekern.functional.plan import Probes
from mergekern.kernels import dispatch, lapack
from mergekern.measurement import Measurement
from mergekern.measurement.tiles import BLOCK_SIZE, Item, Tile, tiles
from mergekern.progress import Progress
from mergekern.statistics import FunctionalStatistics, LayerStatistics
from mergekern.statistics.assembly import Coverage
from mergekern.statistics.keys import BlockKey
from mergekern.statistics.layer_block import LayerBlock, Overlaps
from mergekern.statistics.manifest import LayerEntry
from mergekern.statistics.store import Store


@dataclass
class _Part:
    """A tile in flight: begun to be measured, or in the store, with its overlaps or still without."""

    of: BlockKey
    begun: Any = None
    split: int = 0
    is_there: bool = False
    has_spectra: bool = False


@dataclass
class _Begun:
    """A layer in flight: hashed, with what the store had of its pairs and what is being measured of the others."""

    hashes: list[str]
    blocks: list[BlockKey] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)


class Run:
    """One pass over the layers of a zoo.

    A thread of its own reads ahead: it pages a layer in, hashes it, measures its Gram (work bound by memory) and queues
    its factorisations (bound by arithmetic), while the pool factorises the layers before it.

    Args:
        stream: the zoo, and the budget.
        measurement: how it is measured.
        store: where statistics are kept; without one they are held in memory.
        items: the share of the work that is done, which needs a store; by default all.
        block_size: models that are measured together, where there is a store.
        progress: called as `compute_all` says.

    Attributes:
        layers: statistics of every tensor, where there is no store.
    """

    def __init__(
        self,
        stream: LayerStream,
        measurement: Measurement,
        store: Store | None = None,
        items: Collection[Item] | None = None,
        block_size: int = BLOCK_SIZE,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.zoo, self.stream, self.measurement, self.store = stream.zoo, stream, measurement, store
        self.items, self.block_size = items, block_size
        self.how = how_measured(measurement)
        self._progress, self._start = progress, time.perf_counter()
        self._sizes = [self.zoo.nbytes(tensor) for tensor in self.zoo.tensors]
        self._done = 0
        self.layers: list[LayerStatistics] = []
        self._entries: dict[int, LayerEntry] = {}

    @property
    def entries(self) -> tuple[LayerEntry, ...]:
        """One of every tensor, in file order; without hashes and blocks for those that were left to others."""
        return tuple(self._entries[index] for index in sorted(self._entries))

    def report(self, tensor: str, probe: str = "") -> None:
        """Tell how far the run is."""
        if self._progress is not None:
            sizes, done = self._sizes, self._done
            seconds = time.perf_counter() - self._start
            self._progress(Progress(tensor, done, len(sizes), sum(sizes[:done]), sum(sizes), seconds, probe))

    def measure(self) -> None:
        """Measure every layer.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values.
            CheckpointError: a file was changed meanwhile.
            OutputError: the store cannot be written.
        """
        most = self.measurement.layers_ahead
        ahead: deque[tuple[int, Layer | FactoredLayer, Future[_Begun]]] = deque()

        def finish_first() -> None:
            if self.measurement.in_batches:
                ahead[-1][2].result()  # a batch is as large as it can be
            self._done, layer, begun = ahead.popleft()
            self.report(layer.tensor.name)
            self._finish(self._done, layer, begun.result())
            layer.release()

        with lapack.single_threaded_pool(self.measurement.threads) as pool, _reader() as reader:
            for index, layer in enumerate(self.stream.with_factors()):
                chosen = None if self.items is None else [i.tile for i in self.items if i.tensor == index]
                if chosen == []:
                    self._enter(index, layer, [""] * len(self.zoo.checkpoints), ())
                    continue
                while ahead and not self.stream.hold_together([layer, *(other for _, other, _ in ahead)], most):
                    finish_first()
                ahead.append((index, layer, reader.submit(self._begin, layer, chosen, pool)))
            while ahead:
                finish_first()
        self.zoo.check_unchanged()  # or some tensors are of one file and some of another
        self._done = len(self._sizes)

    def probe(self, probes: Probes | None) -> tuple[FunctionalStatistics, dict[str, str]]:
        """Run the models, if they are to be; return what that gave, and the keys of its blocks in the store."""
        if probes is None:
            return FunctionalStatistics(), {}
        measurement, how = self.measurement, [package_version("mergekern")]
        found, keys = probes.measure(
            measurement.backend, measurement.threads, self.stream.max_memory, self.store, how,
            lambda what: self.report("", what),
        )  # fmt: skip
        return found, {kind: keys[kind] for kind in found.kinds if kind in keys}

    def _begin(self, layer: Layer | FactoredLayer, chosen: list[int] | None, pool: ThreadPoolExecutor) -> _Begun:
        count = len(self.zoo.models)
        if self.store is None:
            hashes = self.measurement.hashes(layer, pool)
            of = self._of(layer, hashes, Tile(tuple(range(count))))
            return _Begun(hashes, parts=[_Part(of, self.measurement.begin(layer, self.zoo, pool))])
        if chosen is not None:
            return self._begin_share(layer, chosen, pool)
        begun = _Begun(self.measurement.hashes(layer, pool))
        begun.blocks, known = self._known(layer, begun.hashes)
        new = sorted(set(range(count)) - set(known))
        begun.parts = [self._begin_tile(layer, begun.hashes, tile, pool) for tile in tiles(known, new, self.block_size)]
        return begun

    def _begin_share(self, layer: Layer | FactoredLayer, chosen: list[int], pool: ThreadPoolExecutor) -> _Begun:
        """Begin some of the tiles of a layer, and read no model that is in none of them."""
        count = len(self.zoo.models)
        every = tiles([], range(count), self.block_size)
        models = sorted({model for index in chosen for model in every[index].models})
        base, *hashes = self.measurement.hashes(layer, pool, models)
        known = dict(zip(models, hashes, strict=True))
        begun = _Begun([base, *(known.get(model, "") for model in range(count))])
        begun.parts = [self._begin_tile(layer, begun.hashes, every[index], pool) for index in chosen]
        return begun

    def _begin_tile(
        self, layer: Layer | FactoredLayer, hashes: list[str], tile: Tile, pool: ThreadPoolExecutor
    ) -> _Part:
        assert self.store is not None
        of = self._of(layer, hashes, tile)
        self.store.borrow(of.file_name)
        found = self.store.get(of.file_name, self._is_factorised(layer))
        if found is not None and (not self._is_factorised(layer) or tile.columns or self.store.has_bases(of)):
            return _Part(of, is_there=True, has_spectra=found.has_spectra)
        part = self._of_models(layer, tile.models)
        split = len(tile.rows) if tile.columns else 0
        return _Part(of, self.measurement.begin(part, part.zoo, pool, split=split), split)

    def _of_models(self, layer: Layer | FactoredLayer, models: tuple[int, ...]) -> Layer | FactoredLayer:
        if models == tuple(range(len(self.zoo.models))):
            return layer  # it may be held in memory
        return self.stream.of(models, layer.tensor)

    def _of(self, layer: Layer | FactoredLayer, hashes: list[str], tile: Tile) -> BlockKey:
        return BlockKey.from_tile(layer.tensor.name, layer.tensor.shape, self.how, hashes, tile.rows, tile.columns)

    def _is_factorised(self, layer: Layer | FactoredLayer) -> bool:
        return self.measurement.with_spectrum and layer.tensor.is_matrix

    def _known(self, layer: Layer | FactoredLayer, hashes: list[str]) -> tuple[list[BlockKey], list[int]]:
        """Return the blocks of an earlier run that are of use, and the models all of whose pairs they have."""
        assert self.store is not None
        base, *models = hashes
        with_spectrum = self._is_factorised(layer)
        blocks = self.store.found(layer.tensor.name, base, self.how, with_spectrum)
        coverage = Coverage(models)
        for block in blocks:
            coverage.add(block)
        known = coverage.known()
        if not with_spectrum or len(known) == len(models):
            return blocks, known
        # New models meet the singular vectors of the known ones: those must be whole.
        whole = [of for of in blocks if not of.is_diagonal or self.store.has_bases(of)]
        if len(whole) < len(blocks):
            coverage = Coverage(models)
            for block in whole:
                coverage.add(block)
        return whole, coverage.known()

    def _finish(self, index: int, layer: Layer | FactoredLayer, begun: _Begun) -> None:
        if self.store is None:
            (part,) = begun.parts
            self.layers.append(self.measurement.finish(part.begun).without_bases())
            self._enter(index, layer, begun.hashes, ())
            return
        blocks = begun.blocks
        for part in begun.parts:
            self._finish_part(part, blocks)
            blocks.append(part.of)
        models = set(begun.hashes[1:])
        used = [of.file_name for of in blocks if of.has_pairs_of(models)]
        self._enter(index, layer, begun.hashes, used)

    def _enter(self, index: int, layer: Layer | FactoredLayer, hashes: Sequence[str], blocks: Iterable[str]) -> None:
        name, shape = layer.tensor.name, layer.tensor.shape
        self._entries[index] = LayerEntry(name, shape, tuple(hashes), tuple(dict.fromkeys(blocks)))

    def _finish_part(self, part: _Part, before: list[BlockKey]) -> None:
        """Put the block of a tile into the store; `before` are those of the same tensor that are there."""
        assert self.store is not None
        needs_overlaps = self.measurement.with_spectrum and len(part.of.shape) == 2
        # Of a share, the models of other blocks may be measured elsewhere.
        joins = needs_overlaps and not part.of.is_diagonal and self.items is None
        if part.is_there and (part.has_spectra or not joins):
            return
        block = LayerBlock.read(self.store.path, part.of.file_name) if part.is_there else self._measured(part)
        self.store.put(join(block, before, self.store) if joins else block)

    def _measured(self, part: _Part) -> LayerBlock:
        measured = self.measurement.finish(part.begun)
        self.zoo.check_unchanged()  # or what was read is not what was hashed
        if part.of.is_diagonal:
            return LayerBlock.from_layer(part.of, measured)
        pairs = slice(None, part.split), slice(part.split, None)
        return LayerBlock(part.of, measured.inner[pairs], measured.squared_distance[pairs])


def join(block: LayerBlock, blocks: Sequence[BlockKey], store: Store) -> LayerBlock:
    """Return a block of pairs with the overlaps of their subspaces, from the singular vectors of both sides.

    Args:
        block: of pairs.
        blocks: what those of the same tensor are of, among them the diagonal ones of all models.
        store: has the singular vectors.

    Raises:
        StatisticsError: singular vectors are missing or damaged.
    """
    sides = (store.bases(side, blocks) for side in (block.key.rows, block.key.columns))
    overlap = dispatch.backends()[0].overlap
    return block.with_overlaps(Overlaps(*(overlap(*both) for both in zip(*sides, strict=True))))


def how_measured(measurement: Measurement) -> str:
    """Return what the values of a block depend on beside the weights."""
    return json.dumps([package_version("mergekern"), measurement.name, measurement.top_k, measurement.spectrum_k])


def content_hashes(models: Sequence[str], entries: Sequence[LayerEntry]) -> dict[str, str]:
    """Return a hash of all tensors of the base and of each model, from those of each tensor.

    Args:
        models: their names.
        entries: of every tensor, in file order.
    """
    hashers = [xxhash.xxh3_128() for _ in ("base", *models)]
    for entry in entries:
        for hasher, digest in zip(hashers, entry.hashes, strict=True):
            hasher.update(f"{entry.name}\0{digest}\0".encode())
    return {n: f"xxh3_128:{h.hexdigest()}" for n, h in zip(("base", *models), hashers, strict=True)}


@contextlib.contextmanager
def _reader() -> Iterator[ThreadPoolExecutor]:
    reader = ThreadPoolExecutor(1, thread_name_prefix="mergekern-reader")
    try:
        yield reader
    finally:
        reader.shutdown(cancel_futures=True)
