"""One merge of one group of models, tensor by tensor; and what merges of the same tensor share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from mergekern.checkpoints import Layer, LayerStream, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.errors import OptionError
from mergekern.kernels.combine import Rule, Tally
from mergekern.kernels.combine.on_cpu import combine
from mergekern.kernels.native import difference
from mergekern.kernels.trim.on_cpu import kth_largest
from mergekern.kernels.truncation import Triplets
from mergekern.kernels.truncation import on_cpu as truncation
from mergekern.merging.matrices import Matrices
from mergekern.merging.recipe import Method, Recipe, mask_key


class Sink(Protocol):
    """Takes the merged tensors of one job."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which a tensor is taken."""

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Take elements [start, start + len) of a flattened tensor; a later call may replace them."""


class SharedLayer:
    """One tensor of a zoo, and what is computed of it once for all jobs.

    Attributes:
        layer, zoo: the tensor.
        hashes: content hashes, of the base and then of each model.
        threads: that the element-wise kernels may use; no result depends on it.
    """

    def __init__(self, layer: Layer, zoo: Zoo, threads: int, keep: bool) -> None:
        self.layer, self.zoo, self.threads = layer, zoo, threads
        self.hashes = layer.content_hashes()
        self._keep = keep
        self._kept: dict[tuple, Any] = {}

    def _once(self, key: tuple, compute: Callable[[], Any]) -> Any:
        if key in self._kept:
            return self._kept[key]
        value = compute()
        if self._keep:
            self._kept[key] = value
        return value

    def kth_largest(self, model: int, k: int) -> float:
        """Return the k-th largest magnitude of the task vector of a model."""
        count = int(np.prod(self.layer.tensor.shape, dtype=np.int64))
        return self._once(("kth", model, k), lambda: kth_largest(lambda: self.blocks(model), count, k, self.threads))

    def blocks(self, model: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (base, tuned) of one model, flat."""
        for base, tuned in self.layer.blocks():
            yield base, tuned[model]
            del base, tuned

    def delta(self, model: int) -> np.ndarray:
        """Return the task matrix of a model in float64."""
        rows, columns = self.layer.tensor.shape
        out = np.empty((rows, columns))
        for start, base, tuned in self.layer.matrix_blocks(model, 0, rows):
            difference(base, tuned, out[start : start + len(base)])
        if not np.isfinite(out).all():
            raise non_finite(self.layer, self.zoo)
        return out

    def leading(self, model: int, k: int) -> Triplets:
        """Return the k leading singular triplets of the task matrix of a model."""
        return self._once(("leading", model, k), lambda: truncation.leading(self.delta(model), k))


class _LayerMatrices(Matrices):
    """The task matrices of some models of a layer, in a given order, read when they are asked for."""

    def __init__(self, shared: SharedLayer, models: Sequence[int]) -> None:
        self._shared, self._models = shared, models
        self.shape = shared.layer.tensor.shape

    def __len__(self) -> int:
        return len(self._models)

    def delta(self, model: int) -> np.ndarray:
        return self._shared.delta(self._models[model])

    def leading(self, model: int, k: int) -> Triplets:
        return self._shared.leading(self._models[model], k)


@dataclass(frozen=True)
class _WholeModel:
    """What `scope="model"` needs to know of all tensors together."""

    thresholds: dict[int, float]  # by model
    majority: int


class Job:
    """One merge: some models of a zoo, a method with its options, and where the result goes.

    The models of each tensor are taken in the order of their content hashes, so that the order in which they are given
    changes no bit of the result; sums are float64 and rounded once.

    Args:
        zoo: that holds the models.
        models: their positions in it.
        method, options: resolved.
        weights: one for each model.
        sink: takes the result.
    """

    def __init__(
        self, zoo: Zoo, models: Sequence[int], method: Method, options: dict[str, Any], weights: Sequence[float],
        sink: Sink,
    ) -> None:  # fmt: skip
        self.zoo, self.models, self.method, self.options, self.sink = zoo, tuple(models), method, options, sink
        self.weights = dict(zip(models, weights, strict=True))
        extra = {"models": len(self.models)} if method.name == "tall_masks" else {}
        self.recipe: Recipe = method.elements(**options, **extra)
        self._whole: _WholeModel | None = None
        self._lock = threading.Lock()
        self.digests: dict[str, list[str]] = {}

    def prepare(self, stream: Callable[[], LayerStream], threads: int) -> None:
        """Read the whole models for what their thresholds and signs are, where the scope asks for it."""
        if self.recipe.scope != "model":
            return
        count = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in self.zoo.tensors)
        k = self.recipe.trim.rank(count) if self.recipe.trim else None
        thresholds = {}
        if self.recipe.trim and k is not None:
            for model in self.models:
                kth = kth_largest(partial(_model_blocks, stream, model), count, k, threads)
                thresholds[model] = self.recipe.trim.threshold(kth)
        self._whole = _WholeModel(thresholds, 1)
        if self.recipe.consensus == "elect":
            tally = Tally()
            for layer in stream():
                shared = SharedLayer(layer, self.zoo, threads, keep=False)
                tally += self._elements(shared, self._ordered(shared), 1, write=False)
                layer.release()
            self._whole = _WholeModel(thresholds, -1 if tally.signs < 0 else 1)

    def merge(self, shared: SharedLayer) -> None:
        """Merge one tensor and write it."""
        tensor = shared.layer.tensor
        order = self._ordered(shared)
        with self._lock:
            self.digests[tensor.name] = [shared.hashes[0], *(shared.hashes[1 + model] for model in self.models)]
        if tensor.is_matrix and self.method.matrix is not None:
            self._matrix(shared, order)
            return
        majority = self._whole.majority if self._whole else 1
        tally = self._elements(shared, order, majority)
        if tally.undecided and tally.signs < 0 and self._whole is None:
            self._elements(shared, order, -1)

    def content_hashes(self) -> list[str]:
        """Return the hash of the base and of each model over all tensors; after every tensor is merged."""
        hashers = [xxhash.xxh3_128() for _ in (None, *self.models)]
        for tensor in self.zoo.tensors:
            for hasher, digest in zip(hashers, self.digests[tensor.name], strict=True):
                hasher.update(f"{tensor.name}\0{digest}\0".encode())
        return [hasher.hexdigest() for hasher in hashers]

    def _ordered(self, shared: SharedLayer) -> list[int]:
        return sorted(self.models, key=lambda model: (shared.hashes[1 + model], self.weights[model]))

    def _matrix(self, shared: SharedLayer, order: list[int]) -> None:
        assert self.method.matrix is not None
        weights = [self.weights[model] for model in order]
        merged = self.method.matrix(_LayerMatrices(shared, order), weights, **self.options)
        rows = shared.layer.tensor.shape[0]
        for start, base, _ in shared.layer.matrix_blocks(order[0], 0, rows):
            result = torch.from_numpy(merged[start : start + len(base)]).add_(base)
            self._write(shared, result.reshape(-1), start * merged.shape[1])

    def _elements(self, shared: SharedLayer, order: list[int], majority: int, write: bool = True) -> Tally:
        rule = self._rule(shared, order, majority)
        name, tally, start = shared.layer.tensor.name, Tally(), 0
        is_wide = self.sink.dtype(name) == torch.float64
        for base, tuned in shared.layer.blocks():
            out = torch.empty(base.numel(), dtype=torch.float64 if is_wide else torch.float32)
            tally += combine(base, [tuned[model] for model in order], rule, out, start, shared.threads)
            if tally.non_finite:
                raise non_finite(shared.layer, self.zoo)
            if write:
                self._write(shared, out, start)
            start += base.numel()
            del base, tuned
        return tally

    def _rule(self, shared: SharedLayer, order: list[int], majority: int) -> Rule:
        trim, thresholds = self.recipe.trim, None
        if trim is not None and self._whole is not None:
            thresholds = [self._whole.thresholds[model] for model in order] if self._whole.thresholds else None
        elif trim is not None:
            k = trim.rank(int(np.prod(shared.layer.tensor.shape, dtype=np.int64)))
            if k is not None:
                thresholds = [trim.threshold(shared.kth_largest(model, k)) for model in order]
        name = shared.layer.tensor.name
        keys = [mask_key(self.recipe.seed, name, shared.hashes[1 + model]) for model in order]
        return self.recipe.rule([self.weights[model] for model in order], thresholds, keys, majority)

    def _write(self, shared: SharedLayer, values: torch.Tensor, start: int) -> None:
        name = shared.layer.tensor.name
        dtype = self.sink.dtype(name)
        # By float32 from either, so that there is one rounding rule for all paths.
        out = values if dtype == values.dtype else values.to(torch.float32).to(dtype)
        if dtype == torch.float16 and not torch.isfinite(out).all():
            raise OptionError(
                f"tensor {name!r}: merged values are beyond the range of float16; pass dtype='bfloat16' or 'float32'"
            )
        self.sink.write(name, out, start)


def _model_blocks(stream: Callable[[], LayerStream], model: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for layer in stream():
        for base, tuned in layer.blocks():
            yield base, tuned[model]
            del base, tuned
        layer.release()
