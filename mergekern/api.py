"""compute_all and measure: the one place where the stages are composed.

checkpoints -> layer stream -> kernels -> statistics -> metrics -> table
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash

from mergekern._internal.validation import one_of
from mergekern._internal.versions import package_version, versions
from mergekern.checkpoints import LayerStream, Zoo, open_zoo
from mergekern.checkpoints.sources import IO, CheckpointLike, ZooLike
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError
from mergekern.functional.binding import Binding
from mergekern.functional.calibration import Calibration
from mergekern.functional.measure import measure_functional
from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.measurement import Measurement
from mergekern.measurement.destinations import InMemory, InStore
from mergekern.measurement.layer_pass import LayerPass
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.measurement.on_device import DeviceMeasurement
from mergekern.measurement.options import SVD_TOLERANCE, MeasureOptions, Svd
from mergekern.metrics.subspace import Frozen, SmallTensors
from mergekern.progress import Progress
from mergekern.statistics import FunctionalStatistics, ZooStatistics
from mergekern.statistics.manifest import LayerEntry, Manifest
from mergekern.statistics.store import Store, writing
from mergekern.tables.metric_table import MetricTable

logger = logging.getLogger(__name__)


def compute_all(
    checkpoints: ZooLike | Zoo,
    base: CheckpointLike | None = None,
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
    small_tensors: SmallTensors = "include",
    statistics: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
    svd: Svd = "exact",
    svd_tolerance: float = SVD_TOLERANCE,
) -> MetricTable:
    """Compute the pairwise mergeability metrics of N models fine-tuned from one base, for all pairs.

    The metrics are those of "Demystifying Mergeability" (arXiv 2601.22285), `mergekern.CATALOGUE`, and a few more that
    are asked for by name, `mergekern.ADDITIONAL`.

    Args:
        checkpoints: a folder of checkpoints (the one named `base.*` is the base), a sequence of paths, or a mapping
            name -> checkpoint. A checkpoint is a path (`.safetensors`, a Hugging Face folder, a PEFT folder with a LoRA
            adapter, `.pt`/`.pth`/`.bin`), a model's id on the Hugging Face Hub, a mapping name -> tensor or array, or a
            `torch.nn.Module`. Or a `Zoo` that is open already, whose base and whose way of reading then hold.
        base: the checkpoint that all were fine-tuned from; needed unless the folder has one, or all are LoRA adapters
            and no models are run.
        metrics: "all" of the study that the inputs allow (with `calibration` also those that run models), or names of
            metrics or of categories, also of `mergekern.ADDITIONAL`.
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
        small_tensors: "include" counts matrices with a side of at most top_k in the averages of subspaces, as in the
            published code, though they are constants there; "exclude" leaves them out.
        statistics: a folder in which the statistics of this run are kept. What is there for the same inputs (by
            content hash), options and version is used again, so that a killed run continues, and gives the same
            values; what belongs to other inputs or options is removed at the end.
        progress: called with a `Progress` at the start of every tensor, before a model is run, and at the end.
        io: "mmap" maps the files; "pread" reads them, which is faster on network disks.
        rename: parts of the models' tensor names to replace, OLD -> NEW, where the base lacks the name: the first place
            where the parts OLD stand between dots becomes NEW. An empty OLD is the beginning of every name, an empty
            NEW leaves the parts out. Wrappers such as `module.` or `_orig_mod.`, and prefixes that one renaming of all
            tensors adds, removes or moves, are seen without it, and the table's notes say so.
        svd: "exact", or "randomized", which takes less time on large matrices: then `MetricTable.error` has an estimate
            for every value, and the two metrics of bottom-k subspaces are not defined ("all" leaves them out).
        svd_tolerance: estimated error of a metric of one matrix, in (0, 1), at which a randomised factorisation ends.
            It also ends after a fixed number of passes: then the estimates are larger.

    Returns:
        A `MetricTable` with a row for each of the N(N−1)/2 pairs.

    Raises:
        OptionError: an unknown metric or device, no base, fewer than two models, duplicate names, a metric that needs
            `calibration` without it, or one of bottom-k subspaces by name with svd="randomized".
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
    one_of("frozen", frozen, ("exclude", "include"))
    one_of("small_tensors", small_tensors, ("include", "exclude"))
    options = MeasureOptions(
        metrics=metrics, top_k=top_k, spectrum_k=spectrum_k, device=device, max_memory=max_memory,
        on_mismatch=on_mismatch, io=io, rename=rename, svd=svd, svd_tolerance=svd_tolerance,
    )  # fmt: skip
    measured = measure(checkpoints, base, options, calibration=calibration, statistics=statistics, progress=progress)
    return MetricTable.from_statistics(
        measured, options.metrics, per_layer=per_layer, frozen=frozen, small_tensors=small_tensors
    )


def measure(
    checkpoints: ZooLike | Zoo,
    base: CheckpointLike | None = None,
    options: MeasureOptions | None = None,
    *,
    calibration: Calibration | None = None,
    statistics: str | os.PathLike[str] | Store | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ZooStatistics:
    """Measure the statistics that metrics need, reading the weights once and running each model once.

    Args:
        checkpoints, base: as for `compute_all`; or a `Zoo`, whose base and whose way of reading then hold.
        options: what is measured, and how; by default what all metrics need.
        calibration, progress: as for `compute_all`.
        statistics: as for `compute_all`; or a store that the caller is writing to.

    Raises:
        MergekernError: as for `compute_all`.

    >>> models = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}
    >>> measure(models, {"w": torch.zeros(2)}, MeasureOptions("task-vector geometry")).inner.tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    options = options or MeasureOptions()
    if statistics is not None:
        return ZooStatistics.load(
            measure_into(statistics, checkpoints, base, options, calibration=calibration, progress=progress)
        )
    measurement = choose_measurement(options, with_bases=False)
    opened = _open(checkpoints, base, options, calibration)
    memory = InMemory(measurement)
    layers = LayerPass(opened.stream(measurement), measurement, memory, progress)
    layers.run()
    functional, _ = _run_models(opened.binding, layers, None)
    layers.report("")
    zoo, provenance = opened.zoo, provenance_of_run(layers, opened.binding)
    return ZooStatistics(
        zoo.model_names, tuple(memory.layers), options.top_k, options.spectrum_k, zoo.skipped, provenance, functional
    )


def measure_into(
    statistics: str | os.PathLike[str] | Store,
    checkpoints: ZooLike | Zoo,
    base: CheckpointLike | None = None,
    options: MeasureOptions | None = None,
    *,
    calibration: Calibration | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Measure as `measure` does, and return the folder; nothing of the statistics is held in memory.

    Args:
        statistics: the folder, or a store that the caller is writing to.
        checkpoints, base, options, calibration, progress: as for `measure`.

    Raises:
        MergekernError: as for `compute_all`.
    """
    options = options or MeasureOptions()
    with writing(statistics) as store:
        measurement = choose_measurement(options, with_bases=True)
        opened = _open(checkpoints, base, options, calibration)
        stream = opened.stream(measurement)
        layers = LayerPass(stream, measurement, InStore(store, stream, measurement), progress)
        layers.run()
        _, keys = _run_models(opened.binding, layers, store)
        layers.report("")
        store.finish(manifest_of(layers, provenance_of_run(layers, opened.binding), keys))
        return store.path


class _Opened(NamedTuple):
    """A zoo, and the model that is bound to it where models are run."""

    zoo: Zoo
    binding: Binding | None

    def stream(self, measurement: Measurement) -> LayerStream:
        return LayerStream(self.zoo, measurement.max_memory)


def _open(
    checkpoints: ZooLike | Zoo, base: CheckpointLike | None, options: MeasureOptions, calibration: Calibration | None
) -> _Opened:
    """Open the checkpoints, and bind the model to them if a metric runs it."""
    kinds = options.functional_kinds
    if kinds and calibration is None and not options.asks_for_all:
        names = ", ".join(metric.name for metric in options.chosen if metric.runs_models)
        raise OptionError(f"{names}: models must be run for these; give calibration=")
    runs_models = calibration is not None and bool(kinds)
    zoo = checkpoints
    if not isinstance(zoo, Zoo):
        zoo = open_zoo(
            zoo, base, on_mismatch=options.on_mismatch, io=options.io, needs_base=runs_models, rename=options.rename
        )
    return _Opened(zoo, Binding(zoo, calibration, kinds) if calibration is not None and kinds else None)


def _run_models(
    binding: Binding | None, layers: LayerPass, store: Store | None
) -> tuple[FunctionalStatistics, dict[str, str]]:
    """Run the models, if they are to be; return what that gave, and the names of its blocks in the store by kind."""
    if binding is None:
        return FunctionalStatistics(), {}
    measurement = layers.measurement
    return measure_functional(
        binding, measurement.backend, measurement.threads, layers.stream.max_memory, store,
        [package_version("mergekern")], lambda what: layers.report("", what),
    )  # fmt: skip


def choose_measurement(options: MeasureOptions, *, with_bases: bool) -> Measurement:
    """Return what measures layers on the device of the options.

    Args:
        options: what is measured.
        with_bases: whether singular vectors are kept.

    Raises:
        OptionError: the device is not there.
    """
    backend = dispatch.choose(options.device)
    how: dict[str, Any] = {
        "with_spectrum": options.with_spectrum, "top_k": options.top_k, "spectrum_k": options.spectrum_k,
        "threads": torch.get_num_threads(), "max_memory": options.max_memory, "with_bases": with_bases,
        "extras": options.extras,
    }  # fmt: skip
    if options.is_randomized:
        how["svd_tolerance"] = options.svd_tolerance
    if isinstance(backend, DeviceBackend):
        fallback = CpuMeasurement(**how, backend=dispatch.backends()[0])
        return DeviceMeasurement(**how, backend=backend, fallback=fallback)
    return CpuMeasurement(**how, backend=backend)


def manifest_of(
    layers: LayerPass, provenance: dict[str, Any], functional: Mapping[str, str], part: tuple[int, int] = (1, 1)
) -> Manifest:
    """Return the manifest of what a pass measured.

    Args:
        layers: the pass, finished.
        provenance: what a table says of how it was made.
        functional: names of the blocks of what running the models gave, by kind.
        part: which of how many parts of the work on the zoo this is.
    """
    zoo, measurement = layers.zoo, layers.measurement
    sources = {checkpoint.name: checkpoint.location for checkpoint in zoo.checkpoints}
    return Manifest(
        zoo.model_names, layers.entries, measurement.top_k, measurement.spectrum_k, zoo.skipped,
        provenance, sources, functional, zoo.model_names if functional else (), part,
    )  # fmt: skip


def provenance_of_run(layers: LayerPass, binding: Binding | None, *, is_whole: bool = True) -> dict[str, Any]:
    """Return what a table says of how it was made.

    Args:
        layers: the pass, finished.
        binding: what the models were run by, if they were.
        is_whole: whether the pass measured all of the zoo, so that the content of every checkpoint is known.
    """
    zoo = layers.zoo
    dtypes = {
        checkpoint.name: sorted(str(dtype).removeprefix("torch.") for dtype in checkpoint.dtypes)
        for checkpoint in zoo.checkpoints
    }
    origins = {checkpoint.name: checkpoint.origin for checkpoint in zoo.checkpoints if checkpoint.origin}
    return {
        **({} if binding is None else {"calibration": binding.provenance()}),
        "versions": versions(),
        **layers.measurement.provenance(),
        "dtypes": dtypes,
        **({"origins": origins} if origins else {}),
        **({"notes": zoo.notes} if zoo.notes else {}),
        **({"left_out": list(zoo.left_out)} if zoo.left_out else {}),
        **({"content_hashes": content_hashes(zoo.model_names, layers.entries)} if is_whole else {}),
    }


def content_hashes(models: Sequence[str], entries: Sequence[LayerEntry]) -> dict[str, str]:
    """Return a hash of all tensors of the base and of each model, from those of each tensor.

    Args:
        models: their names.
        entries: one for every tensor, in file order.
    """
    hashers = [xxhash.xxh3_128() for _ in ("base", *models)]
    for entry in entries:
        for hasher, digest in zip(hashers, entry.hashes, strict=True):
            hasher.update(f"{entry.name}\0{digest}\0".encode())
    return {n: f"xxh3_128:{h.hexdigest()}" for n, h in zip(("base", *models), hashers, strict=True)}
