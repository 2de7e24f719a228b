"""One merge of one group of models, a tensor at a time; and what a merge must know of whole models before it begins."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from mergekern.checkpoints import LayerStream, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.errors import NonFiniteError, OptionError
from mergekern.kernels.combine import Rule, Tally
from mergekern.merging.elementwise import Elementwise, mask_key
from mergekern.merging.gathered import Gathered
from mergekern.merging.matrices import Matrices
from mergekern.merging.method import Method
from mergekern.merging.normalisation import MEAN, averaged_counters, averaging_weights, is_statistic
from mergekern.merging.of_tensor import OfTensor
from mergekern.merging.output import Sink
from mergekern.merging.route import Route
from mergekern.merging.settings import Settings
from mergekern.merging.shared_layer import SharedLayer
from mergekern.merging.whole_tensor import WeightedSum, lost_norms


@dataclass(frozen=True)
class WholeModel:
    """Thresholds and signs over all tensors together, for merges whose scope is the model.

    Attributes:
        thresholds: model -> the least magnitude kept; empty where nothing is trimmed.
        majority: +1 or −1, the sign of elements whose sum is zero.
    """

    thresholds: Mapping[int, float]
    majority: int


class GroupMerge:
    """One merge: some models of a zoo, a method with its settings, and where the result goes.

    The models of each tensor are taken in the order of their content hashes, so that the order in which they are given
    changes no bit of the result; sums are float64 and rounded once.

    Args:
        zoo: holds the models.
        models: their positions in it.
        method: how they are merged.
        settings: their weights and options, in the order of `models`.
        sink: takes the result.
        settings_of: tensor name -> settings of the tensor, where they differ; by default `settings` are those of all.
        gathered: what runs of the models gave, for methods that need it.

    Attributes:
        whole_model: what is known of all tensors together, after `prepare_whole_models`, where the scope is the model.
    """

    def __init__(
        self, zoo: Zoo, models: Sequence[int], method: Method, settings: Settings, sink: Sink,
        settings_of: Callable[[str], Settings] | None = None, gathered: Gathered | None = None,
    ) -> None:  # fmt: skip
        self.zoo, self.models, self.method, self.settings, self.sink = zoo, tuple(models), method, settings, sink
        self.elementwise: Elementwise = method.elements(**settings.options) if method.elements else MEAN
        self.whole_model: WholeModel | None = None
        self._gathered = gathered
        self._settings_of = settings_of or (lambda name: settings)
        self._lock = threading.Lock()
        self._digests: dict[str, list[str]] = {}

    def count_signs(self, shared: SharedLayer) -> Tally:
        """Return the tally of one tensor, and write nothing."""
        return self._merge_elements(shared, *self._ordered(shared), 1, write=False)

    def merge(self, shared: SharedLayer) -> None:
        """Merge one tensor and write it."""
        order, settings = self._ordered(shared)
        with self._lock:
            self._digests[shared.name] = [shared.hashes[0], *(shared.hashes[1 + model] for model in self.models)]
        try:
            self._merge(shared, order, settings)
        except NonFiniteError:
            # Such as a causal mask of -inf, which is the same everywhere.
            if not shared.is_unchanged(self.models):
                raise
            self._write_base(shared)

    def average_counters(self) -> None:
        """Write the mean counters of the statistics of normalisation layers."""
        weights = averaging_weights(self.settings.weights)
        for name, counter in averaged_counters(self.zoo, self.models, weights).items():
            self.sink.write(name, counter)

    def _merge(self, shared: SharedLayer, order: list[int], settings: Settings) -> None:
        if is_statistic(shared.name):
            weights = averaging_weights(settings.weights)
            self._combine(shared, order, MEAN.rule(weights, None, []), from_zero=True)
            return
        if self.method.tensor is not None:
            self._merge_tensor(shared, order, settings)
            return
        if shared.layer.tensor.is_matrix and self.method.matrix is not None:
            matrices = shared.matrices(order)
            matrices.gathered = self._gathered_of(shared, order)
            if self.method.needs is None or matrices.gathered is not None:
                self._merge_matrix(shared, matrices, settings)
                return
        majority = self.whole_model.majority if self.whole_model else 1
        tally = self._merge_elements(shared, order, settings, majority)
        if tally.undecided and tally.signs < 0 and self.whole_model is None:
            self._merge_elements(shared, order, settings, -1)

    def content_hashes(self) -> list[str]:
        """Return the hash of the base and of each model over all tensors; after every tensor is merged."""
        hashers = [xxhash.xxh3_128() for _ in (None, *self.models)]
        for tensor in self.zoo.tensors:
            for hasher, digest in zip(hashers, self._digests[tensor.name], strict=True):
                hasher.update(f"{tensor.name}\0{digest}\0".encode())
        return [hasher.hexdigest() for hasher in hashers]

    def _ordered(self, shared: SharedLayer) -> tuple[list[int], Settings]:
        """Return the models in the order of their hashes, and the settings of the tensor in this order."""
        settings = self._settings_of(shared.name)
        hashes = [shared.hashes[1 + model] for model in self.models]
        places = sorted(range(len(hashes)), key=lambda place: (hashes[place], settings.of_model(place)))
        return [self.models[place] for place in places], settings.ordered(places)

    def _merge_tensor(self, shared: SharedLayer, order: list[int], settings: Settings) -> None:
        assert self.method.tensor is not None
        tensor = shared.whole(order)
        tensor.gathered = self._gathered_of(shared, order)
        combination = self.method.tensor(tensor, settings.weights, **settings.options)
        if isinstance(combination, WeightedSum):
            rule = Rule("sum", combination.coefficients)
            self._combine(shared, order, rule, from_zero=combination.of_models)
            return
        if isinstance(combination, Rule):
            self._combine(shared, order, combination)
            return
        for block in tensor.blocks(combination.of_rows):
            self._write(shared, combination.combine(block).reshape(-1), block.start)

    def _gathered_of(self, shared: SharedLayer, order: list[int]) -> OfTensor | None:
        if self._gathered is None or self.method.needs is None:
            return None
        models = [self.zoo.model_names[model] for model in order]
        return self._gathered.of(self.method.needs, shared.name, models)

    def _merge_matrix(self, shared: SharedLayer, matrices: Matrices, settings: Settings) -> None:
        assert self.method.matrix is not None
        merged = self.method.matrix(matrices, settings.weights, **settings.options)
        merged = torch.from_numpy(merged) if isinstance(merged, np.ndarray) else merged
        result = merged.add_(shared.route.base(shared.layer))
        self._write(shared, result.reshape(-1), 0)

    def _merge_elements(
        self, shared: SharedLayer, order: list[int], settings: Settings, majority: int, write: bool = True
    ) -> Tally:
        return self._combine(shared, order, self._rule(shared, order, settings, majority), write)

    def _combine(
        self, shared: SharedLayer, order: list[int], rule: Rule, write: bool = True, from_zero: bool = False
    ) -> Tally:
        """Merge one tensor by a rule; with `from_zero` the models' own values instead of their differences."""
        tally, start = Tally(), 0
        dtype = torch.float64 if self.sink.dtype(shared.name) == torch.float64 else torch.float32
        for base, tuned in shared.route.blocks(shared.layer, order):
            origin = None if from_zero else base
            out, counted = shared.route.combine(origin, tuned, rule, dtype, start, shared.threads)
            tally += counted
            if tally.non_finite:
                raise non_finite(shared.layer, self.zoo)
            if write:
                self._write(shared, out, start)
            start += base.numel()
            del base, tuned
        return tally

    def _write_base(self, shared: SharedLayer) -> None:
        start = 0
        for base, _ in shared.layer.blocks():
            self.sink.write(shared.name, base.to(self.sink.dtype(shared.name)), start)
            start += base.numel()
            del base

    def _rule(self, shared: SharedLayer, order: list[int], settings: Settings, majority: int) -> Rule:
        assert self.method.elements is not None
        elementwise: Elementwise = self.method.elements(**settings.options)
        thresholds: list[float] | None = None
        limits: list[float] | None = None
        if elementwise.trim is not None and self.whole_model is not None:
            known = self.whole_model.thresholds
            thresholds = [known[model] for model in order] if known else None
        elif elementwise.trim is not None:
            trims = elementwise.trims(len(order))
            kept = shared.kth_of_each(order, [trim.rank(shared.count) for trim in trims])
            thresholds = [trim.threshold(kth) if kth else 0.0 for trim, kth in zip(trims, kept, strict=True)]
            thresholds = thresholds if max(thresholds) > 0 else None
            limits = shared.kth_of_each(order, [trim.limit_rank(shared.count) for trim in trims], nothing=np.inf)
            limits = limits if min(limits) < np.inf else None
        keys = [mask_key(elementwise.seed, shared.name, shared.hashes[1 + model]) for model in order]
        rule = elementwise.rule(settings.weights, thresholds, keys, majority, limits)
        if not elementwise.keeps_norm:
            return rule
        norms = lost_norms(shared.whole(order), rule)
        return elementwise.rule(settings.weights, thresholds, keys, majority, limits, norms)

    def _write(self, shared: SharedLayer, values: torch.Tensor, start: int) -> None:
        dtype = self.sink.dtype(shared.name)
        # By float32 from either, so that there is one rounding rule for all paths.
        out = values if dtype == values.dtype else values.to(torch.float32).to(dtype)
        if dtype == torch.float16 and not torch.isfinite(out).all():
            raise OptionError(
                f"tensor {shared.name!r}: merged values are beyond the range of float16; pass dtype='bfloat16' or "
                "'float32'"
            )
        self.sink.write(shared.name, shared.route.fetched(out), start)


def prepare_whole_models(merges: Sequence[GroupMerge], stream: LayerStream, route: Route, threads: int) -> None:
    """Read whole models for the thresholds and signs of merges whose scope is the model, once for all of them."""
    merges = [merge for merge in merges if merge.elementwise.scope == "model"]
    if not merges:
        return
    stream = _of_weights(stream)
    thresholds = _thresholds(merges, stream, route, threads)
    elections = {merge: Tally() for merge in merges if merge.elementwise.consensus.startswith("elect")}
    for merge in merges:
        merge.whole_model = WholeModel(thresholds[merge], 1)
    for layer in stream if elections else ():
        shared = SharedLayer(layer, stream.zoo, route, threads, keep=0)
        for merge in elections:
            elections[merge] += merge.count_signs(shared)
        layer.release()
    for merge, tally in elections.items():
        merge.whole_model = WholeModel(thresholds[merge], -1 if tally.signs < 0 else 1)


def _of_weights(stream: LayerStream) -> LayerStream:
    """Return the tensors that make up a model's vector: no statistics of normalisation, no masks of infinities."""
    tensors = (layer.tensor for layer in stream if not is_statistic(layer.tensor.name) and layer.has_finite_base())
    return LayerStream(dataclasses.replace(stream.zoo, tensors=tuple(tensors)), stream.max_memory)


def _thresholds(
    merges: Sequence[GroupMerge], stream: LayerStream, route: Route, threads: int
) -> dict[GroupMerge, dict[int, float]]:
    """Return the least magnitude kept of each model of each merge, over all tensors together."""
    count = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in stream.zoo.tensors)
    kth_largest: dict[tuple[int, int], float] = {}
    thresholds: dict[GroupMerge, dict[int, float]] = {merge: {} for merge in merges}
    for merge in merges:
        trims = dict(zip(merge.models, merge.elementwise.trims(len(merge.models)), strict=False))
        ranks = {model: k for model, trim in trims.items() if (k := trim.rank(count)) is not None}
        if not ranks or not count:
            continue
        for k in sorted(set(ranks.values())):
            lacking = [model for model, rank in ranks.items() if rank == k and (model, k) not in kth_largest]
            if lacking:
                found = route.kth_largest(lambda: stream, lacking, count, k, threads)
                kth_largest |= {(model, k): value for model, value in zip(lacking, found, strict=True)}
        thresholds[merge] = {
            model: trim.threshold(kth_largest[model, ranks[model]]) if model in ranks else 0.0
            for model, trim in trims.items()
        }
    return thresholds
