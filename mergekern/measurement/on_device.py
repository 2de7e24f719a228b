"""Measuring on a GPU: layers are copied there as they come, and measured many at a time.

The copies run on one stream and the kernels on another, so that a batch is measured while the next one is on its way.
What a batch gives is fetched when the first of its layers is finished.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from mergekern.checkpoints import FactoredLayer, Layer, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.gram import distances_from_inner, wanted_pairs
from mergekern.kernels.spectrum import DeviceSpectra, Spectrum, Stack
from mergekern.kernels.transfer import Uploader, on_stream
from mergekern.measurement import Measurement
from mergekern.measurement.on_cpu import Begun, CpuMeasurement
from mergekern.statistics import Bases, LayerStatistics, SpectrumStatistics

logger = logging.getLogger(__name__)

# Of the free memory of the device: for weights, and for what their factorisation needs beside. Layers that are being
# copied and the fragments of the allocator have the rest.
SHARE_OF_WEIGHTS = 0.4
SHARE_OF_WORKSPACE = 0.4
# A batch is launched once it has this many matrices for each multiprocessor: a kernel that has one block a matrix
# fills the device twice, and copies of later layers go on meanwhile.
MATRICES_PER_MULTIPROCESSOR = 2


class _Request:
    """A layer that is waiting for its batch, and then what became of it."""

    def __init__(self, layer: Layer, zoo: Zoo, tensors: list[torch.Tensor], split: int) -> None:
        self.layer, self.zoo, self.split = layer, zoo, split
        self.tensors = tensors  # on the device, until the batch is launched
        self.batch: _Batch | None = None
        self.position = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layer.tensor.shape


class _Batch(NamedTuple):
    """What a launch gives, on the device; (L, N, N) inner products, and of the matrices among the layers the rest."""

    inner: torch.Tensor
    spectra: dict[int, _DeviceLayer]


class _DeviceLayer(NamedTuple):
    """Spectra of one layer, and the overlaps of left top, right top and right bottom (N, N) each."""

    spectra: DeviceSpectra
    overlaps: list[torch.Tensor]


@dataclass
class DeviceMeasurement(Measurement):
    """See `Measurement`.

    Attributes:
        fallback: what measures on the processor: layers with factors, and what fails its check.
    """

    backend: DeviceBackend
    fallback: CpuMeasurement
    _waiting: list[_Request] = field(default_factory=list)
    _redone: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    name = property(lambda self: self.backend.name)
    in_batches = property(lambda self: True)
    layers_ahead = property(lambda self: 1 << 20)  # the budget is what limits them

    def __post_init__(self) -> None:
        free = self.backend.free_memory()
        # On the device, where the default is a share of what is free.
        self.max_memory: int = int(SHARE_OF_WEIGHTS * free) if self.max_memory is None else self.max_memory
        self._workspace = int(SHARE_OF_WORKSPACE * free)
        self._uploader = Uploader(self.backend.device)
        self._stream: torch.cuda.Stream | None = None
        if self.backend.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.backend.device)
            # Weights that are there already may still be on their way from whatever the caller does.
            self._stream.wait_stream(torch.cuda.current_stream(self.backend.device))

    def provenance(self) -> dict[str, object]:
        """Return "device", "backend", and how many factorisations failed their check and were redone on the CPU."""
        return {"device": self.backend.description, "backend": self.backend.name, "redone_on_cpu": self._redone}

    def hashes(
        self, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor, models: Sequence[int] | None = None
    ) -> list[str]:
        """Return the content hashes of a layer, made on all threads: one of them is slower than the bus."""
        return layer.content_hashes(models, pool.map)

    def begin(
        self, layer: Layer | FactoredLayer, zoo: Zoo, pool: ThreadPoolExecutor, *, split: int = 0
    ) -> _Request | Begun:
        """Send one layer to the device, and launch a batch if there is enough for one.

        All pairs are measured there also where `split` names some: reading the weights is what takes the time.
        """
        if isinstance(layer, FactoredLayer):
            return self.fallback.begin(layer, zoo, pool, split=split)
        with self._lock:
            if layer.is_split:
                return self._measure_split(layer, zoo, pool, split)
            request = _Request(layer, zoo, self._uploader.upload(layer.tensors(self.backend.device), pool), split)
            layer.release()
            self._waiting.append(request)
            matrices = sum(len(r.tensors) - 1 for r in self._waiting if self._is_factorised(r))
            size = sum(r.layer.nbytes for r in self._waiting)
            if matrices >= MATRICES_PER_MULTIPROCESSOR * self.backend.multiprocessors or 4 * size >= self.max_memory:
                self._launch()
        return request

    def finish(self, request: _Request | Begun) -> LayerStatistics:
        """Wait for the batch of a layer, and return the statistics of that layer."""
        if not isinstance(request, _Request):
            return self.fallback.finish(request)
        with self._lock:
            if request.batch is None:
                self._launch()
            assert request.batch is not None
        with on_stream(self._stream):
            inner = request.batch.inner[request.position].cpu().numpy()
            if not np.isfinite(inner).all():
                raise non_finite(request.layer, request.zoo)
            inner = np.where(wanted_pairs(len(inner), request.split), inner, 0.0)
            distance, spoilt = distances_from_inner(inner, request.split)
            measured = request.batch.spectra.pop(request.position, None)
            spectrum = None if measured is None else self._fetch(request.layer, measured)
        if spoilt:
            i, j = np.array(spoilt).T
            distance[i, j] = distance[j, i] = self._squared_distances(request.layer, spoilt)
        return LayerStatistics(request.layer.tensor.name, request.shape, inner, distance, spectrum)

    def _is_factorised(self, request: _Request) -> bool:
        return self.with_spectrum and request.layer.tensor.is_matrix and not request.split

    def _launch(self) -> None:
        """Queue the kernels for everything that is waiting."""
        requests, self._waiting = self._waiting, []
        with on_stream(self._stream), self.backend.explaining_memory():
            self._hand_over([tensor for request in requests for tensor in request.tensors])
            inner = self.backend.inner_products([[t.reshape(-1) for t in request.tensors] for request in requests])
            matrices = {
                position: Stack(request.tensors[0], request.tensors[1:])
                for position, request in enumerate(requests)
                if self._is_factorised(request)
            }
            batch = _Batch(inner, self._factorise(matrices))
        for position, request in enumerate(requests):
            request.batch, request.position, request.tensors = batch, position, []

    def _hand_over(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let the kernels wait for the copies, and keep the memory until they are done."""
        if self._stream is not None and self._uploader.stream is not None:
            self._stream.wait_stream(self._uploader.stream)
            for tensor in tensors:
                tensor.record_stream(self._stream)

    def _factorise(self, matrices: dict[int, Stack]) -> dict[int, _DeviceLayer]:
        found: dict[int, list[DeviceSpectra]] = {position: [] for position in matrices}
        for some in self._in_batches(matrices):
            results = self.backend.spectra([stack for _, stack in some], self.top_k, self.spectrum_k)
            for (position, _), result in zip(some, results, strict=True):
                found[position].append(result)
        whole = {
            position: DeviceSpectra(*map(torch.cat, zip(*parts, strict=True))) for position, parts in found.items()
        }
        overlaps = self._overlaps(whole)
        return {position: _DeviceLayer(spectra, overlaps[position]) for position, spectra in whole.items()}

    def _in_batches(self, matrices: dict[int, Stack]) -> Iterator[list[tuple[int, Stack]]]:
        """Yield stacks of one short side that the workspace holds together; a stack may come in several parts."""
        by_side: dict[int, list[tuple[int, Stack]]] = {}
        for position, stack in matrices.items():
            by_side.setdefault(min(stack.base.shape), []).append((position, stack))
        for stacks in by_side.values():
            batch: list[tuple[int, Stack]] = []
            free = self._workspace
            for position, (base, tuned) in stacks:
                each = self.backend.spectrum_workspace((base.shape[0], base.shape[1]), self.top_k)
                first = 0
                while first < len(tuned):
                    count = min(len(tuned) - first, free // each)
                    if count == 0 and not batch:
                        count = 1  # whether it fits is for the device to say
                    if count > 0:
                        batch.append((position, Stack(base, tuned[first : first + count])))
                        free -= count * each
                        first += count
                    if first < len(tuned):
                        yield batch
                        batch, free = [], self._workspace
            if batch:
                yield batch

    def _overlaps(self, spectra: dict[int, DeviceSpectra]) -> dict[int, list[torch.Tensor]]:
        """Return the overlaps of left top, right top and right bottom; vectors of one length in one launch."""
        by_shape: dict[torch.Size, list[tuple[int, str]]] = {}
        for position, each in spectra.items():
            for side in Bases._fields:
                by_shape.setdefault(getattr(each, side).shape, []).append((position, side))
        found: dict[tuple[int, str], torch.Tensor] = {}
        for same in by_shape.values():
            vectors = torch.stack([getattr(spectra[position], side) for position, side in same])
            found.update(zip(same, self.backend.overlap(vectors), strict=True))
        return {position: [found[position, side] for side in Bases._fields] for position in spectra}

    def _fetch(self, layer: Layer, measured: _DeviceLayer) -> SpectrumStatistics:
        good = measured.spectra.good.cpu()
        if good.all():
            values, rank = measured.spectra.values.cpu().numpy(), measured.spectra.rank.cpu().numpy()
            left_top, right_top, right_bottom = (overlap.cpu().numpy() for overlap in measured.overlaps)
            vectors = measured.spectra[2:5]
            bases = Bases(*(part.cpu().numpy() for part in vectors)) if self.with_bases else None
            return SpectrumStatistics(values, rank, left_top, right_top, right_bottom, vectors[0].shape[2], bases)
        spectra = DeviceSpectra(*(part.cpu() for part in measured.spectra))
        bad = (~spectra.good).nonzero()[:, 0].tolist()
        logger.warning("%s: %d factorisations failed their check; redone on the CPU", layer.tensor.name, len(bad))
        self._redone += len(bad)
        whole = []
        for model in range(len(spectra.good)):
            if model in bad:
                whole.append(self.fallback.factorise(layer, model))
            else:
                ours, count, *sides = (part[model].numpy() for part in spectra[:5])
                whole.append(Spectrum(ours, int(count), *sides))
        return self.fallback.overlaps(whole)

    def _squared_distances(self, layer: Layer, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return squared distances of pairs for which the inner products cancel; the weights are sent once more."""
        total = np.zeros(len(pairs))
        device = self.backend.device
        blocks = layer.blocks() if layer.is_split else iter([(None, layer.tensors(device)[1:])])
        for _, tuned in blocks:
            with ThreadPoolExecutor(1) as pool:
                there = self._uploader.upload([tensor.reshape(-1) for tensor in tuned], pool)
            with on_stream(self._stream):
                self._hand_over(there)
                total += self.backend.squared_distances(there, pairs).cpu().numpy()
        return total

    def _measure_split(self, layer: Layer, zoo: Zoo, pool: ThreadPoolExecutor, split: int) -> _Request:
        """Measure a layer that is larger than the budget: block by block, its matrices a few models at a time."""
        models = len(zoo.models)
        request = _Request(layer, zoo, [], split)
        with on_stream(self._stream):
            total = torch.zeros(1, models, models, dtype=torch.float64, device=self.backend.device)
        for base, tuned in layer.blocks():
            there = self._uploader.upload([base, *tuned], pool)
            del base, tuned
            with on_stream(self._stream), self.backend.explaining_memory():
                self._hand_over(there)
                total += self.backend.inner_products([there])
        spectra: dict[int, _DeviceLayer] = {}
        if self._is_factorised(request):
            spectra = self._factorise_split(layer, pool, models)
        request.batch = _Batch(total, spectra)
        return request

    def _factorise_split(self, layer: Layer, pool: ThreadPoolExecutor, models: int) -> dict[int, _DeviceLayer]:
        parts = []
        for model in range(models):
            # One matrix and its base are held at a time, as on the processor; they may be more than the budget.
            ((_, base, tuned),) = layer.matrix_blocks(model, 0, layer.tensor.shape[0])
            there = self._uploader.upload([base, tuned], pool)
            del base, tuned
            with on_stream(self._stream), self.backend.explaining_memory():
                self._hand_over(there)
                parts += self.backend.spectra([Stack(there[0], there[1:])], self.top_k, self.spectrum_k)
        with on_stream(self._stream):
            whole = DeviceSpectra(*map(torch.cat, zip(*parts, strict=True)))
            return {0: _DeviceLayer(whole, self._overlaps({0: whole})[0])}
