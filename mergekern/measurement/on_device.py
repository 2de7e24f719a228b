"""Measuring on a GPU: layers are copied there as they come, and measured many at a time.

A layer passes through three states. It *waits* in the batch that is being filled, its tensors on the device or on their
way there. Once the batch is full it is *launched*: the kernels of all its layers are queued together, and what they
give stays on the device. It is *finished* when that is fetched.

The copies run on one stream and the kernels on another, so that a batch is measured while the next one is on its way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from mergekern.checkpoints import FactoredLayer, Layer, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.gram import distances_from_inner, wanted_pairs
from mergekern.kernels.spectrum import DeviceSpectra, Spectrum, Stack
from mergekern.kernels.transfer import Uploader, on_stream
from mergekern.measurement import Measurement, Pending
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.measurement.spectra import triplets_of
from mergekern.statistics import Bases, LayerStatistics, SpectrumStatistics

logger = logging.getLogger(__name__)

# Shares of the free memory of the device: for weights, and for what their factorisation needs beside them. The rest is
# for layers that are being copied and for the fragments of the allocator.
SHARE_OF_WEIGHTS = 0.4
SHARE_OF_WORKSPACE = 0.4
# A batch is full with this many matrices for each multiprocessor: a kernel that has one block a matrix fills the device
# twice, and later layers are copied meanwhile.
MATRICES_PER_MULTIPROCESSOR = 2
# It is also full with this share of the weights' budget: the layers behind it need room while it is measured.
BATCH_SHARE = 1 / 4


@dataclass(frozen=True, eq=False)
class DeviceLayer:
    """A layer that is measured on the device.

    Attributes:
        layer: the tensor of all models.
        zoo: the models.
        split: see `Measurement.begin`.
        is_factorised: whether spectra are wanted, and it is a matrix.
    """

    layer: Layer
    zoo: Zoo
    split: int
    is_factorised: bool


class _Factorised(NamedTuple):
    """Spectra of all models of a layer, and the overlaps (N, N) of each kind of their subspaces, on the device."""

    spectra: DeviceSpectra
    overlaps: dict[str, torch.Tensor]


class _Launched(NamedTuple):
    """What the device gives for a layer: inner products (N, N), and for matrices their factorisation."""

    inner: torch.Tensor
    factorised: _Factorised | None


@dataclass
class DeviceMeasurement(Measurement):
    """The measurement by the kernels of a device, in batches.

    Attributes:
        fallback: measures on the processor the layers with factors, and redoes factorisations that fail their check.
    """

    backend: DeviceBackend
    fallback: CpuMeasurement
    _waiting: dict[DeviceLayer, list[torch.Tensor]] = field(default_factory=dict)
    _launched: dict[DeviceLayer, _Launched] = field(default_factory=dict)
    _redone: int = 0
    # Layers are begun by one thread and finished by another.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    name = property(lambda self: self.backend.name)
    # Finishing a layer that still waits launches its batch as it is. With all layers begun that may be in flight, the
    # batch is as large as the budget allows, and not one layer.
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
        said = {"device": self.backend.description, "backend": self.backend.name, "redone_on_cpu": self._redone}
        return {**said, **self.said_of_extras}

    def hashes(
        self, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor, models: Sequence[int] | None = None
    ) -> list[str]:
        """Return the content hashes of a layer, made on all threads: one of them is slower than the bus."""
        return layer.content_hashes(models, pool.map)

    def begin(self, layer: Layer | FactoredLayer, zoo: Zoo, pool: ThreadPoolExecutor, *, split: int = 0) -> Pending:
        """Send one layer to the device, and launch the batch if that makes it full.

        All pairs are measured there also where `split` names some: reading the weights is what takes the time.
        """
        if isinstance(layer, FactoredLayer):
            return self.fallback.begin(layer, zoo, pool, split=split)
        begun = DeviceLayer(layer, zoo, split, self.with_spectrum and layer.tensor.is_matrix and not split)
        with self._lock:
            if layer.is_split:
                self._launched[begun] = self._in_blocks(begun, pool)
            else:
                self._waiting[begun] = self._uploader.upload(layer.tensors(self.backend.device), pool)
                layer.release()
                if self._is_full():
                    self._launch()
        return self.with_coordinates(partial(self._finish, begun), layer, pool, split)

    def _finish(self, begun: DeviceLayer) -> LayerStatistics:
        """Wait for the batch of a layer, and return the statistics of that layer."""
        with self._lock:
            if begun in self._waiting:
                self._launch()
            launched = self._launched.pop(begun)
        layer, split = begun.layer, begun.split
        with on_stream(self._stream):
            inner = launched.inner.cpu().numpy()
            if not np.isfinite(inner).all():
                if not all(layer.equal_to_base()):
                    raise non_finite(layer, begun.zoo)
                return self.fallback.finished(self.fallback.unchanged(layer, split))
            spectrum = None if launched.factorised is None else self._fetched(layer, launched.factorised)
        inner = np.where(wanted_pairs(len(inner), split), inner, 0.0)
        distance, spoilt = distances_from_inner(inner, split)
        if spoilt:
            i, j = np.array(spoilt).T
            distance[i, j] = distance[j, i] = self._squared_distances(layer, spoilt)
        return LayerStatistics(layer.tensor.name, layer.tensor.shape, inner, distance, spectrum)

    def _is_full(self) -> bool:
        """Tell whether the layers that wait are worth a launch."""
        matrices = sum(len(begun.zoo.models) for begun in self._waiting if begun.is_factorised)
        size = sum(begun.layer.nbytes for begun in self._waiting)
        enough = MATRICES_PER_MULTIPROCESSOR * self.backend.multiprocessors
        return matrices >= enough or size >= BATCH_SHARE * self.max_memory

    def _launch(self) -> None:
        """Queue the kernels for all layers that wait. Where that fails they still wait."""
        waiting = self._waiting
        with on_stream(self._stream), self.backend.explaining_memory():
            self._hand_over([tensor for tensors in waiting.values() for tensor in tensors])
            inner = self.backend.inner_products([[t.reshape(-1) for t in tensors] for tensors in waiting.values()])
            factorised = self._factorised(
                {begun: Stack(base, tuned) for begun, (base, *tuned) in waiting.items() if begun.is_factorised}
            )
        for position, begun in enumerate(waiting):
            self._launched[begun] = _Launched(inner[position], factorised.get(begun))
        self._waiting = {}

    def _hand_over(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let the kernels wait for the copies, and keep the memory until they are done."""
        if self._stream is not None and self._uploader.stream is not None:
            self._stream.wait_stream(self._uploader.stream)
            for tensor in tensors:
                tensor.record_stream(self._stream)

    def _factorised(self, matrices: Mapping[DeviceLayer, Stack]) -> dict[DeviceLayer, _Factorised]:
        parts: dict[DeviceLayer, list[DeviceSpectra]] = {begun: [] for begun in matrices}
        for together in self._packed(matrices):
            found = self.backend.spectra([stack for _, stack in together], self.top_k, self.spectrum_k)
            for (begun, _), part in zip(together, found, strict=True):
                parts[begun].append(part)
        return self._with_overlaps({begun: _joined(part) for begun, part in parts.items()})

    def _packed(self, matrices: Mapping[DeviceLayer, Stack]) -> Iterator[list[tuple[DeviceLayer, Stack]]]:
        """Yield stacks of one short side that the workspace holds together; a stack may come in several parts."""
        by_side: dict[int, list[tuple[DeviceLayer, Stack]]] = {}
        for begun, stack in matrices.items():
            by_side.setdefault(min(stack.base.shape), []).append((begun, stack))
        for stacks in by_side.values():
            together: list[tuple[DeviceLayer, Stack]] = []
            free = self._workspace
            for begun, (base, tuned) in stacks:
                each = self.backend.spectrum_workspace((base.shape[0], base.shape[1]), self.top_k)
                first = 0
                while first < len(tuned):
                    count = min(len(tuned) - first, free // each)
                    if count == 0 and not together:
                        count = 1  # whether it fits is for the device to say
                    if count > 0:
                        together.append((begun, Stack(base, tuned[first : first + count])))
                        free -= count * each
                        first += count
                    if first < len(tuned):
                        yield together
                        together, free = [], self._workspace
            if together:
                yield together

    def _with_overlaps(self, spectra: Mapping[DeviceLayer, DeviceSpectra]) -> dict[DeviceLayer, _Factorised]:
        """Return spectra with the overlaps of their subspaces; vectors of one length go in one launch."""
        by_shape: dict[torch.Size, list[tuple[DeviceLayer, str]]] = {}
        for begun, each in spectra.items():
            for side in Bases._fields:
                by_shape.setdefault(getattr(each, side).shape, []).append((begun, side))
        found: dict[tuple[DeviceLayer, str], torch.Tensor] = {}
        for same in by_shape.values():
            vectors = torch.stack([getattr(spectra[begun], side) for begun, side in same])
            found.update(zip(same, self.backend.overlap(vectors), strict=True))
        return {
            begun: _Factorised(each, {side: found[begun, side] for side in Bases._fields})
            for begun, each in spectra.items()
        }

    def _in_blocks(self, begun: DeviceLayer, pool: ThreadPoolExecutor) -> _Launched:
        """Measure a layer that is larger than the budget: block by block, its matrices one model at a time."""
        models = len(begun.zoo.models)
        with on_stream(self._stream):
            inner = torch.zeros(1, models, models, dtype=torch.float64, device=self.backend.device)
        for base, tuned in begun.layer.blocks():
            there = self._uploader.upload([base, *tuned], pool)
            del base, tuned
            with on_stream(self._stream), self.backend.explaining_memory():
                self._hand_over(there)
                inner += self.backend.inner_products([there])
        return _Launched(inner[0], self._factorised_one_by_one(begun, pool) if begun.is_factorised else None)

    def _factorised_one_by_one(self, begun: DeviceLayer, pool: ThreadPoolExecutor) -> _Factorised:
        parts = []
        for model in range(len(begun.zoo.models)):
            # One matrix and its base are held at a time, as on the processor; they may be more than the budget.
            ((_, base, tuned),) = begun.layer.matrix_blocks(model, 0, begun.layer.tensor.shape[0])
            there = self._uploader.upload([base, tuned], pool)
            del base, tuned
            with on_stream(self._stream), self.backend.explaining_memory():
                self._hand_over(there)
                parts += self.backend.spectra([Stack(there[0], there[1:])], self.top_k, self.spectrum_k)
        with on_stream(self._stream):
            return self._with_overlaps({begun: _joined(parts)})[begun]

    def _fetched(self, layer: Layer, factorised: _Factorised) -> SpectrumStatistics:
        """Return the statistics of a layer's spectra; where some failed their check, from spectra redone on the CPU."""
        spectra = factorised.spectra
        if not bool(spectra.good.all()):
            return self.fallback.overlaps(self._redo(layer, spectra))
        left_top, right_top, right_bottom = (factorised.overlaps[side].cpu().numpy() for side in Bases._fields)
        bases = Bases(*(getattr(spectra, side).cpu().numpy() for side in Bases._fields)) if self.with_bases else None
        interference = None
        if "interference" in self.extras:
            triplets = (getattr(spectra, part).cpu().numpy() for part in ("values", "left_top", "right_top"))
            interference = self.fallback.backend.interference(triplets_of(*triplets))
        return SpectrumStatistics(
            spectra.values.cpu().numpy(),
            spectra.rank.cpu().numpy(),
            left_top,
            right_top,
            right_bottom,
            k=spectra.left_top.shape[2],
            bases=bases,
            interference=interference,
        )

    def _redo(self, layer: Layer, spectra: DeviceSpectra) -> list[Spectrum]:
        """Return the spectra of all models on the host, those that failed their check factorised again."""
        on_host = DeviceSpectra(*(part.cpu() for part in spectra))
        bad = (~on_host.good).nonzero()[:, 0].tolist()
        logger.warning("%s: %d factorisations failed their check; redone on the CPU", layer.tensor.name, len(bad))
        self._redone += len(bad)
        return [
            self.fallback.factorise(layer, model) if model in bad else on_host.spectrum(model)
            for model in range(len(on_host.good))
        ]

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


def _joined(parts: Sequence[DeviceSpectra]) -> DeviceSpectra:
    """Return the spectra of all models of a layer, from those of some each."""
    return DeviceSpectra(*map(torch.cat, zip(*parts, strict=True)))
