"""merge and merge_all: streams the tensors of a zoo through merges, into memory or into files."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from mergekern._internal.versions import package_version
from mergekern.checkpoints import LayerStream, Zoo, open_zoo
from mergekern.checkpoints.sharded import Sharded
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.writer import Writer, check_target, layout
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError, OutputError, did_you_mean
from mergekern.kernels import dispatch, lapack
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.merging.job import Job, SharedLayer, prepare
from mergekern.merging.on_device import DeviceRoute
from mergekern.merging.output import Output, StateDict, ToFile
from mergekern.merging.recipe import Method, plain
from mergekern.merging.registry import find_method, find_methods
from mergekern.merging.route import CpuRoute, Route
from mergekern.progress import Progress

DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
# Merged models that merge_all makes for a callback in one pass over the zoo: as many as fit in memory.
MERGED_BYTES = 4 << 30
_UNKNOWN_HASH = "0" * 32

Weights = Mapping[str, float] | Sequence[float] | None


def merge(
    checkpoints: Any,
    base: Any = None,
    method: str = "task_arithmetic",
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    weights: Weights = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
    **options: Any,
) -> StateDict | Path:
    """Merge two or more models fine-tuned from one base.

    Args:
        checkpoints: a folder of checkpoints (the one named `base.*` is the base), a sequence of paths, or a mapping
            name -> checkpoint; see `compute_all`.
        base: the checkpoint that all were fine-tuned from; needed unless the folder has one.
        method: one of `mergekern.METHODS`.
        output: a `.safetensors` file, or, under any other name and where the base is a folder, a folder: then
            configuration and tokenizer files are copied and the shards are those of the base. None returns the tensors.
        overwrite: whether `output` is replaced if it is there.
        weights: of the models, by name or in their order; 1 each by default. Means are weighted means; otherwise
            each task vector is multiplied by its weight. Only task_arithmetic takes negative ones.
        dtype: of all float tensors of the result; by default each has the base's.
        device: "cpu", a CUDA device such as "cuda:1", or "auto": the current CUDA device if its kernels can be had.
            What is merged element by element has the same bits everywhere; by singular vectors, to 1e-8 of the task
            matrices.
        max_memory: bytes of weights held at a time, on the device if there is one; larger tensors are merged in blocks
            where the method works element by element, and whole where it needs a matrix. Default 1 GiB, and on a CUDA
            device 2/5 of what is free there.
        on_mismatch: "error", or "skip", which takes tensors that not all checkpoints share from the base.
        progress: called with a `Progress` at the start of every tensor and at the end.
        io: "mmap" maps the files; "pread" reads them.
        **options: of the method; see `mergekern.METHODS[method].defaults`.

    Returns:
        The merged state dict, name -> tensor, with every name of the base (integer buffers are the base's, tied names
        share one tensor); or the path written.

    Raises:
        OptionError: an unknown method, option, dtype or device; a value out of range.
        OutputError: the output is there, or cannot be written.
        CheckpointError, MismatchError, NonFiniteError: as for `compute_all`.

    The result does not depend on the order of the models, nor on memory, threads or blocks, to the last bit.

    >>> models = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([3.0, 2.0])}}
    >>> merge(models, {"w": torch.ones(2)}, "weight_average")
    {'w': tensor([2., 1.])}
    """
    chosen, resolved = find_method(method, options, inspect.signature(merge).parameters)
    route = _route(device, max_memory)
    zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io)
    stream = LayerStream(zoo, route.max_memory)
    request = _Request(tuple(range(len(zoo.models))), chosen, resolved, _weights(weights, zoo, chosen))
    plan = Output.of(zoo, _dtype(dtype))
    if output is None:
        sink = plan.in_memory()
        _run(stream, [request.job(zoo, sink)], route, progress)
        return sink.finished()
    path = Path(output)
    _refuse_inputs(path, zoo)
    _write([(request, path)], stream, plan, overwrite, route, progress)
    return path


def merge_all(
    checkpoints: Any,
    base: Any = None,
    methods: str | Iterable[str] = ("task_arithmetic",),
    *,
    groups: Iterable[Sequence[str]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    output: str | os.PathLike[str] | None = None,
    callback: Callable[[tuple[str, ...], str, StateDict], None] | None = None,
    overwrite: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    merged_memory: int = MERGED_BYTES,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> list[Path]:
    """Merge every pair of a zoo, or given groups, by several methods, reading each tensor once for all of them.

    What several merges need of a tensor (its hashes, a model's threshold, a model's truncated matrix) is computed once.

    Args:
        checkpoints, base, overwrite, dtype, device, max_memory, on_mismatch, progress, io: as for `merge`;
            `checkpoints` may also be a `Zoo`, whose base and whose way of reading then hold.
        methods: one name or several.
        groups: names of the models of each merge; every pair by default.
        options: of the methods, by method.
        output: a folder; merges are written to `output/method/first+second.safetensors` (a folder of that name without
            the suffix where the base is a folder).
        callback: called with (group, method, merged state dict) for each merge; the dict is its own.
        merged_memory: bytes of merged models made in one pass over the zoo, for the callback: a model is handed over
            when its last tensor is merged, so that all of a pass are held. Files are made in one pass, however many.

    Returns:
        The paths written.

    Raises:
        OptionError: neither or both of output and callback; an unknown method, option or model.
        OutputError: an output is there, or cannot be written.

    >>> models = {name: {"w": torch.full((2,), float(value))} for value, name in enumerate("abc")}
    >>> show = lambda group, method, merged: print(*group, method, merged["w"].tolist())
    >>> merge_all(models, {"w": torch.zeros(2)}, "weight_average", callback=show)
    a b weight_average [0.5, 0.5]
    a c weight_average [1.0, 1.0]
    b c weight_average [1.5, 1.5]
    []
    """
    if (output is None) == (callback is None):
        raise OptionError("merge_all needs either an output folder or a callback")
    chosen = find_methods(methods, options)
    route = _route(device, max_memory)
    zoo = checkpoints if isinstance(checkpoints, Zoo) else open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io)
    stream = LayerStream(zoo, route.max_memory)
    members = _groups(groups, zoo)
    requests = [
        _Request(models, method, resolved, (1.0,) * len(models)) for models in members for method, resolved in chosen
    ]
    plan = Output.of(zoo, _dtype(dtype))
    if output is not None:
        targets = _targets(requests, zoo, Path(output), plan, overwrite)
        _write(targets, stream, plan, overwrite, route, progress)
        return [path for _, path in targets]
    assert callback is not None
    size = max(1, merged_memory // max(plan.nbytes, 1))
    for group in (requests[start : start + size] for start in range(0, len(requests), size)):
        sinks = [plan.in_memory() for _ in group]
        jobs = [request.job(zoo, sink) for request, sink in zip(group, sinks, strict=True)]
        _run(stream, jobs, route, progress)
        for request, sink in zip(group, sinks, strict=True):
            callback(tuple(zoo.model_names[m] for m in request.models), request.method.name, sink.finished())
    return []


@dataclasses.dataclass(frozen=True)
class _Request:
    """A merge that is asked for."""

    models: tuple[int, ...]
    method: Method
    options: dict[str, Any]
    weights: tuple[float, ...]

    def job(self, zoo: Zoo, sink: Any) -> Job:
        return Job(zoo, self.models, self.method, self.options, self.weights, sink)

    def record(self, zoo: Zoo, hashes: Sequence[str], route: Route) -> dict[str, Any]:
        """Return what is kept of a merge: the same for every order of the models."""
        models = [
            {"name": zoo.model_names[model], "hash": f"xxh3_128:{digest}", "weight": weight}
            for model, digest, weight in zip(self.models, hashes[1:], self.weights, strict=True)
        ]
        return {
            "version": package_version("mergekern"),
            "method": self.method.name,
            "options": self.options,
            "device": route.description,
            "base": f"xxh3_128:{hashes[0]}",
            "models": sorted(models, key=lambda model: (model["name"], model["hash"])),
        }


def _write(
    targets: Sequence[tuple[_Request, Path]], stream: LayerStream, plan: Output, overwrite: bool, route: Route,
    progress: Callable[[Progress], None] | None,
) -> None:  # fmt: skip
    """Run merges into files, all of which are moved into place at the end."""
    zoo = stream.zoo
    writers: list[Writer] = []
    try:
        jobs = []
        for request, path in targets:
            unknown = request.record(zoo, [_UNKNOWN_HASH] * (1 + len(request.models)), route)
            shape = layout(plan.base, plan.entries, plan.aliases, plan.folder_of(path))
            writers.append(Writer(path, shape, unknown, overwrite))
            jobs.append(request.job(zoo, ToFile(plan, writers[-1])))
        _run(stream, jobs, route, progress)
        for (request, _), job, writer in zip(targets, jobs, writers, strict=True):
            writer.finish(request.record(zoo, job.content_hashes(), route))
    finally:
        for writer in writers:
            writer.abort()


def _run(stream: LayerStream, jobs: Sequence[Job], route: Route, progress: Callable[[Progress], None] | None) -> None:
    """Merge every tensor of a zoo by every job; tensors side by side in a pool, as the budget allows."""
    zoo, budget = stream.zoo, stream.max_memory
    began, threads = time.perf_counter(), torch.get_num_threads()
    sizes = [zoo.nbytes(tensor) for tensor in zoo.tensors]
    ahead: deque[tuple[Any, Future[None]]] = deque()
    done = 0

    def report(name: str) -> None:
        if progress is not None:
            seconds = time.perf_counter() - began
            progress(Progress(name, done, len(sizes), sum(sizes[:done]), sum(sizes), seconds))

    def merge_layer(layer: Any) -> None:
        # A tensor that has the budget to itself gets all threads.
        inner = threads if 2 * layer.nbytes > budget else 1
        with route.on_this_thread():
            shared = SharedLayer(layer, zoo, route, inner, keep=budget // threads if len(jobs) > 1 else 0)
            for job in jobs:
                job.merge(shared)

    def finish_first() -> None:
        nonlocal done
        layer, future = ahead.popleft()
        report(layer.tensor.name)
        future.result()
        layer.release()
        done += 1

    with route.on_this_thread():
        prepare(jobs, stream, route, threads)
    with lapack.single_threaded_pool(threads) as pool:
        for layer in stream:
            while ahead and not stream.hold_together([layer, *(other for other, _ in ahead)], 2 * threads):
                finish_first()
            ahead.append((layer, pool.submit(merge_layer, layer)))
        while ahead:
            finish_first()
    report("")


def _targets(
    requests: Sequence[_Request], zoo: Zoo, output: Path, plan: Output, overwrite: bool
) -> list[tuple[_Request, Path]]:
    """Return where each merge goes, after checking all of it, and make the folders."""
    if not output.is_dir() and (output.exists() or not Path(os.path.abspath(output)).parent.is_dir()):
        raise OutputError(f"{output}: not a folder, nor a new one in a folder that is there")
    suffix = "" if plan.folder is not None else ".safetensors"
    targets = []
    for request in requests:
        names = [zoo.model_names[model] for model in request.models]
        if bad := next((name for name in names if "/" in name or "\0" in name or name.startswith(".")), None):
            raise OptionError(f"model name {bad!r} cannot be part of a file name; give a mapping with other names")
        targets.append((request, output / request.method.name / f"{'+'.join(names)}{suffix}"))
    for _, path in targets:
        if path.parent.is_dir():
            check_target(path, plan.folder_of(path) is not None, overwrite)
        _refuse_inputs(path, zoo)
    for _, path in targets:
        path.parent.mkdir(parents=True, exist_ok=True)
    return targets


def _groups(groups: Iterable[Sequence[str]] | None, zoo: Zoo) -> list[tuple[int, ...]]:
    if groups is None:
        return list(itertools.combinations(range(len(zoo.models)), 2))
    found = []
    for group in groups:
        if isinstance(group, str) or len(set(group)) != len(group) or len(group) < 2:
            raise OptionError(f"a group is two or more different model names, not {group!r}")
        for name in group:
            if name not in zoo.model_names:
                raise OptionError(f"no model {name!r} in the zoo{did_you_mean(name, zoo.model_names)}")
        found.append(tuple(sorted(zoo.model_names.index(name) for name in group)))
    if not found or len(set(found)) != len(found):
        raise OptionError("groups must be different from each other, and one at least")
    return found


def _weights(weights: Weights, zoo: Zoo, method: Method) -> tuple[float, ...]:
    names = zoo.model_names
    if weights is None:
        return (1.0,) * len(names)
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise OptionError(f"a weight for {name!r}, which is no model{did_you_mean(name, names)}")
        if missing := [name for name in names if name not in weights]:
            raise OptionError(f"no weight for {', '.join(missing)}")
        values = [weights[name] for name in names]
    else:
        if isinstance(weights, str) or not isinstance(weights, Iterable):
            raise OptionError(f"weights are a number for each model, by name or in their order, not {weights!r}")
        values = list(weights)
        if len(values) != len(names):
            raise OptionError(f"{len(values)} weights for {len(names)} models")
    values = [plain(value) for value in values]
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise OptionError(f"a weight must be a finite number, not {value!r}")
    if not method.any_weight and (min(values) < 0 or not sum(values) > 0):
        raise OptionError(f"weights of {method.name} must not be negative, and one must be above 0, not {values!r}")
    return tuple(float(value) for value in values)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if str(dtype) not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}{did_you_mean(str(dtype), DTYPES)}")
    return DTYPES[str(dtype)]


def _route(device: str | torch.device, max_memory: int | None) -> Route:
    backend = dispatch.choose(device)
    return DeviceRoute(backend, max_memory) if isinstance(backend, DeviceBackend) else CpuRoute(max_memory)


def _refuse_inputs(path: Path, zoo: Zoo) -> None:
    """Raise OutputError if a path is that of a checkpoint that is read, or of the folder it lies in."""
    target = path.resolve()
    for checkpoint in zoo.checkpoints:
        source = Path(checkpoint.source)
        shards = checkpoint.shards.values() if isinstance(checkpoint, Sharded) else ()
        if target in [Path(shard.source).resolve() for shard in shards]:
            raise OutputError(f"{path}: is a shard of {checkpoint.name!r}, which is read; write to another place")
        if source.is_file() and target in (source.resolve(), Path(os.path.abspath(source)).parent.resolve()):
            raise OutputError(f"{path}: is {checkpoint.name!r} itself, which is read; write to another place")
