"""The pass over the tensors of a zoo in which merges are made, each tensor read once for all of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch

from mergekern.checkpoints import Layer, LayerStream
from mergekern.kernels import lapack
from mergekern.merging.group_merge import GroupMerge, prepare_whole_models
from mergekern.merging.route import Route
from mergekern.merging.shared_layer import SharedLayer
from mergekern.progress import Progress


class MergePass:
    """One pass over the tensors of a zoo, which are merged side by side in a pool, as the memory budget allows.

    Args:
        stream: the tensors of the base and of all models.
        merges: made of every tensor.
        route: the kernels that merge them.
        progress: called at the start of every tensor and at the end.
    """

    def __init__(
        self, stream: LayerStream, merges: Sequence[GroupMerge], route: Route,
        progress: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        self._stream, self._merges, self._route, self._progress = stream, merges, route, progress
        self._threads = torch.get_num_threads()
        self._start = time.perf_counter()
        self._sizes = [stream.zoo.nbytes(tensor) for tensor in stream.zoo.tensors]
        self._done = 0
        self._in_flight: deque[tuple[Layer, Future[None]]] = deque()

    def run(self) -> None:
        """Merge every tensor by every merge.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values.
            OptionError: merged values are beyond the range of float16, the dtype of the result.
            CheckpointError: a checkpoint was changed meanwhile.
        """
        with self._route.on_this_thread():
            prepare_whole_models(self._merges, self._stream, self._route, self._threads)
        with lapack.single_threaded_pool(self._threads) as pool:
            for layer in self._stream:
                while self._in_flight and not self._fits(layer):
                    self._finish_first()
                self._in_flight.append((layer, pool.submit(self._merge, layer)))
            while self._in_flight:
                self._finish_first()
        for merge in self._merges:
            merge.average_counters()
        self._stream.zoo.check_unchanged()  # or some tensors are of one file and some of another
        self._report("")

    def _fits(self, layer: Layer) -> bool:
        """Tell whether a tensor may be held beside those in flight."""
        return self._stream.hold_together([layer, *(other for other, _ in self._in_flight)], 2 * self._threads)

    def _merge(self, layer: Layer) -> None:
        budget = self._stream.max_memory
        # A tensor that has the budget to itself gets all threads.
        threads = self._threads if 2 * layer.nbytes > budget else 1
        kept = budget // self._threads if len(self._merges) > 1 else 0
        with self._route.on_this_thread():
            shared = SharedLayer(layer, self._stream.zoo, self._route, threads, kept)
            for merge in self._merges:
                merge.merge(shared)

    def _finish_first(self) -> None:
        layer, future = self._in_flight.popleft()
        self._report(layer.tensor.name)
        future.result()
        layer.release()
        self._done += 1

    def _report(self, tensor: str) -> None:
        if self._progress is not None:
            sizes, done = self._sizes, self._done
            seconds = time.perf_counter() - self._start
            self._progress(Progress(tensor, done, len(sizes), sum(sizes[:done]), sum(sizes), seconds))
