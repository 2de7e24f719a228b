"""A `WholeTensor` that is read of checkpoints, by the kernels of a route."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from mergekern.checkpoints import Layer, Zoo
from mergekern.checkpoints.stream import SEGMENT, non_finite
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
            if not all(map(_is_finite, (block.base, *block.models))):
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

    def kth_largest(
        self, values: Callable[[Block], torch.Tensor], ranks: Sequence[int], of_rows: bool = False
    ) -> list[float]:
        """See `WholeTensor`; the values are computed once where the tensor is held whole."""
        found = self._kept(lambda: (values(block).reshape(-1) for block in self.blocks(of_rows)))
        return [self._kth_largest_of(found, k) for k in ranks]

    def least_variance(self, share: float) -> float:
        """See `WholeTensor`."""

        def variances() -> Iterator[torch.Tensor]:
            for base, tuned in self._route.ranges(self._layer, self._models, self._step):
                found = self._route.variances(base, tuned, self._threads)
                if not _is_finite(found):
                    raise non_finite(self._layer, self._zoo)
                yield found

        found = self._kept(variances)
        k = int(share * sum(int(part.count_nonzero()) for part in found()))
        return self._kth_largest_of(found, k) if k else math.inf

    def energies(self, least: float) -> np.ndarray:
        """See `WholeTensor`; sums over segments, so that a budget changes no bit."""
        found = np.zeros(len(self._models))
        for base, tuned in self._route.ranges(self._layer, self._models, self._step):
            found += self._route.energies(base, tuned, least, self._threads)
        return found

    def changes(self, epsilon: float) -> np.ndarray:
        """See `WholeTensor`."""
        found = np.zeros((2, len(self._models)), dtype=np.int64)
        for base, tuned in self._route.ranges(self._layer, self._models, self._step):
            found += self._route.changes(base, tuned, epsilon, self._threads)
        return found

    @property
    def _step(self) -> int:
        """Elements that the kernels take at a time: those over which they sum on the processor, more on a device."""
        return max(SEGMENT, self._route.block)

    def _kept(self, parts: Callable[[], Iterator[torch.Tensor]]) -> Callable[[], Iterator[torch.Tensor]]:
        """Return what yields the parts of values computed of the tensor, all at once if it is held whole."""
        if self._layer.is_split:
            return parts
        whole = torch.cat(list(parts()))
        return lambda: iter([whole])

    def _kth_largest_of(self, parts: Callable[[], Iterator[torch.Tensor]], k: int) -> float:
        blocks = partial(_without_base, parts)
        return self._route.kth_largest_of(blocks, math.prod(self.shape), k, self._threads)


def _without_base(parts: Callable[[], Iterator[torch.Tensor]]) -> Iterator[tuple[None, list[torch.Tensor]]]:
    for part in parts():
        yield None, [part]


def _is_finite(values: torch.Tensor) -> bool:
    """Tell whether all values are finite. A finite sum of them says so, in a tenth of the time."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
