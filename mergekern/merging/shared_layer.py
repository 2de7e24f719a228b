"""One tensor of all models, and what several merges of it need: computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergekern.checkpoints import Layer, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.kernels.truncation import Triplets
from mergekern.merging.layer_tensor import LayerTensor
from mergekern.merging.matrices import Matrices
from mergekern.merging.route import Route
from mergekern.merging.whole_tensor import WholeTensor


class SharedLayer:
    """One tensor of a zoo, with thresholds and truncated task matrices that are kept for all merges of it.

    Args:
        layer: the tensor of the base and of every model.
        zoo: the models.
        route: the kernels that merge it.
        threads: how many the element-wise kernels may use; no result depends on it.
        keep: bytes of truncated task matrices that are kept for other merges; the last used ones are.

    Attributes:
        layer, zoo, route, threads: as given.
        hashes: content hashes, of the base and then of each model.
    """

    def __init__(self, layer: Layer, zoo: Zoo, route: Route, threads: int, keep: int) -> None:
        self.layer, self.zoo, self.route, self.threads = layer, zoo, route, threads
        self.hashes = layer.content_hashes()
        self._keep = keep
        self._equal: list[bool] | None = None
        self._thresholds: dict[tuple[int, int], float] = {}
        self._triplets: dict[tuple[int, int], Triplets] = {}  # In the order of their last use.

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.layer.tensor.name

    @property
    def count(self) -> int:
        """Number of its elements."""
        return int(np.prod(self.layer.tensor.shape, dtype=np.int64))

    def is_unchanged(self, models: Sequence[int]) -> bool:
        """Tell whether some models have the tensor as the base, infinities and NaN included; the tensor is read."""
        if self._equal is None:
            self._equal = self.layer.equal_to_base()
        return all(self._equal[model] for model in models)

    def kth_largest(self, models: Sequence[int], k: int) -> list[float]:
        """Return the k-th largest magnitudes of the task vectors of some models."""
        if lacking := [model for model in models if (model, k) not in self._thresholds]:
            found = self.route.kth_largest(lambda: [self.layer], lacking, self.count, k, self.threads)
            self._thresholds |= {(model, k): value for model, value in zip(lacking, found, strict=True)}
        return [self._thresholds[model, k] for model in models]

    def kth_of_each(self, models: Sequence[int], ranks: Sequence[int | None], nothing: float = 0.0) -> list[float]:
        """Return the magnitude of each model's own rank; where that is None, another value."""
        for k in {k for k in ranks if k is not None}:
            self.kth_largest([model for model, rank in zip(models, ranks, strict=True) if rank == k], k)
        return [nothing if k is None else self._thresholds[model, k] for model, k in zip(models, ranks, strict=True)]

    def matrices(self, models: Sequence[int]) -> Matrices:
        """Return the task matrices of some models, in this order, each read when it is asked for."""
        return _LayerMatrices(self, models)

    def whole(self, models: Sequence[int]) -> WholeTensor:
        """Return the tensor of some models, in this order, for rules that look at all of it."""
        hashes = [self.hashes[1 + model] for model in models]
        return LayerTensor(self.layer, self.zoo, models, hashes, self.route, self.threads)

    def delta(self, model: int) -> Any:
        """Return the task matrix of a model in float64, for the kernels of the route.

        Raises:
            NonFiniteError: it holds NaN or infinite values.
        """
        delta = self.route.delta(self.layer, model)
        is_finite: Any = np.isfinite if isinstance(delta, np.ndarray) else torch.isfinite
        if not is_finite(delta).all():
            raise non_finite(self.layer, self.zoo)
        return delta

    def leading(self, model: int, k: int) -> Triplets:
        """Return the k leading singular triplets of the task matrix of a model."""
        found = self._triplets.pop((model, k), None)
        if found is None:
            found = self.route.kernels.leading(self.delta(model), k)
        self._triplets[model, k] = found
        while sum(array.nbytes for kept in self._triplets.values() for array in kept) > self._keep:
            del self._triplets[next(iter(self._triplets))]
        return found


class _LayerMatrices(Matrices):
    """Task matrices of some models of a shared layer."""

    def __init__(self, shared: SharedLayer, models: Sequence[int]) -> None:
        self._shared, self._models, self.kernels = shared, models, shared.route.kernels
        self.shape = shared.layer.tensor.shape

    def __len__(self) -> int:
        return len(self._models)

    def delta(self, model: int) -> Any:
        return self._shared.delta(self._models[model])

    def leading(self, model: int, k: int) -> Triplets:
        return self._shared.leading(self._models[model], k)
