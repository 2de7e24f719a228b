"""One merge of one group of models, tensor by tensor; and what merges of the same tensor share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from mergekern.checkpoints import Layer, LayerStream, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.errors import OptionError
from mergekern.kernels.combine import Rule, Tally
from mergekern.kernels.truncation import Triplets
from mergekern.merging.matrices import Matrices
from mergekern.merging.recipe import Method, Recipe, mask_key
from mergekern.merging.route import Route


class Sink(Protocol):
    """Takes the merged tensors of one job."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which a tensor is taken."""

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Take elements [start, start + len) of a flattened tensor; a later call may replace them."""


class SharedLayer:
    """One tensor of a zoo, and what is computed of it once for all jobs.

    Args:
        keep: bytes of truncated task matrices that are kept for other jobs; those that were used last.

    Attributes:
        layer, zoo: the tensor.
        route: where it is merged.
        hashes: content hashes, of the base and then of each model.
        threads: that the element-wise kernels may use; no result depends on it.
    """

    def __init__(self, layer: Layer, zoo: Zoo, route: Route, threads: int, keep: int) -> None:
        self.layer, self.zoo, self.route, self.threads = layer, zoo, route, threads
        self.hashes = layer.content_hashes()
        self._keep = keep
        self._thresholds: dict[tuple[int, int], float] = {}
        self._triplets: dict[tuple[int, int], Triplets] = {}  # the one that was used last is the last

    def kth_largest(self, models: Sequence[int], k: int) -> list[float]:
        """Return the k-th largest magnitudes of the task vectors of some models."""
        if lacking := [model for model in models if (model, k) not in self._thresholds]:
            count = int(np.prod(self.layer.tensor.shape, dtype=np.int64))
            found = self.route.kth_largest(lambda: [self.layer], lacking, count, k, self.threads)
            self._thresholds |= {(model, k): value for model, value in zip(lacking, found, strict=True)}
        return [self._thresholds[model, k] for model in models]

    def delta(self, model: int) -> Any:
        """Return the task matrix of a model in float64, for the kernels of the route."""
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
    """The task matrices of some models of a layer, in a given order, read when they are asked for."""

    def __init__(self, shared: SharedLayer, models: Sequence[int]) -> None:
        self._shared, self._models, self.kernels = shared, models, shared.route.kernels
        self.shape = shared.layer.tensor.shape

    def __len__(self) -> int:
        return len(self._models)

    def delta(self, model: int) -> Any:
        return self._shared.delta(self._models[model])

    def leading(self, model: int, k: int) -> Triplets:
        return self._shared.leading(self._models[model], k)


@dataclass(frozen=True)
class WholeModel:
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

    Attributes:
        whole: what is known of all tensors together, after `prepare`, where the scope is the model.
    """

    def __init__(
        self, zoo: Zoo, models: Sequence[int], method: Method, options: dict[str, Any], weights: Sequence[float],
        sink: Sink,
    ) -> None:  # fmt: skip
        self.zoo, self.models, self.method, self.options, self.sink = zoo, tuple(models), method, options, sink
        self.weights = dict(zip(models, weights, strict=True))
        extra = {"models": len(self.models)} if method.name == "tall_masks" else {}
        self.recipe: Recipe = method.elements(**options, **extra)
        self.whole: WholeModel | None = None
        self._lock = threading.Lock()
        self.digests: dict[str, list[str]] = {}

    def count_signs(self, shared: SharedLayer) -> Tally:
        """Return the tally of one tensor, of which nothing is written."""
        return self._elements(shared, self._ordered(shared), 1, write=False)

    def merge(self, shared: SharedLayer) -> None:
        """Merge one tensor and write it."""
        tensor = shared.layer.tensor
        order = self._ordered(shared)
        with self._lock:
            self.digests[tensor.name] = [shared.hashes[0], *(shared.hashes[1 + model] for model in self.models)]
        if tensor.is_matrix and self.method.matrix is not None:
            self._matrix(shared, order)
            return
        majority = self.whole.majority if self.whole else 1
        tally = self._elements(shared, order, majority)
        if tally.undecided and tally.signs < 0 and self.whole is None:
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
        result = torch.as_tensor(merged).add_(shared.route.base(shared.layer))
        self._write(shared, result.reshape(-1), 0)

    def _elements(self, shared: SharedLayer, order: list[int], majority: int, write: bool = True) -> Tally:
        rule = self._rule(shared, order, majority)
        name, tally, start = shared.layer.tensor.name, Tally(), 0
        dtype = torch.float64 if self.sink.dtype(name) == torch.float64 else torch.float32
        for base, tuned in shared.route.blocks(shared.layer, order):
            out, counted = shared.route.combine(base, tuned, rule, dtype, start, shared.threads)
            tally += counted
            if tally.non_finite:
                raise non_finite(shared.layer, self.zoo)
            if write:
                self._write(shared, out, start)
            start += base.numel()
            del base, tuned
        return tally

    def _rule(self, shared: SharedLayer, order: list[int], majority: int) -> Rule:
        trim, thresholds = self.recipe.trim, None
        if trim is not None and self.whole is not None:
            thresholds = [self.whole.thresholds[model] for model in order] if self.whole.thresholds else None
        elif trim is not None:
            k = trim.rank(int(np.prod(shared.layer.tensor.shape, dtype=np.int64)))
            if k is not None:
                thresholds = [trim.threshold(kth) for kth in shared.kth_largest(order, k)]
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
        self.sink.write(name, shared.route.fetched(out), start)


def prepare(jobs: Sequence[Job], stream: LayerStream, route: Route, threads: int) -> None:
    """Read whole models for the thresholds and signs of jobs whose scope asks for it, once for all of them."""
    whole, zoo = [job for job in jobs if job.recipe.scope == "model"], stream.zoo
    count = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in zoo.tensors)
    found: dict[tuple[int, int], float] = {}
    for job in whole:
        thresholds = {}
        trim = job.recipe.trim
        k = trim.rank(count) if trim else None
        if trim and k is not None:
            if lacking := [model for model in job.models if (model, k) not in found]:
                values = route.kth_largest(lambda: stream, lacking, count, k, threads)
                found |= {(model, k): value for model, value in zip(lacking, values, strict=True)}
            thresholds = {model: trim.threshold(found[model, k]) for model in job.models}
        job.whole = WholeModel(thresholds, 1)
    elections = {job: Tally() for job in whole if job.recipe.consensus == "elect"}
    for layer in stream if elections else ():
        shared = SharedLayer(layer, zoo, route, threads, keep=0)
        for job in elections:
            elections[job] += job.count_signs(shared)
        layer.release()
    for job, tally in elections.items():
        assert job.whole is not None
        job.whole = WholeModel(job.whole.thresholds, -1 if tally.signs < 0 else 1)
