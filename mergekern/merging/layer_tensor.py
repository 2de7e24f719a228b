"""A `WholeTensor` that is read of checkpoints, by the kernels of a route."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from mergekern.checkpoints import Layer, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.kernels.combine import Rule
from mergekern.merging.elementwise import mask_key
from mergekern.merging.route import Route
from mergekern.merging.whole_tensor import Block, WholeTensor


class LayerTensor(WholeTensor):
    """One tensor of some models of a zoo, read anew each time that it is gone through.

    Args:
        layer: the tensor of the base and of every model.
        zoo: the models.
        models: those that are merged, in the order in which they are seen.
        hashes: content hash of each of them.
        route: the kernels, and the place of the blocks.
        threads: how many the kernels may use; no result depends on it.
    """

    def __init__(
        self, layer: Layer, zoo: Zoo, models: Sequence[int], hashes: Sequence[str], route: Route, threads: int
    ) -> None:
        self._layer, self._zoo, self._models, self._hashes = layer, zoo, models, hashes
        self._route, self._threads = route, threads
        self.shape = layer.tensor.shape

    def gram(self, of_models: bool) -> np.ndarray:
        """See `WholeTensor`."""
        found = self._route.gram(self._layer, self._models, of_models, self._threads)
        if not np.isfinite(found).all():
            raise non_finite(self._layer, self._zoo)
        return found

    def blocks(self, of_rows: bool = False) -> Iterator[Block]:
        """See `WholeTensor`."""
        step = self.place(of_rows, self._route.block)
        shape = (-1, self.columns) if of_rows else (1, -1)
        for number, (base, tuned) in enumerate(self._route.ranges(self._layer, self._models, step)):
            block = Block(base.view(shape), [tensor.view(shape) for tensor in tuned], number * step)
            if not all(bool(tensor.isfinite().all()) for tensor in (block.base, *block.models)):
                raise non_finite(self._layer, self._zoo)
            yield block
            del base, tuned, block

    def combine(self, deltas: Sequence[torch.Tensor], rule: Rule, start: int = 0) -> torch.Tensor:
        """See `WholeTensor`."""
        flat = [delta.reshape(-1) for delta in deltas]
        return self._route.combine(None, flat, rule, torch.float64, start, self._threads)[0].view(deltas[0].shape)

    def mask_keys(self, seed: int) -> list[int]:
        """See `WholeTensor`."""
        return [mask_key(seed, self._layer.tensor.name, digest) for digest in self._hashes]

    def kth_largest(self, values: Callable[[Block], torch.Tensor], k: int, of_rows: bool = False) -> float:
        """See `WholeTensor`."""

        def computed() -> Iterator[tuple[None, list[torch.Tensor]]]:
            for block in self.blocks(of_rows):
                yield None, [values(block).reshape(-1)]

        return self._route.kth_largest_of(computed, math.prod(self.shape), k, self._threads)
