"""Measuring single coordinates of a tensor of all models, on the CPU: which are trimmed away, and where signs agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from mergekern.checkpoints import FactoredLayer, Layer
from mergekern.kernels import lapack
from mergekern.kernels.native import difference
from mergekern.kernels.signs import Signs
from mergekern.kernels.trim.on_cpu import kth_largest
from mergekern.statistics.coordinates import CoordinateStatistics, kept, zero_coordinates

# Elements of a range of a tensor whose task vectors are multiplied from factors: 1 MiB of float64 for each model.
FACTORED_ELEMENTS = 1 << 17

Pairs = tuple[torch.Tensor | None, torch.Tensor]


def coordinate_statistics(
    layer: Layer | FactoredLayer, signs: Callable[..., Signs], threads: int, split: int = 0
) -> CoordinateStatistics:
    """Return the statistics of the coordinates of one tensor.

    Args:
        layer: the tensor of all models.
        signs: the kernel `signs` of a backend.
        threads: number of threads of the kernels.
        split: see `Measurement.begin`.
    """
    models, count = len(layer.zoo.models), math.prod(layer.tensor.shape)
    if not count:
        return zero_coordinates(models)
    reader = _Products(layer) if isinstance(layer, FactoredLayer) else layer
    thresholds = [kth_largest(partial(_flat, reader, model), count, kept(count), threads) for model in range(models)]
    found = CoordinateStatistics(*signs(reader.blocks, thresholds, threads, split))
    # Infinities that every model has as the base has them, in a causal mask for example: others are refused before.
    return found if np.isfinite(found.absolute).all() else zero_coordinates(models)


def _flat(reader: Layer | _Products, model: int) -> Iterable[Pairs]:
    return reader.blocks_of(model)


class _Products:
    """The task vectors of a tensor of which some models hold factors, multiplied range by range, in float64."""

    def __init__(self, layer: FactoredLayer) -> None:
        self._layer = layer
        shape = layer.tensor.shape
        self._rows, self._columns = math.prod(shape[:1]), math.prod(shape[1:])
        self._step = max(1, FACTORED_ELEMENTS // self._columns)  # whole rows

    def blocks(self) -> Iterator[tuple[None, Sequence[torch.Tensor]]]:
        """Yield (None, [τ_0, …]) over ranges of the flattened tensor; see `Layer.blocks`."""
        for parts in zip(*map(self._ranges, range(len(self._layer.zoo.models))), strict=True):
            yield None, parts

    def blocks_of(self, model: int) -> Iterator[Pairs]:
        """Yield (None, τ) of one model over the same ranges."""
        for part in self._ranges(model):
            yield None, part

    def _ranges(self, model: int) -> Iterator[torch.Tensor]:
        """Yield a task vector, `_step` rows at a time; zeros of a model that has the tensor as the base has it."""
        layer = self._layer
        if model in layer.whole:
            assert layer.stored is not None
            for _, base, tuned in layer.stored.matrix_blocks(layer.whole.index(model), 0, self._step):
                delta = np.empty(tuned.shape)
                difference(base, tuned, delta)
                yield torch.from_numpy(delta).reshape(-1)
            return
        for start in range(0, self._rows, self._step):
            stop = min(start + self._step, self._rows)
            if model in layer.factored:
                left, right, scale = layer.factors(model)
                rows = np.ascontiguousarray(left[start:stop].double().numpy() * scale)
                product = lapack.multiply(rows, np.ascontiguousarray(right.double().numpy()))
                yield torch.from_numpy(product).reshape(-1)
            else:
                yield torch.zeros((stop - start) * self._columns, dtype=torch.float64)
