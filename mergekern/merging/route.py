"""Routes: the kernels of the processor or a device that merge tensors, and the way of the tensors there and back."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mergekern.checkpoints import Layer
from mergekern.kernels.combine import Rule, Tally
from mergekern.kernels.trim import ModelBlocks
from mergekern.merging.matrices import MatrixKernels

Block = tuple[torch.Tensor, list[torch.Tensor]]
Layers = Callable[[], Iterable[Layer]]


class Route(ABC):
    """The kernels of one device, and the way there and back; several threads use it at a time.

    Attributes:
        description: names the device in the record of a merge.
        max_memory: bytes of weights held at a time; None for the default.
        kernels: take task matrices as `delta` returns them.
        block: elements of a block of `WholeTensor`.
    """

    description: str
    max_memory: int | None
    kernels: MatrixKernels
    block: int

    def on_this_thread(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the calling thread has its own queue of work; all else is called within."""
        return contextlib.nullcontext()

    @abstractmethod
    def blocks(self, layer: Layer, models: Sequence[int]) -> Iterator[Block]:
        """Yield (base, [tuned of each model]) as `Layer.blocks` does, in the memory that the kernels read."""

    @abstractmethod
    def kth_largest(self, layers: Layers, models: Sequence[int], count: int, k: int, threads: int) -> list[float]:
        """Return the k-th largest magnitude of each model's task vector over all layers, `count` elements."""

    @abstractmethod
    def ranges(self, layer: Layer, models: Sequence[int], step: int) -> Iterator[Block]:
        """Yield (base, [tuned of each model]) over ranges of `step` elements, whatever the budget of memory."""

    @abstractmethod
    def gram(self, layer: Layer, models: Sequence[int], of_models: bool, threads: int) -> np.ndarray:
        """Return the inner products of the task vectors, or of the models themselves, (N, N) float64."""

    @abstractmethod
    def kth_largest_of(self, blocks: ModelBlocks, count: int, k: int, threads: int) -> float:
        """Return the k-th largest magnitude of `count` values: blocks (None, [values]) where `ranges` are."""

    @abstractmethod
    def combine(
        self, base: torch.Tensor | None, tuned: Sequence[torch.Tensor], rule: Rule, dtype: torch.dtype, start: int,
        threads: int,
    ) -> tuple[torch.Tensor, Tally]:  # fmt: skip
        """Return the merged elements in a dtype, float32 or float64, where the kernels leave them; and the tally.

        A base of None stands for zero.
        """

    @abstractmethod
    def base(self, layer: Layer) -> torch.Tensor:
        """Return the whole base of a matrix, in the memory where `delta` returns task matrices."""

    @abstractmethod
    def delta(self, layer: Layer, model: int) -> Any:
        """Return the whole task matrix of a model, (m, n) float64, for `kernels`."""

    @abstractmethod
    def variances(self, base: torch.Tensor, tuned: Sequence[torch.Tensor], threads: int) -> torch.Tensor:
        """Return the variances of the elements over the models, (D,) float64; see `mergekern.kernels.variation`."""

    @abstractmethod
    def energies(self, base: torch.Tensor, tuned: Sequence[torch.Tensor], least: float, threads: int) -> np.ndarray:
        """Return the energies of what varies, (N,) float64; see `mergekern.kernels.variation`."""

    @abstractmethod
    def changes(self, base: torch.Tensor, tuned: Sequence[torch.Tensor], epsilon: float, threads: int) -> np.ndarray:
        """Return the counts of changed elements, (2, N) int64; see `mergekern.kernels.variation`."""

    def fetched(self, values: torch.Tensor) -> torch.Tensor:
        """Return results of the kernels in the memory of the host."""
        return values
