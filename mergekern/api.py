"""compute_all: the one place where the stages are composed.

checkpoints -> layer stream -> kernels -> statistics -> metrics -> table
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergekern._internal.validation import positive_integer
from mergekern._internal.versions import versions
from mergekern.checkpoints import Checkpoint, LayerStream, Zoo, ZooTensor, open_zoo
from mergekern.checkpoints.formats import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError
from mergekern.functional.calibration import Calibration
from mergekern.functional.plan import Probes
from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.low_rank import on_cpu as low_rank_on_cpu
from mergekern.kernels.spectrum import on_cpu as spectrum_on_cpu
from mergekern.measurement import Measurement
from mergekern.measurement.layer_pass import Run, content_hashes
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.measurement.on_device import DeviceMeasurement
from mergekern.metrics import as_names, select
from mergekern.metrics.subspace import Frozen
from mergekern.progress import Progress
from mergekern.statistics import FunctionalStatistics, ZooStatistics
from mergekern.statistics.manifest import LayerEntry, Manifest
from mergekern.statistics.store import Store, writing
from mergekern.tables.metric_table import MetricTable


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
        metrics: "all" that the inputs allow (with `calibration` also those that run models), or names of metrics or
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
    >>> table.models
    ('a', 'b', 'c')
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
    statistics: str | os.PathLike[str] | Store | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> ZooStatistics:
    """Measure the statistics that metrics need, reading the weights once and running each model once.

    Arguments and errors as for `compute_all`; `checkpoints` may also be a `Zoo`, whose base and whose way of reading
    then hold, and `statistics` a store that the caller is writing to.
    """
    options: dict[str, Any] = {
        "metrics": metrics, "calibration": calibration, "top_k": top_k, "spectrum_k": spectrum_k, "device": device,
        "max_memory": max_memory, "on_mismatch": on_mismatch, "progress": progress, "io": io,
    }  # fmt: skip
    if statistics is not None:
        return ZooStatistics.load(measure_into(statistics, checkpoints, base, **options))
    run, functional, _, said = _measure(None, checkpoints, base, **options)
    sizes = run.measurement.top_k, run.measurement.spectrum_k
    return ZooStatistics(run.zoo.model_names, tuple(run.layers), *sizes, run.zoo.skipped, said, functional)


def measure_into(
    statistics: str | os.PathLike[str] | Store, checkpoints: Any, base: Any = None, **options: Any
) -> Path:
    """Measure as `measure` does, and return the folder, of which nothing is held in memory.

    Args:
        statistics, checkpoints, base, options: as for `measure`.
    """
    with writing(statistics) as store:
        run, _, keys, said = _measure(store, checkpoints, base, **options)
        store.finish(manifest_of(run, said, keys))
        return store.path


def _measure(
    store: Store | None, checkpoints: Any, base: Any, *, metrics: str | Iterable[str] = "all",
    calibration: Calibration | None = None, top_k: int = 10, spectrum_k: int = 100,
    device: str | torch.device = "auto", max_memory: int | None = None, on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None, io: IO = "mmap",
) -> tuple[Run, FunctionalStatistics, dict[str, str], dict[str, Any]]:  # fmt: skip
    """Return the finished run, what running the models gave, the keys of its blocks, and the provenance."""
    metrics = as_names(metrics)
    chosen = select(metrics)
    probed = frozenset(metric.needs for metric in chosen if metric.runs_models)
    if probed and calibration is None and "all" not in metrics:
        names = ", ".join(metric.name for metric in chosen if metric.runs_models)
        raise OptionError(f"{names}: models must be run for these; give calibration=")
    zoo = checkpoints
    with_spectrum = any(metric.needs == "spectra" for metric in chosen)
    measurement = choose_measurement(device, with_spectrum, top_k, spectrum_k, max_memory, store is not None)
    if not isinstance(checkpoints, Zoo):
        runs_models = calibration is not None and bool(probed)
        zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, needs_base=runs_models)
    probes = Probes(zoo, calibration, probed) if calibration is not None and probed else None
    run = Run(LayerStream(zoo, measurement.max_memory), measurement, store, progress=progress)
    run.measure()
    functional, keys = run.probe(probes)
    run.report("")
    return run, functional, keys, provenance(zoo, measurement, probes, run.entries)


def manifest_of(
    run: Run, said: dict[str, Any], functional: Mapping[str, str], part: tuple[int, int] = (1, 1)
) -> Manifest:
    """Return the manifest of what a run measured."""
    zoo = run.zoo
    sources = {checkpoint.name: checkpoint.location for checkpoint in zoo.checkpoints}
    return Manifest(
        zoo.model_names, run.entries, run.measurement.top_k, run.measurement.spectrum_k, zoo.skipped,
        said, sources, functional, zoo.model_names if functional else (), part,
    )  # fmt: skip


def choose_measurement(
    device: str | torch.device,
    with_spectrum: bool,
    top_k: int,
    spectrum_k: int,
    max_memory: int | None,
    with_bases: bool,
) -> Measurement:
    """Return what measures layers on a device; OptionError for one that is not there, or sizes that are none."""
    top_k, spectrum_k = positive_integer("top_k", top_k), positive_integer("spectrum_k", spectrum_k)
    backend = dispatch.choose(device)
    what = (with_spectrum, top_k, spectrum_k, torch.get_num_threads(), max_memory)
    if isinstance(backend, DeviceBackend):
        fallback = CpuMeasurement(*what, dispatch.backends()[0], with_bases)
        return DeviceMeasurement(*what, backend, with_bases, fallback)
    return CpuMeasurement(*what, backend, with_bases)


def provenance(
    zoo: Zoo, measurement: Measurement, probes: Probes | None, entries: Sequence[LayerEntry] = ()
) -> dict[str, Any]:
    """Return what a table says of how it was made; content hashes if all tensors were hashed."""
    dtypes = {
        checkpoint.name: sorted(str(dtype).removeprefix("torch.") for dtype in checkpoint.dtypes)
        for checkpoint in zoo.checkpoints
    }
    origins = {checkpoint.name: checkpoint.origin for checkpoint in zoo.checkpoints if checkpoint.origin}
    probed = {} if probes is None else {"calibration": probes.provenance()}
    return {
        **probed,
        "versions": versions(),
        **measurement.provenance(),
        "dtypes": dtypes,
        **({"origins": origins} if origins else {}),
        **({"content_hashes": content_hashes(zoo.model_names, entries)} if entries else {}),
    }


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
