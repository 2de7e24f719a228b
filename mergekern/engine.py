"""compute_all: the one place where the stages are composed.

checkpoints -> layer stream -> kernels -> statistics -> metrics -> table
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash

from mergekern.calibration import Calibration
from mergekern.checkpoints import Checkpoint, FactoredLayer, Layer, LayerStream, Zoo, ZooTensor, open_zoo
from mergekern.checkpoints.formats import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import MergekernError, OptionError
from mergekern.kernels import dispatch, lapack
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.low_rank import on_cpu as low_rank_on_cpu
from mergekern.kernels.spectrum import on_cpu as spectrum_on_cpu
from mergekern.measurement import Measurement
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.measurement.on_device import DeviceMeasurement
from mergekern.metrics import as_names, select
from mergekern.metrics.subspace import Frozen
from mergekern.options import positive_integer
from mergekern.probes import Probes
from mergekern.progress import Progress
from mergekern.statistics import FunctionalStatistics, LayerStatistics, ZooStatistics
from mergekern.store import Store
from mergekern.table import MetricTable
from mergekern.versions import package_version, versions


def compute_all(
    checkpoints: Any,
    base: Any = None,
    *,
    metrics: str | Iterable[str] = "all",
    calibration: Calibration | None = None,
    top_k: int = 10,
    spectrum_k: int = 100,
    per_layer: bool = False,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    frozen: Frozen = "exclude",
    statistics: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> MetricTable:
    """Compute the pairwise mergeability metrics of N models fine-tuned from one base, for all pairs.

    The metrics are those of "Demystifying Mergeability" (arXiv 2601.22285); `mergekern.CATALOGUE` lists them.

    Args:
        checkpoints: a folder of checkpoints (the one named `base.*` is the base), a sequence of paths, or a mapping
            name -> checkpoint. A checkpoint is a path (`.safetensors`, a Hugging Face folder, a PEFT folder with a LoRA
            adapter, `.pt`/`.pth`/`.bin`), a model's id on the Hugging Face Hub, a mapping name -> tensor or array, or a
            `torch.nn.Module`.
        base: the checkpoint that all were fine-tuned from; needed unless the folder has one, or all are LoRA adapters
            and no models are run.
        metrics: "all" that the inputs allow (18 of the weights alone, 28 with `calibration`), or names of metrics or
            of categories.
        calibration: the model, samples and heads that the activation and gradient metrics are computed with. Models
            run only if such a metric is asked for.
        top_k: dimension of the top and bottom singular subspaces.
        spectrum_k: number of leading singular values that are compared.
        per_layer: also give each metric for every tensor alone.
        device: "cpu", a CUDA device such as "cuda:1", or "auto": the current CUDA device if its kernels can be had.
        max_memory: bytes of weights held at a time, on the device if there is one; larger tensors are read in
            blocks. Default 1 GiB, and on a CUDA device 2/5 of what is free there.
        on_mismatch: "error" reports every tensor that is missing, extra or of another shape; "skip" leaves
            those out and lists them in the table's notes.
        frozen: "exclude" leaves tensors equal to the base out of the averages over layers; "include" counts them
            as the published code does.
        statistics: a folder in which the statistics of this run are kept. What is there for the same inputs (by
            content hash), options and version is used again, so that a killed run continues, and gives the same
            values; what belongs to other inputs or options is removed at the end.
        progress: called with a `Progress` at the start of every tensor, before a model is run, and at the end.
        io: "mmap" maps the files; "pread" reads them, which is faster on network disks.

    Returns:
        A `MetricTable` with a row for each of the N(N−1)/2 pairs.

    Raises:
        OptionError: an unknown metric or device, no base, fewer than two models, duplicate names, a metric that needs
            `calibration` without it.
        CalibrationError: samples, heads or layers that do not fit the models, a NaN loss.
        CheckpointError: a file that is missing, truncated, corrupt or of an unsupported kind.
        MismatchError: checkpoints that do not fit together.
        NonFiniteError: NaN or infinite weights.
        StatisticsError: `statistics` is a path to something else.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> base = {"w": torch.randn(16, 12, generator=generator)}
    >>> zoo = {name: {"w": base["w"] + 0.1 * torch.randn(16, 12, generator=generator)} for name in "abc"}
    >>> table = compute_all(zoo, base)
    >>> table
    MetricTable(3 models, 3 pairs, 18 metrics)
    >>> table.to_pandas()["task_vector_cosine_similarity"].round(2).to_dict()
    {('a', 'b'): -0.01, ('a', 'c'): 0.08, ('b', 'c'): 0.07}
    """
    if frozen not in ("exclude", "include"):
        raise OptionError(f"frozen must be 'exclude' or 'include', not {frozen!r}")
    metrics = as_names(metrics)
    measured = measure(
        checkpoints, base, metrics=metrics, calibration=calibration, top_k=top_k, spectrum_k=spectrum_k, device=device,
        max_memory=max_memory, on_mismatch=on_mismatch, statistics=statistics, progress=progress, io=io,
    )  # fmt: skip
    return MetricTable.from_statistics(measured, metrics, per_layer=per_layer, frozen=frozen)


def measure(
    checkpoints: Any,
    base: Any = None,
    *,
    metrics: str | Iterable[str] = "all",
    calibration: Calibration | None = None,
    top_k: int = 10,
    spectrum_k: int = 100,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    statistics: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> ZooStatistics:
    """Measure the statistics that metrics need, reading the weights once and running each model once.

    Arguments and errors as for `compute_all`; `checkpoints` may also be a `Zoo`, whose base and whose way of reading
    then hold.
    """
    metrics = as_names(metrics)
    chosen = select(metrics)
    probed = frozenset(metric.needs for metric in chosen if metric.runs_models)
    if probed and calibration is None and "all" not in metrics:
        names = ", ".join(metric.name for metric in chosen if metric.runs_models)
        raise OptionError(f"{names}: models must be run for these; give calibration=")
    top_k, spectrum_k = positive_integer("top_k", top_k), positive_integer("spectrum_k", spectrum_k)
    backend = dispatch.choose(device)
    with_spectrum = any(metric.needs == "spectra" for metric in chosen)
    measurement = _measurement(backend, with_spectrum, top_k, spectrum_k, max_memory, statistics is not None)
    zoo = checkpoints
    if not isinstance(checkpoints, Zoo):
        runs_models = calibration is not None and bool(probed)
        zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, needs_base=runs_models)
    stream = LayerStream(zoo, measurement.max_memory)
    probes = Probes(zoo, calibration, probed) if calibration is not None and probed else None
    store = Store(Path(statistics)) if statistics is not None else None
    try:
        return _Run(zoo, measurement, store, probes).measure(stream, progress)
    except MergekernError:
        if store is not None:
            store.undo()
        raise


def _measurement(
    backend: dispatch.Backend | DeviceBackend,
    with_spectrum: bool,
    top_k: int,
    spectrum_k: int,
    max_memory: int | None,
    with_bases: bool,
) -> Measurement:
    what = (with_spectrum, top_k, spectrum_k, torch.get_num_threads(), max_memory)
    if isinstance(backend, DeviceBackend):
        fallback = CpuMeasurement(*what, dispatch.backends()[0], with_bases)
        return DeviceMeasurement(*what, backend, with_bases, fallback)
    return CpuMeasurement(*what, backend, with_bases)


class _Begun(NamedTuple):
    """A layer in flight: hashed, and either found in the store or begun to be measured."""

    hashes: list[str]
    key: str | None
    found: LayerStatistics | None
    begun: Any


class _Run:
    """One pass over the layers of a zoo.

    A thread of its own reads ahead: it pages a layer in, hashes it, measures its Gram (work bound by memory) and queues
    its factorisations (bound by arithmetic), while the pool factorises the layers before it.
    """

    def __init__(self, zoo: Zoo, measurement: Measurement, store: Store | None, probes: Probes | None) -> None:
        self.zoo, self.measurement, self.store, self.probes = zoo, measurement, store, probes
        self.keys: list[str] = []
        self.hashers = [xxhash.xxh3_128() for _ in zoo.checkpoints]

    def measure(self, stream: LayerStream, progress: Callable[[Progress], None] | None) -> ZooStatistics:
        began, most = time.perf_counter(), self.measurement.layers_ahead
        sizes = [self.zoo.nbytes(tensor) for tensor in self.zoo.tensors]
        layers: list[LayerStatistics] = []
        ahead: deque[tuple[Layer | FactoredLayer, Future[_Begun]]] = deque()

        def report(tensor: str, probe: str = "") -> None:
            if progress is not None:
                done, seconds = len(layers), time.perf_counter() - began
                progress(Progress(tensor, done, len(sizes), sum(sizes[:done]), sum(sizes), seconds, probe))

        def finish_first() -> None:
            if self.measurement.in_batches:
                ahead[-1][1].result()  # a batch is as large as it can be
            layer, begun = ahead.popleft()
            report(layer.tensor.name)
            layers.append(self._finish(layer, begun.result()))
            layer.release()

        with lapack.single_threaded_pool(self.measurement.threads) as pool, _reader() as reader:
            for layer in stream.with_factors():
                while ahead and not stream.hold_together([layer, *(other for other, _ in ahead)], most):
                    finish_first()
                ahead.append((layer, reader.submit(self._begin, layer, pool)))
            while ahead:
                finish_first()
        functional, functional_keys = self._probe(stream.max_memory, lambda what: report("", what))
        report("")
        result = ZooStatistics(
            self.zoo.model_names,
            tuple(layers),
            self.measurement.top_k,
            self.measurement.spectrum_k,
            self.zoo.skipped,
            self._provenance(),
            functional,
        )
        if self.store is not None:
            self.store.finish(result, self.keys, functional_keys)
        return result

    def _probe(self, max_memory: int, report: Callable[[str], None]) -> tuple[FunctionalStatistics, dict[str, str]]:
        if self.probes is None:
            return FunctionalStatistics(), {}
        backend, threads = self.measurement.backend, self.measurement.threads
        return self.probes.measure(backend, threads, max_memory, self.store, [package_version("mergekern")], report)

    def _begin(self, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor) -> _Begun:
        hashes = self.measurement.hashes(layer, pool)
        key = None
        if self.store is not None:
            measurement = self.measurement
            how = [package_version("mergekern"), measurement.name, measurement.top_k, measurement.spectrum_k]
            key = self.store.key(layer.tensor.name, layer.tensor.shape, hashes, how)
            if (kept := self.store.get(key, measurement.with_spectrum)) is not None:
                return _Begun(hashes, key, kept, None)
        return _Begun(hashes, key, None, self.measurement.begin(layer, self.zoo, pool))

    def _finish(self, layer: Layer | FactoredLayer, begun: _Begun) -> LayerStatistics:
        for hasher, digest in zip(self.hashers, begun.hashes, strict=True):
            hasher.update(f"{layer.tensor.name}\0{digest}\0".encode())
        if begun.key is not None:
            self.keys.append(begun.key)
        if begun.found is not None:
            return begun.found
        measured = self.measurement.finish(begun.begun)
        if self.store is not None and begun.key is not None:
            self.store.put(begun.key, measured)
        return measured.without_bases()

    def _provenance(self) -> dict[str, object]:
        dtypes = {
            checkpoint.name: sorted(str(dtype).removeprefix("torch.") for dtype in checkpoint.dtypes)
            for checkpoint in self.zoo.checkpoints
        }
        names = [checkpoint.name for checkpoint in self.zoo.checkpoints]
        origins = {checkpoint.name: checkpoint.origin for checkpoint in self.zoo.checkpoints if checkpoint.origin}
        probed = {} if self.probes is None else {"calibration": self.probes.provenance()}
        return {
            **probed,
            "versions": versions(),
            **self.measurement.provenance(),
            "dtypes": dtypes,
            **({"origins": origins} if origins else {}),
            "content_hashes": {n: f"xxh3_128:{h.hexdigest()}" for n, h in zip(names, self.hashers, strict=True)},
        }


@contextlib.contextmanager
def _reader() -> Iterator[ThreadPoolExecutor]:
    reader = ThreadPoolExecutor(1, thread_name_prefix="mergekern-reader")
    try:
        yield reader
    finally:
        reader.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        bytes_read: of weights; tensors larger than the budget are read several times.
        peak_memory: estimate of the bytes allocated at once, beside mapped files and the interpreter itself.
    """

    bytes_read: int
    peak_memory: int


def plan(
    zoo: Zoo, metrics: str | Iterable[str] = "all", *, top_k: int = 10, max_memory: int | None = None, io: IO = "mmap"
) -> Plan:
    """Return what measuring a zoo will take, without reading its weights."""
    top_k = positive_integer("top_k", top_k)
    budget = LayerStream(zoo, max_memory).max_memory
    with_spectrum = any(metric.needs == "spectra" for metric in select(metrics))
    threads = torch.get_num_threads()
    total = held = working = 0
    for tensor in zoo.tensors:
        size, changes = zoo.nbytes(tensor), zoo.changes(tensor)
        whole = changes.count("whole")
        is_split = size > budget
        # Split tensors are read once to hash them, once for the Gram matrix, and twice for each spectrum.
        total += size * (2 if is_split else 1)
        widened = any(c.tensors[n].read_dtype != c.tensors[n].dtype for c, n in _stored(zoo, tensor))
        if io == "pread" or is_split or widened:
            held += size
        if "factors" in changes:
            ranks = [c.factors(n).left.shape[1] for c, n in _stored(zoo, tensor) if c.change(n) == "factors"]
            flat = (tensor.shape[0], math.prod(tensor.shape[1:]))
            working = max(working, threads * low_rank_on_cpu.workspace(ranks, flat, budget // (2 * threads)))
        if with_spectrum and tensor.is_matrix and whole:
            shape = (tensor.shape[0], tensor.shape[1])
            if is_split:
                base_size = zoo.base.tensors[tensor.names[0]].nbytes
                total += 2 * (size - base_size + whole * base_size)
            # The vectors of one layer, their stack, and those of the layer that is ahead.
            vectors = 3 * 4 * whole * min(top_k, *shape) * (shape[0] + 2 * shape[1])
            working = max(working, threads * spectrum_on_cpu.workspace(shape, top_k) + vectors)
    return Plan(total, min(held, budget) + working)


def _stored(zoo: Zoo, tensor: ZooTensor) -> Iterable[tuple[Checkpoint, str]]:
    return zip(zoo.checkpoints, tensor.names, strict=True)
