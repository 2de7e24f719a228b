"""Where merges are computed: what of merging depends on it, and the processor's way."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mergekern.checkpoints import Layer
from mergekern.kernels.combine import Rule, Tally
from mergekern.kernels.combine.on_cpu import combine
from mergekern.kernels.native import difference
from mergekern.kernels.trim.on_cpu import kth_largest
from mergekern.merging.matrices import ON_CPU, MatrixKernels

Block = tuple[torch.Tensor, list[torch.Tensor]]
Layers = Callable[[], Iterable[Layer]]


class Route(ABC):
    """The kernels of one device, and the way there and back; several threads use it at a time.

    Attributes:
        description: of the device; kept in the record of a merge.
        max_memory: bytes of weights held at a time; None for the default.
        kernels: for task matrices as `delta` gives them.
    """

    description: str
    max_memory: int | None
    kernels: MatrixKernels

    def on_this_thread(self) -> contextlib.AbstractContextManager[object]:
        """Let the calling thread have its own queue of work; what follows is called within."""
        return contextlib.nullcontext()

    @abstractmethod
    def blocks(self, layer: Layer, models: Sequence[int]) -> Iterator[Block]:
        """Yield (base, [tuned of each of the models]) as `Layer.blocks` does, where the kernels take them."""

    @abstractmethod
    def kth_largest(self, layers: Layers, models: Sequence[int], count: int, k: int, threads: int) -> list[float]:
        """Return the k-th largest magnitude, of `count` in all layers together, of each of the models."""

    @abstractmethod
    def combine(
        self, base: torch.Tensor, tuned: Sequence[torch.Tensor], rule: Rule, dtype: torch.dtype, start: int,
        threads: int,
    ) -> tuple[torch.Tensor, Tally]:  # fmt: skip
        """Return the merged elements, float32 or float64 where the kernels leave them, and the tally."""

    @abstractmethod
    def base(self, layer: Layer) -> torch.Tensor:
        """Return the whole base of a matrix, where `delta` gives task matrices."""

    @abstractmethod
    def delta(self, layer: Layer, model: int) -> Any:
        """Return the whole task matrix of a model, (m, n) float64, for `kernels`."""

    def fetched(self, values: torch.Tensor) -> torch.Tensor:
        """Return what the kernels gave, on the host."""
        return values


class CpuRoute(Route):
    """The kernels of the processor."""

    description = "cpu"
    kernels = ON_CPU

    def __init__(self, max_memory: int | None) -> None:
        self.max_memory = max_memory

    def blocks(self, layer: Layer, models: Sequence[int]) -> Iterator[Block]:
        """See `Route`."""
        for base, tuned in layer.blocks():
            yield base, [tuned[model] for model in models]
            del base, tuned

    def kth_largest(self, layers: Layers, models: Sequence[int], count: int, k: int, threads: int) -> list[float]:
        """See `Route`; one model after the other, of which no other is read."""
        return [kth_largest(partial(self._blocks_of, layers, model), count, k, threads) for model in models]

    def combine(
        self, base: torch.Tensor, tuned: Sequence[torch.Tensor], rule: Rule, dtype: torch.dtype, start: int,
        threads: int,
    ) -> tuple[torch.Tensor, Tally]:  # fmt: skip
        """See `Route`."""
        out = torch.empty(base.numel(), dtype=dtype)
        return out, combine(base, tuned, rule, out, start, threads)

    def base(self, layer: Layer) -> torch.Tensor:
        """See `Route`."""
        ((_, base, _),) = layer.matrix_blocks(0, 0, layer.tensor.shape[0])
        return base

    def delta(self, layer: Layer, model: int) -> np.ndarray:
        """See `Route`."""
        out = np.empty(layer.tensor.shape)
        for start, base, tuned in layer.matrix_blocks(model, 0, len(out)):
            difference(base, tuned, out[start : start + len(base)])
        return out

    def _blocks_of(self, layers: Layers, model: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for layer in layers():
            yield from layer.blocks_of(model)
