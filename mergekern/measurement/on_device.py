"""Measuring on a GPU: layers are copied there as they come, and measured many at a time.

A layer passes through three states. It *waits* in the batch that is being filled, its tensors on the device or on their
way there. Once the batch is full it is *launched*: the kernels of all its layers are queued together, and the copies of
what they give behind them. It is *finished* when these have come.

Copies to the device, kernels, and copies of results have a queue each (`kernels.streams`): a batch is measured while
the next one is on its way, and the results of a batch wait for no other. A thread of its own launches, so that kernels
that the host must steer, as those of a randomised factorisation, do not hold up the copies.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from mergekern.checkpoints import FactoredLayer, Layer, Zoo
from mergekern.checkpoints.stream import non_finite
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.gram import distances_from_inner, wanted_pairs
from mergekern.kernels.signs import DeviceSigns
from mergekern.kernels.spectrum import DeviceSpectra, Spectrum, Stack
from mergekern.kernels.streams import Event
from mergekern.kernels.transfer import Uploader
from mergekern.measurement import Measurement, Pending
from mergekern.measurement.device_coordinates import coordinate_statistics, device_signs
from mergekern.measurement.device_spectra import Factorisation, Factorised, Part
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.statistics import Bases, LayerStatistics, SpectrumErrors, SpectrumStatistics

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
# Blocks of one large layer that are on the device at a time: one is measured, and one on its way.
BLOCKS_IN_FLIGHT = 2


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


class _Found(NamedTuple):
    """What the kernels give for a layer, on the device; None where it is not wanted."""

    inner: torch.Tensor
    factorised: Factorised | None
    signs: DeviceSigns | None = None


class _Spectra(NamedTuple):
    """What the device gives for the matrices of a layer, fetched to the host.

    Attributes:
        values, rank, good: see `DeviceSpectra`, of all models.
        overlaps: (N, N) of each kind of subspace.
        vectors: the singular vectors that are wanted, by kind.
        interference: (N, N) of leading singular triplets; None where it is not wanted.
        factorised: the factorisation, still on the device: one that fails its check is looked at there.
    """

    values: torch.Tensor
    rank: torch.Tensor
    good: torch.Tensor
    overlaps: dict[str, torch.Tensor]
    vectors: dict[str, torch.Tensor]
    interference: torch.Tensor | None
    factorised: Factorised


class _Results(NamedTuple):
    """What the device gives for a layer, fetched to the host; valid once `fetched` has come.

    Attributes:
        inner: inner products (N, N).
        spectra: spectra of all models; None where nothing is factorised.
        signs: where task vectors agree in sign; None where it is not wanted, or measured on the processor.
        fetched: the event behind the copies.
    """

    inner: torch.Tensor
    spectra: _Spectra | None
    signs: DeviceSigns | None
    fetched: Event


@dataclass
class DeviceMeasurement(Measurement):
    """The measurement by the kernels of a device, in batches.

    Attributes:
        fallback: measures on the processor the layers with factors, and redoes factorisations that fail their check.
    """

    backend: DeviceBackend
    fallback: CpuMeasurement
    _waiting: dict[DeviceLayer, list[torch.Tensor]] = field(default_factory=dict)
    _launched: dict[DeviceLayer, Future[dict[DeviceLayer, _Results]]] = field(default_factory=dict)
    _redone: int = 0
    # Layers are begun by one thread, launched by another, and finished by a third. Neither the buffers of uploads nor
    # the compilers of kernels are for several threads. Nothing that takes one of these locks takes an earlier one.
    _state: threading.RLock = field(default_factory=threading.RLock)
    _uploading: threading.Lock = field(default_factory=threading.Lock)
    _launching: threading.Lock = field(default_factory=threading.Lock)

    name = property(lambda self: self.backend.name)
    # Finishing a layer that still waits launches its batch as it is. With all layers begun that may be in flight, the
    # batch is as large as the budget allows, and not one layer.
    in_batches = property(lambda self: True)
    layers_ahead = property(lambda self: 1 << 20)  # the budget is what limits them

    def __post_init__(self) -> None:
        free = self.backend.free_memory()
        # On the device, where the default is a share of what is free.
        self.max_memory: int = int(SHARE_OF_WEIGHTS * free) if self.max_memory is None else self.max_memory
        workspace = int(SHARE_OF_WORKSPACE * free)
        self._factorisation: Factorisation[DeviceLayer] = Factorisation(
            self.backend, self.top_k, self.spectrum_k, self.svd_tolerance, workspace, "interference" in self.extras
        )
        self._streams = self.backend.streams()
        self._uploader = Uploader(self.backend.device, self._streams.stream("copies"))
        self._launcher = ThreadPoolExecutor(1, thread_name_prefix="mergekern-launcher")

    def provenance(self) -> dict[str, object]:
        """Return "device", "backend", and how many factorisations failed their check and were redone on the CPU."""
        of_fallback = self.fallback.provenance()
        svd = {"svd": of_fallback["svd"]} if "svd" in of_fallback else {}
        said = {"device": self.backend.description, "backend": self.backend.name, "redone_on_cpu": self._redone}
        return {**said, **svd, **self.said_of_extras}

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
        if layer.is_split:
            results: Future[dict[DeviceLayer, _Results]] = Future()
            results.set_result({begun: self._in_blocks(begun, pool)})
            self._launched[begun] = results
            # Thresholds take several reads of every block, which would all go through the bus.
            return self.with_coordinates(partial(self._finish, begun), layer, pool, split)
        there = self._upload(layer.tensors(self.backend.device), pool, layer.tensor.name)
        layer.release()
        with self._state:
            self._waiting[begun] = there
            if self._is_full():
                self._launch()
        return partial(self._finish, begun)

    def close(self) -> None:
        """See `Measurement`; nothing can be begun afterwards."""
        self._launcher.shutdown(cancel_futures=True)

    def _upload(self, tensors: Sequence[torch.Tensor], pool: ThreadPoolExecutor, what: str) -> list[torch.Tensor]:
        """Return tensors on the device, or on their way there."""
        with self._uploading, self.backend.explaining_memory(), self._streams.on("copies", what):
            return self._uploader.upload(tensors, pool)

    def _finish(self, begun: DeviceLayer) -> LayerStatistics:
        """Wait for the batch of a layer, and return the statistics of that layer."""
        with self._state:
            if begun in self._waiting:
                self._launch()
            batch = self._launched.pop(begun)
        results = batch.result()[begun]
        results.fetched.synchronize()
        layer, split = begun.layer, begun.split
        coordinates = None if results.signs is None else coordinate_statistics(results.signs, split)
        inner = results.inner.numpy()
        if not np.isfinite(inner).all():
            if not all(layer.equal_to_base()):
                raise non_finite(layer, begun.zoo)
            return replace(self.fallback.finished(self.fallback.unchanged(layer, split)), coordinates=coordinates)
        spectrum = None if results.spectra is None else self._statistics(layer, results.spectra)
        inner = np.where(wanted_pairs(len(inner), split), inner, 0.0)
        distance, spoilt = distances_from_inner(inner, split)
        if spoilt:
            i, j = np.array(spoilt).T
            distance[i, j] = distance[j, i] = self._squared_distances(layer, spoilt)
        return LayerStatistics(
            layer.tensor.name, layer.tensor.shape, inner, distance, spectrum, coordinates=coordinates
        )

    def _is_full(self) -> bool:
        """Tell whether the layers that wait are worth a launch."""
        matrices = sum(len(begun.zoo.models) for begun in self._waiting if begun.is_factorised)
        size = sum(begun.layer.nbytes for begun in self._waiting)
        enough = MATRICES_PER_MULTIPROCESSOR * self.backend.multiprocessors
        return matrices >= enough or size >= BATCH_SHARE * self.max_memory

    def _launch(self) -> None:
        """Let the kernels of all layers that wait be queued, behind the copies of these."""
        batch, self._waiting = self._waiting, {}
        results = self._launcher.submit(self._measured, batch, self._streams.record("copies"))
        self._launched.update(dict.fromkeys(batch, results))

    def _measured(self, batch: Mapping[DeviceLayer, list[torch.Tensor]], copied: Event) -> dict[DeviceLayer, _Results]:
        names = {begun: begun.layer.tensor.name for begun in batch}
        what = f"{len(batch)} tensors from {next(iter(names.values()))} on"
        with self._launching, self.backend.explaining_memory():
            with self._streams.on("kernels", what):
                self._streams.wait("kernels", copied)
                self._streams.keep([tensor for tensors in batch.values() for tensor in tensors], "kernels")
                flat = [[tensor.reshape(-1) for tensor in tensors] for tensors in batch.values()]
                inner = _for_each(flat, self.backend.inner_products)
                signs: list[DeviceSigns | None] = [None] * len(flat)
                if "coordinates" in self.extras:
                    signs = _for_each(flat, partial(device_signs, self.backend))
                matrices = {begun: Stack(base, tuned) for begun, (base, *tuned) in batch.items() if begun.is_factorised}
                factorised = self._factorisation.factorise(matrices, names)
            each = zip(batch, inner, signs, strict=True)
            return self._fetched({begun: _Found(own, factorised.get(begun), its) for begun, own, its in each}, what)

    def _fetched(self, given: Mapping[DeviceLayer, _Found], what: str) -> dict[DeviceLayer, _Results]:
        """Queue the copies of what the kernels that are queued give for each layer."""
        streams = self._streams
        streams.wait("results", streams.record("kernels"))
        fetched: dict[DeviceLayer, tuple[torch.Tensor, _Spectra | None, DeviceSigns | None]] = {}
        with streams.on("results", what):

            def to_host(tensor: torch.Tensor) -> torch.Tensor:
                streams.keep([tensor], "results")
                return streams.fetch(tensor)

            for begun, (inner, factorised, signs) in given.items():
                fetched[begun] = (
                    to_host(inner),
                    None if factorised is None else self._spectra_fetched(factorised, to_host),
                    None if signs is None else DeviceSigns(*map(to_host, signs)),
                )
        event = streams.record("results")
        return {begun: _Results(*parts, event) for begun, parts in fetched.items()}

    def _spectra_fetched(self, factorised: Factorised, to_host: Callable[[torch.Tensor], torch.Tensor]) -> _Spectra:
        spectra, interference = factorised.spectra, factorised.interference
        return _Spectra(
            to_host(spectra.values),
            to_host(spectra.rank),
            to_host(spectra.good),
            {side: to_host(each) for side, each in factorised.overlaps.items()},
            {side: to_host(getattr(spectra, side)) for side in (Bases._fields if self.with_bases else ())},
            None if interference is None else to_host(interference),
            factorised,
        )

    def _in_blocks(self, begun: DeviceLayer, pool: ThreadPoolExecutor) -> _Results:
        """Measure a layer that is larger than the budget: block by block, its matrices one model at a time."""
        models, name = len(begun.zoo.models), begun.layer.tensor.name
        with self._launching, self._streams.on("kernels", name):
            inner = torch.zeros(1, models, models, dtype=torch.float64, device=self.backend.device)
        done: deque[Event] = deque()
        for base, tuned in begun.layer.blocks():
            there = self._upload([base, *tuned], pool, name)
            del base, tuned
            with self._on_uploaded(there, name):
                inner += self.backend.inner_products([there])
            self._wait_for_room(done)
        factorised = self._factorised_one_by_one(begun, pool, done) if begun.is_factorised else None
        with self._launching:
            return self._fetched({begun: _Found(inner[0], factorised)}, name)[begun]

    def _factorised_one_by_one(self, begun: DeviceLayer, pool: ThreadPoolExecutor, done: deque[Event]) -> Factorised:
        name = begun.layer.tensor.name
        parts: list[Part] = []
        for model in range(len(begun.zoo.models)):
            # One matrix and its base are held at a time, as on the processor; they may be more than the budget.
            ((_, base, tuned),) = begun.layer.matrix_blocks(model, 0, begun.layer.tensor.shape[0])
            there = self._upload([base, tuned], pool, name)
            del base, tuned
            with self._on_uploaded(there, name):
                parts += self._factorisation.parts([Stack(there[0], there[1:])], [name])
            self._wait_for_room(done)
        with self._launching, self._streams.on("kernels", name):
            return self._factorisation.joined(begun, parts)

    @contextlib.contextmanager
    def _on_uploaded(self, tensors: Sequence[torch.Tensor], what: str) -> Iterator[None]:
        """Queue kernels behind the copies of tensors, and keep the memory of these until they are done."""
        copied = self._streams.record("copies")
        with self._launching, self.backend.explaining_memory(), self._streams.on("kernels", what):
            self._streams.wait("kernels", copied)
            self._streams.keep(tensors, "kernels")
            yield

    def _wait_for_room(self, done: deque[Event]) -> None:
        """Note that a block is queued, and wait until no more than BLOCKS_IN_FLIGHT are not measured."""
        done.append(self._streams.record("kernels"))
        if len(done) >= BLOCKS_IN_FLIGHT:
            done.popleft().synchronize()

    def _statistics(self, layer: Layer, spectra: _Spectra) -> SpectrumStatistics:
        """Return the statistics of a layer's spectra; where some failed their check, from spectra redone on the CPU."""
        values, factorised = spectra.values.numpy(), spectra.factorised
        if not spectra.good.all():
            return self.fallback.overlaps(self._redo(layer, factorised))
        missing = np.full((len(values),) * 2, np.nan)
        left_top, right_top, right_bottom = (
            spectra.overlaps[side].numpy() if side in spectra.overlaps else missing for side in Bases._fields
        )
        return SpectrumStatistics(
            values,
            spectra.rank.numpy(),
            left_top,
            right_top,
            right_bottom,
            k=factorised.spectra.left_top.shape[2],
            bases=Bases(**{side: each.numpy() for side, each in spectra.vectors.items()}) if self.with_bases else None,
            errors=None if factorised.estimates is None else SpectrumErrors(*factorised.estimates),
            interference=None if spectra.interference is None else spectra.interference.numpy(),
        )

    def _redo(self, layer: Layer, factorised: Factorised) -> list[Spectrum]:
        """Return the spectra of all models on the host, those that failed their check factorised again."""
        on_host = DeviceSpectra(*(part.cpu() for part in factorised.spectra))
        bad = (~on_host.good).nonzero()[:, 0].tolist()
        logger.warning("%s: %d factorisations failed their check; redone on the CPU", layer.tensor.name, len(bad))
        self._redone += len(bad)
        return [
            self.fallback.factorise(layer, model) if model in bad else factorised.spectrum(on_host, model)
            for model in range(len(on_host.good))
        ]

    def _squared_distances(self, layer: Layer, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return squared distances of pairs for which the inner products cancel; the weights are sent once more."""
        total = np.zeros(len(pairs))
        device = self.backend.device
        blocks = layer.blocks() if layer.is_split else iter([(None, layer.tensors(device)[1:])])
        for _, tuned in blocks:
            with ThreadPoolExecutor(1) as pool:
                there = self._upload([tensor.reshape(-1) for tensor in tuned], pool, layer.tensor.name)
            with self._on_uploaded(there, layer.tensor.name):
                total += self.backend.squared_distances(there, pairs).cpu().numpy()
        return total


def _for_each(
    layers: Sequence[Sequence[torch.Tensor]], kernel: Callable[[Sequence[Sequence[torch.Tensor]]], Iterable]
) -> list:
    """Return what a kernel gives for each layer. Layers of one number of models go in one launch."""
    found: dict[int, Any] = {}
    for count in dict.fromkeys(map(len, layers)):
        at = [position for position, layer in enumerate(layers) if len(layer) == count]
        found.update(zip(at, kernel([layers[position] for position in at]), strict=True))
    return [found[position] for position in range(len(layers))]
