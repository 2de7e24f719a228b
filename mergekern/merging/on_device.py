"""Merging on a GPU: layers side by side, on streams of their own.

Every thread of the pool has a layer and a stream: it hashes the layer, sends it through the pinned buffers that all
threads share, queues the kernels, and waits for its own results, while the layers of other threads are on their way.
What is merged element by element has the bits of the processor; matrices are merged by products in float64, whose last
bits are those of the device's libraries.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mergekern.checkpoints import Layer
from mergekern.kernels.combine import Rule, Tally
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.transfer import Uploader, fetched, on_stream
from mergekern.kernels.trim import ModelBlocks
from mergekern.kernels.variation import on_torch as variation
from mergekern.merging.matrices import ON_TORCH
from mergekern.merging.route import Block, Layers, Route

# Share of the free memory of the device that weights may take; task matrices, results and fragments need the rest.
SHARE_OF_WEIGHTS = 0.4
# Elements of a block of `WholeTensor`: enough to fill the device.
BLOCK = 1 << 22


class DeviceRoute(Route):
    """The kernels of a device; see `Route`.

    Args:
        backend: the kernels and their device.
        max_memory: bytes of weights held at a time on the device; by default a share of its free memory.
    """

    kernels = ON_TORCH
    block = BLOCK

    def __init__(self, backend: DeviceBackend, max_memory: int | None) -> None:
        self.backend, self.device = backend, backend.device
        self.description = backend.description
        self.max_memory = int(SHARE_OF_WEIGHTS * backend.free_memory()) if max_memory is None else max_memory
        self._uploader = Uploader(backend.device)
        self._copiers = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="mergekern-copier")
        # Neither the upload buffers nor the compilers of kernels are thread-safe. Nothing that waits holds these locks.
        self._uploading, self._launching = threading.Lock(), threading.Lock()
        self._resident: weakref.WeakKeyDictionary[Layer, list[torch.Tensor]] = weakref.WeakKeyDictionary()
        self._streams = threading.local()
        self._given: torch.cuda.Event | None = None
        if self.device.type == "cuda":
            # The caller's own work may still be writing weights that are on the device already.
            self._given = torch.cuda.current_stream(self.device).record_event()
            # Several threads must not load torch's libraries for matrices at a time.
            torch.linalg.eigh(torch.eye(2, dtype=torch.float64, device=self.device))

    @contextlib.contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """See `Route`; errors about memory tell what to do."""
        if self._given is not None and not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self.device)
            self._streams.own.wait_event(self._given)
        with self.backend.explaining_memory(), on_stream(getattr(self._streams, "own", None)):
            yield

    def blocks(self, layer: Layer, models: Sequence[int]) -> Iterator[Block]:
        """See `Route`; a layer that is not split is sent once."""
        if not layer.is_split:
            base, *tuned = (tensor.reshape(-1) for tensor in self._whole(layer))
            yield base, [tuned[model] for model in models]
            return
        for base, tuned in layer.blocks():
            sent = self._sent([base, *(tuned[model] for model in models)])
            del base, tuned
            yield sent[0], sent[1:]
            del sent

    def kth_largest(self, layers: Layers, models: Sequence[int], count: int, k: int, threads: int) -> list[float]:
        """See `Route`; all models together."""

        def blocks() -> Iterator[Block]:
            for layer in layers():
                yield from self.blocks(layer, models)

        with self._launching:
            found = self.backend.kth_largest(blocks, len(models), count, k)
        return found.tolist()

    def ranges(self, layer: Layer, models: Sequence[int], step: int) -> Iterator[Block]:
        """See `Route`."""
        if not layer.is_split:
            base, *tuned = (tensor.reshape(-1) for tensor in self._whole(layer))
            for start in range(0, base.numel(), step):
                yield base[start : start + step], [tuned[model][start : start + step] for model in models]
            return
        for base, tuned in layer.ranges(step):
            sent = self._sent([base, *(tuned[model] for model in models)])
            del base, tuned
            yield sent[0], sent[1:]
            del sent

    def gram(self, layer: Layer, models: Sequence[int], of_models: bool, threads: int) -> np.ndarray:
        """See `Route`."""
        found = torch.zeros((len(models),) * 2, dtype=torch.float64, device=self.device)
        for base, tuned in self.ranges(layer, models, self.block):
            with self._launching:
                found += self.backend.inner_products([[None if of_models else base, *tuned]])[0]
        return found.cpu().numpy()

    def kth_largest_of(self, blocks: ModelBlocks, count: int, k: int, threads: int) -> float:
        """See `Route`."""
        with self._launching:
            return float(self.backend.kth_largest(blocks, 1, count, k))

    def combine(
        self, base: torch.Tensor | None, tuned: Sequence[torch.Tensor], rule: Rule, dtype: torch.dtype, start: int,
        threads: int,
    ) -> tuple[torch.Tensor, Tally]:  # fmt: skip
        """See `Route`."""
        out = torch.empty(tuned[0].numel(), dtype=dtype, device=self.device)
        with self._launching:
            tally = self.backend.combine(base, tuned, rule, out, start)
        return out, Tally(*tally.tolist())

    def variances(self, base: torch.Tensor, tuned: Sequence[torch.Tensor], threads: int) -> torch.Tensor:
        """See `Route`."""
        return variation.variances(base, tuned)

    def energies(self, base: torch.Tensor, tuned: Sequence[torch.Tensor], least: float, threads: int) -> np.ndarray:
        """See `Route`."""
        return variation.energies(base, tuned, least)

    def changes(self, base: torch.Tensor, tuned: Sequence[torch.Tensor], epsilon: float, threads: int) -> np.ndarray:
        """See `Route`."""
        return variation.changes(base, tuned, epsilon)

    def base(self, layer: Layer) -> torch.Tensor:
        """See `Route`."""
        return self._pair(layer, 0)[0]

    def delta(self, layer: Layer, model: int) -> torch.Tensor:
        """See `Route`."""
        base, tuned = self._pair(layer, model)
        return tuned.double() - base.double()

    def fetched(self, values: torch.Tensor) -> torch.Tensor:
        """See `Route`."""
        return fetched(values)

    def _pair(self, layer: Layer, model: int) -> Sequence[torch.Tensor]:
        """Return base and tuned of a matrix; one pair is held whole, even if it is larger than the budget."""
        if not layer.is_split:
            whole = self._whole(layer)
            return whole[0], whole[1 + model]
        ((_, base, tuned),) = layer.matrix_blocks(model, 0, layer.tensor.shape[0])
        return self._sent([base, tuned])

    def _whole(self, layer: Layer) -> list[torch.Tensor]:
        """Return the tensors of a layer on the device, where they stay while it is in use; the host frees them."""
        if layer not in self._resident:
            self._resident[layer] = self._sent(layer.tensors(self.device))
            layer.release()
        return self._resident[layer]

    def _sent(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return tensors on the device, for the stream of this thread."""
        with self._uploading:
            there = self._uploader.upload(tensors, self._copiers)
            if self._uploader.stream is not None:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_stream(self._uploader.stream)
                for tensor in there:
                    tensor.record_stream(stream)
            return there
