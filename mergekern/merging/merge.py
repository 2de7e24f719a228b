"""merge and merge_all: the tensors of a zoo, streamed through merges into memory or into files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mergekern._internal.versions import package_version
from mergekern.checkpoints import LayerStream, Zoo, open_zoo
from mergekern.checkpoints.sharded import Sharded
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.writer import Writer, check_target, layout
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError, OutputError
from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.merging.arguments import Weights, resolve_dtype, resolve_groups, resolve_weights
from mergekern.merging.group_merge import GroupMerge
from mergekern.merging.merge_pass import MergePass
from mergekern.merging.method import Method
from mergekern.merging.on_cpu import CpuRoute
from mergekern.merging.on_device import DeviceRoute
from mergekern.merging.output import OutputPlan, Sink, StateDict, ToFile
from mergekern.merging.registry import find_method, find_methods
from mergekern.merging.route import Route
from mergekern.progress import Progress

# Bytes of merged models that merge_all makes for a callback in one pass over the zoo.
MERGED_BYTES = 4 << 30
# Keeps the place of a hash in the record until all tensors have been read.
_UNKNOWN_HASH = "0" * 32


def merge(
    checkpoints: Any,
    base: Any = None,
    method: str = "task_arithmetic",
    *,
    options: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    weights: Weights = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
) -> StateDict | Path:
    """Merge two or more models fine-tuned from one base.

    Args:
        checkpoints: a folder of checkpoints (the one named `base.*` is the base), a sequence of paths, or a mapping
            name -> checkpoint; see `compute_all`.
        base: the checkpoint that all were fine-tuned from; needed unless the folder has one.
        method: one of `mergekern.METHODS`.
        options: values of the method's options, such as `{"density": 0.5}`; the others have their value in
            `mergekern.METHODS[method].defaults`.
        output: a `.safetensors` file, or, under any other name and where the base is a folder, a folder: then
            configuration and tokenizer files are copied and the shards are those of the base. None returns the tensors.
        overwrite: whether an `output` that exists is replaced.
        weights: one for each model, by name or in their order; 1 by default. Means are weighted means; otherwise
            each task vector is multiplied by its weight. Only task_arithmetic takes negative weights.
        dtype: "float64", "float32", "float16" or "bfloat16", of all float tensors of the result; by default each has
            the base's.
        device: "cpu", a CUDA device such as "cuda:1", or "auto": the current CUDA device if its kernels can be had.
            Methods that merge element by element give the same bits everywhere; methods of singular vectors agree
            to 1e-8 of the task matrices.
        max_memory: bytes of weights held at a time, on the device if there is one. Larger tensors are merged in blocks
            by methods that work element by element, and whole by methods that need matrices. Default 1 GiB, and on a
            CUDA device 2/5 of its free memory.
        on_mismatch: "error", or "skip", which takes tensors that not all checkpoints share from the base.
        progress: called with a `Progress` at the start of every tensor and at the end.
        io: "mmap" maps the files; "pread" reads them.
        rename: parts of the models' tensor names to replace, OLD -> NEW; see `compute_all`. The result has the base's.

    Returns:
        The merged state dict, name -> tensor, with every name of the base (integer buffers are the base's, tied names
        share one tensor); or the path written. Where the base ties its head to its embedding and the models differ in
        the two, the result has both, and its config.json says that they are not tied.

    Raises:
        OptionError: an unknown method, option, dtype or device; a value out of range.
        OutputError: the output exists already, or cannot be written.
        CheckpointError, MismatchError, NonFiniteError: as for `compute_all`.

    The result does not depend on the order of the models, nor on memory, threads or blocks, to the last bit.

    >>> models = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([3.0, 2.0])}}
    >>> merge(models, {"w": torch.ones(2)}, "weight_average")
    {'w': tensor([2., 1.])}
    >>> merge(models, {"w": torch.ones(2)}, "task_arithmetic", options={"scale": 1.0})
    {'w': tensor([3., 1.])}
    """
    chosen, resolved = find_method(method, options)
    route = _route(device, max_memory)
    zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, rename=rename)
    stream = LayerStream(zoo, route.max_memory)
    request = _Request(tuple(range(len(zoo.models))), chosen, resolved, resolve_weights(weights, zoo, chosen))
    plan = OutputPlan.like_base(zoo, resolve_dtype(dtype))
    if output is None:
        sink = plan.in_memory()
        MergePass(stream, [request.merge_into(sink, zoo)], route, progress).run()
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
    rename: Mapping[str, str] | None = None,
) -> list[Path]:
    """Merge every pair of a zoo, or given groups, by several methods, reading each tensor once for all of them.

    What several merges need of a tensor (its hashes, a model's threshold, a model's truncated matrix) is computed once.

    Args:
        checkpoints, base, overwrite, dtype, device, max_memory, on_mismatch, progress, io, rename: as for `merge`;
            `checkpoints` may also be a `Zoo`, which then decides the base and how files are read.
        methods: one name or several.
        groups: names of the models of each merge; every pair by default.
        options: options of each method, such as `{"ties": {"density": 0.5}}`.
        output: a folder; merges are written to `output/method/first+second.safetensors` (a folder of that name without
            the suffix where the base is a folder).
        callback: called with (group, method, merged state dict) for each merge; it may keep or change the dict.
        merged_memory: bytes of merged models held for the callback. More merges take more passes over the zoo, as all
            models of a pass are held until its last tensor is merged. Files are always made in one pass.

    Returns:
        The paths written.

    Raises:
        OptionError: neither or both of output and callback; an unknown method, option or model.
        OutputError: an output exists already, or cannot be written.

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
    zoo = (
        checkpoints
        if isinstance(checkpoints, Zoo)
        else open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, rename=rename)
    )
    stream = LayerStream(zoo, route.max_memory)
    members = resolve_groups(groups, zoo)
    requests = [
        _Request(models, method, resolved, (1.0,) * len(models)) for models in members for method, resolved in chosen
    ]
    plan = OutputPlan.like_base(zoo, resolve_dtype(dtype))
    if output is not None:
        targets = _targets(requests, zoo, Path(output), plan, overwrite)
        _write(targets, stream, plan, overwrite, route, progress)
        return [path for _, path in targets]
    assert callback is not None
    size = max(1, merged_memory // max(plan.nbytes, 1))
    for together in (requests[start : start + size] for start in range(0, len(requests), size)):
        sinks = [plan.in_memory() for _ in together]
        merges = [request.merge_into(sink, zoo) for request, sink in zip(together, sinks, strict=True)]
        MergePass(stream, merges, route, progress).run()
        for request, sink in zip(together, sinks, strict=True):
            callback(tuple(zoo.model_names[m] for m in request.models), request.method.name, sink.finished())
    return []


@dataclasses.dataclass(frozen=True)
class _Request:
    """A merge that is asked for, checked: which models, how, and with which weights."""

    models: tuple[int, ...]
    method: Method
    options: dict[str, Any]
    weights: tuple[float, ...]

    def merge_into(self, sink: Sink, zoo: Zoo) -> GroupMerge:
        return GroupMerge(zoo, self.models, self.method, self.options, self.weights, sink)

    def record(self, zoo: Zoo, hashes: Sequence[str], route: Route) -> dict[str, Any]:
        """Return the record that is written beside a merge: the same for every order of the models."""
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
    targets: Sequence[tuple[_Request, Path]], stream: LayerStream, plan: OutputPlan, overwrite: bool, route: Route,
    progress: Callable[[Progress], None] | None,
) -> None:  # fmt: skip
    """Make merges into files, all of which are moved into place at the end."""
    zoo = stream.zoo
    writers: list[Writer] = []
    try:
        merges = []
        for request, path in targets:
            unknown = request.record(zoo, [_UNKNOWN_HASH] * (1 + len(request.models)), route)
            shape = layout(plan.base, plan.entries, plan.aliases, plan.folder_of(path), is_tied=plan.is_tied)
            writers.append(Writer(path, shape, unknown, overwrite))
            merges.append(request.merge_into(ToFile(plan, writers[-1]), zoo))
        MergePass(stream, merges, route, progress).run()
        for (request, _), made, writer in zip(targets, merges, writers, strict=True):
            writer.finish(request.record(zoo, made.content_hashes(), route))
    finally:
        for writer in writers:
            writer.abort()


def _targets(
    requests: Sequence[_Request], zoo: Zoo, output: Path, plan: OutputPlan, overwrite: bool
) -> list[tuple[_Request, Path]]:
    """Return each merge with its path, after checking all paths, and make the folders."""
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
