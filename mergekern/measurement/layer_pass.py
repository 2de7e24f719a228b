"""The pass over the layers of a zoo: read once, measured, and handed to a destination."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic

from mergekern.checkpoints import FactoredLayer, Layer, LayerStream
from mergekern.kernels import lapack
from mergekern.measurement import Measurement
from mergekern.measurement.destinations import Begun, Destination
from mergekern.progress import Progress
from mergekern.statistics.manifest import LayerEntry


@dataclass(frozen=True)
class _LayerInFlight(Generic[Begun]):
    """A layer that was begun and is not finished yet, and its position in the zoo."""

    position: int
    layer: Layer | FactoredLayer
    begun: Future[Begun]


class LayerPass(Generic[Begun]):
    """One pass over the layers of a zoo.

    A thread of its own reads ahead: it pages a layer in, hashes it, measures its Gram (work bound by memory) and queues
    its factorisations (bound by arithmetic), while the pool factorises the layers before it.

    Args:
        stream: the zoo, and the budget of memory.
        measurement: how a layer is measured.
        destination: where the statistics go; it may already have some of them.
        progress: called with a `Progress` at the start of every tensor.

    Attributes:
        entries: what the manifest says of each tensor, in file order; complete after `run`.
    """

    def __init__(
        self,
        stream: LayerStream,
        measurement: Measurement,
        destination: Destination[Begun],
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.zoo, self.stream, self.measurement, self.destination = stream.zoo, stream, measurement, destination
        self.entries: tuple[LayerEntry, ...] = ()
        self._progress, self._start = progress, time.perf_counter()
        self._sizes = [self.zoo.nbytes(tensor) for tensor in self.zoo.tensors]
        self._done = 0

    def report(self, tensor: str, activity: str = "") -> None:
        """Tell how far the work is."""
        if self._progress is not None:
            sizes, done = self._sizes, self._done
            seconds = time.perf_counter() - self._start
            self._progress(Progress(tensor, done, len(sizes), sum(sizes[:done]), sum(sizes), seconds, activity))

    def run(self) -> None:
        """Measure every layer that the destination wants.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values.
            CheckpointError: a file was changed meanwhile.
            OutputError: the destination cannot be written.
        """
        entries: dict[int, LayerEntry] = {}
        ahead: deque[_LayerInFlight[Begun]] = deque()
        with (
            contextlib.closing(self.measurement),
            lapack.single_threaded_pool(self.measurement.threads) as pool,
            _reader() as reader,
        ):
            for index, layer in enumerate(self.stream.with_factors()):
                if not self.destination.wants(index):
                    entries[index] = _unread(layer, len(self.zoo.checkpoints))
                    continue
                while ahead and not self._fits_beside(layer, ahead):
                    self._finish_first(ahead, entries)
                begun = reader.submit(self.destination.begin, index, layer, pool)
                ahead.append(_LayerInFlight(index, layer, begun))
            while ahead:
                self._finish_first(ahead, entries)
        self.zoo.check_unchanged()  # or some tensors are of one file and some of another
        self.entries = tuple(entries[index] for index in sorted(entries))
        self._done = len(self._sizes)

    def _fits_beside(self, layer: Layer | FactoredLayer, ahead: deque[_LayerInFlight[Begun]]) -> bool:
        layers = [layer, *(other.layer for other in ahead)]
        return self.stream.hold_together(layers, self.measurement.layers_ahead)

    def _finish_first(self, ahead: deque[_LayerInFlight[Begun]], entries: dict[int, LayerEntry]) -> None:
        if self.measurement.in_batches:
            ahead[-1].begun.result()  # a batch is as large as it can be
        first = ahead.popleft()
        self._done = first.position
        self.report(first.layer.tensor.name)
        entries[first.position] = self.destination.finish(first.layer, first.begun.result())
        first.layer.release()


def _unread(layer: Layer | FactoredLayer, checkpoints: int) -> LayerEntry:
    """Return the entry of a tensor that is left to others."""
    return LayerEntry(layer.tensor.name, layer.tensor.shape, ("",) * checkpoints, ())


@contextlib.contextmanager
def _reader() -> Iterator[ThreadPoolExecutor]:
    reader = ThreadPoolExecutor(1, thread_name_prefix="mergekern-reader")
    try:
        yield reader
    finally:
        reader.shutdown(cancel_futures=True)
