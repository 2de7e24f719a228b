"""merge and merge_all: the tensors of a zoo, streamed through merges into memory or into files."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mergekern._internal.claims import remove_left_behind
from mergekern._internal.notes import show
from mergekern.checkpoints import LayerStream, Zoo, open_zoo
from mergekern.checkpoints.notes import notes_of_zoo
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError, OutputError
from mergekern.merging.arguments import Weights, resolve_dtype, resolve_groups, resolve_per_model, resolve_weights
from mergekern.merging.chosen import Chosen
from mergekern.merging.gathered import gather, with_notes
from mergekern.merging.in_memory import MERGED_BYTES, merges_in_memory, route_on
from mergekern.merging.merge_pass import MergePass
from mergekern.merging.notes import (
    lost_in_merges,
    notes_of_heads,
    notes_of_owner,
    notes_of_submodels,
    notes_on_labels,
)
from mergekern.merging.output import StateDict
from mergekern.merging.owners import BASE, patterns_of
from mergekern.merging.plans import Plans
from mergekern.merging.registry import find_method, find_methods
from mergekern.merging.request import Request
from mergekern.merging.route import Route
from mergekern.merging.settings import select_options
from mergekern.merging.submodels import submodels
from mergekern.merging.to_files import MergeFiles, Target, check_targets, make_folders, merge_targets, target_in
from mergekern.progress import Progress

logger = logging.getLogger(__name__)


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
    only: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    heads: str | None = None,
    head_tensors: str | Sequence[str] | None = None,
    calibration: Any = None,
) -> StateDict | dict[str, StateDict] | Path:
    """Merge two or more models fine-tuned from one base.

    Args:
        checkpoints: a folder of checkpoints (the one named `base.*` is the base), a sequence of paths, or a mapping
            name -> checkpoint; see `compute_all`.
        base: the checkpoint that all were fine-tuned from; needed unless the folder has one.
        method: one of `mergekern.METHODS`; or "regmean" or "fisher", which need a calibration.
        options: values of the method's options, such as `{"density": 0.5}`; the others have their value in
            `mergekern.METHODS[method].defaults`.
        output: a `.safetensors` file, or, under any other name and where the base is a folder, a folder: then
            configuration and tokenizer files are copied and the shards are those of the base. None returns the tensors.
            config.json is made true of what is written. Sub-folders with weights, such as 2_Dense of
            sentence-transformers, are merged by themselves where all have them, and are the base's elsewhere.
        overwrite: whether an `output` that exists is replaced; only what mergekern wrote is.
        weights: one for each model, by name or in their order; 1 by default. Means are weighted means; otherwise
            each task vector is multiplied by its weight. Only task_arithmetic takes negative weights.
            A weight may also be a gradient, `[1.0, 0.5]`, which goes from the first layer to the last and is linear in
            between (a tensor outside of layers gets its first value), or a mapping from patterns to numbers or
            gradients, `{"mlp": [1, 0], "*": 0.5}`, of which the first that fits the tensor's name counts. A pattern is
            a part of the name; with * or ? in it, the whole name.
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
        only, exclude: patterns of the names of tensors that are merged, all by default, and of tensors that are not;
            these are the base's (where there is none, the first model's), which the record says. Names in a sub-folder
            begin with it, as `2_Dense/`.
        heads: whose heads the merged body gets, where models have heads for tasks of their own: "each" gives a result
            for every model, with its own head, names, configuration and tokenizer; the name of a model, or "base", only
            that one's. None merges heads as all other tensors. Models may then differ in their heads, and the base
            need not have one.
        head_tensors: names of the heads' tensors, one or several, with * and ? as in file names; by default what lies
            outside the body, is called as heads are, or is not shared by all (`mergekern.checkpoints.heads`).

        calibration: samples of the task of each model, a `mergekern.Calibration`, for regmean and fisher. Each model is
            run once; what that gives goes to temporary files, and is read a tensor at a time.

    Returns:
        The merged state dict, name -> tensor, with every name of the base (integer buffers are the base's, tied names
        share one tensor); or the path written. With heads="each" the state dict of every model, by its name, or the
        folder in which each has a folder of its name (a file, where its checkpoint is one). Where the base ties its
        head to its embedding and the models differ in the two, the result has both, and its config.json says that they
        are not tied.

    Raises:
        OptionError: an unknown method, option, dtype or device; a value out of range.
        OutputError: the output exists already, or cannot be written.
        CheckpointError, MismatchError, NonFiniteError: as for `compute_all`; CheckpointError also if a checkpoint is
            changed meanwhile.

    The result does not depend on the order of the models, nor on memory, threads or blocks, to the last bit.

    Beside a file lies its record, `<name>.mergekern.json` (in a folder `mergekern.json`): method, options, hashes of
    what was merged, and notes on tensors and files that are the base's or take no part. Notes go to the logger
    `mergekern.notes` too, as warnings where weights are lost. A run that is killed leaves what was there before; its
    unfinished files are removed by the next run that writes to the folder.

    >>> models = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([3.0, 2.0])}}
    >>> merge(models, {"w": torch.ones(2)}, "weight_average")
    {'w': tensor([2., 1.])}
    >>> merge(models, {"w": torch.ones(2)}, "task_arithmetic", options={"scale": 1.0})
    {'w': tensor([3., 1.])}
    """
    chosen, resolved = find_method(method, options)
    route = route_on(device, max_memory)
    zoo = open_zoo(
        checkpoints, base, on_mismatch=on_mismatch, io=io, first_as_base=chosen.is_without_base(resolved),
        least=min(chosen.least, 2), rename=rename, heads=patterns_of(heads, head_tensors),
    )  # fmt: skip
    chosen.check_count(len(zoo.models))
    tensors, whole = Chosen.given(only, exclude), zoo
    zoo = tensors.of(zoo)
    resolved = resolve_per_model(resolved, zoo, chosen)
    request = Request(tuple(range(len(zoo.models))), chosen, resolved, resolve_weights(weights, zoo, chosen, resolved))
    plans = Plans(zoo, heads, resolve_dtype(dtype))
    if output is not None and not plans.are_of_each:  # before models are run
        remove_left_behind(Path(output).absolute().parent)
        owner = plans.owners(request.models)[0]
        check_targets([Target(request, Path(output), plans[owner], owner)], zoo, overwrite)
    gathered = gather([chosen], whole, calibration, device, progress)
    request, zoo = dataclasses.replace(request, gathered=gathered), with_notes(zoo, [chosen], gathered)
    stream = LayerStream(zoo, route.max_memory)
    if output is None:
        tensors.check([("", zoo)])
        _show_notes(zoo, plans, [request])
        sink = plans.in_memory_of(request.models)
        MergePass(stream, [request.merge_into(sink, zoo)], route, progress).run()
        return sink.finished()
    path, owners = Path(output), plans.owners(request.models)
    if plans.are_of_each:
        if path.suffix == ".safetensors":
            raise OutputError(f"{path}: with heads='each' (--heads each) a folder is written, not a file")
        targets = [target_in(path, request, owner, zoo, plans) for owner in owners]
        _write_new(path, *_files(stream, targets, route, overwrite, on_mismatch, io, progress, tensors))
        return path
    targets = [Target(request, path, plans[owners[0]], owners[0])]
    files, targets = _files(stream, targets, route, overwrite, on_mismatch, io, progress, tensors)
    files.write(targets, path.absolute().parent)
    return path


def merge_all(
    checkpoints: Any,
    base: Any = None,
    methods: str | Iterable[str] = ("task_arithmetic",),
    *,
    groups: Iterable[Sequence[str]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    output: str | os.PathLike[str] | None = None,
    callback: Callable[[tuple[str, ...], str, Any], None] | None = None,
    overwrite: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    merged_memory: int = MERGED_BYTES,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
    heads: str | None = None,
    head_tensors: str | Sequence[str] | None = None,
    calibration: Any = None,
) -> list[Path]:
    """Merge every pair of a zoo, or given groups, by several methods, reading each tensor once for all of them.

    What several merges need of a tensor (its hashes, a model's threshold, a model's truncated matrix) is computed once.

    Args:
        checkpoints, base, overwrite, dtype, device, max_memory, on_mismatch, progress, io, rename, head_tensors: as for
            `merge`; `checkpoints` may also be a `Zoo`, which then decides the base and how files are read.
        methods: one name or several.
        groups: names of the models of each merge; every pair by default.
        options: options of each method, such as `{"ties": {"density": 0.5}}`.
        output: a folder; merges are written to `output/method/first+second.safetensors` (a folder of that name without
            the suffix where the base is a folder). Merges that are there already, made in the same way of the same
            models, are kept, so that a run that was stopped goes on; to know them, the checkpoints are read once more.
        callback: called with (group, method, merged state dict) for each merge; it may keep or change the dict.
        heads: as for `merge`. With "each" a merge is a folder in which every model of it has its own, and the callback
            gets a state dict for each model, by its name.
        merged_memory: bytes of merged models held for the callback. More merges take more passes over the zoo, as all
            models of a pass are held until its last tensor is merged. Files are always made in one pass.
        calibration: as for `merge`.

    Returns:
        The paths written.

    Raises:
        OptionError: neither or both of output and callback; an unknown method, option or model; two merges that would
            have one name, also where capitals are not told apart.
        OutputError: an output exists already and is another merge, or cannot be written.

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
    route = route_on(device, max_memory)
    patterns = patterns_of(heads, head_tensors)
    zoo = (
        checkpoints
        if isinstance(checkpoints, Zoo)
        else open_zoo(
            checkpoints, base, on_mismatch=on_mismatch, io=io, rename=rename, heads=patterns,
            first_as_base=all(method.is_without_base(resolved) for method, resolved in chosen),
        )
    )  # fmt: skip
    if patterns is not None and not zoo.heads:
        raise OptionError("heads: the zoo that is given does not tell them apart; open it with heads=()")
    members = resolve_groups(groups, zoo)
    for models, (method, _) in itertools.product(members, chosen):
        method.check_count(len(models))
    gathered = gather([method for method, _ in chosen], zoo, calibration, device, progress)
    zoo = with_notes(zoo, [method for method, _ in chosen], gathered)
    stream = LayerStream(zoo, route.max_memory)
    chosen = [(method, resolve_per_model(resolved, zoo, method)) for method, resolved in chosen]
    requests = [
        Request(
            models, method, select_options(resolved, models), (1.0,) * len(models), gathered if method.needs else None
        )
        for models in members
        for method, resolved in chosen
    ]
    plans = Plans(zoo, heads, resolve_dtype(dtype))
    if output is not None:
        folder = Path(output)
        targets = merge_targets(plans.results(requests), zoo, folder, plans)
        _write_new(folder, *_files(stream, targets, route, overwrite, on_mismatch, io, progress))
        return [target.path for target in targets]
    assert callback is not None
    _show_notes(zoo, plans, requests)
    made = merges_in_memory(zoo, requests, plans, route, merged_memory=merged_memory, progress=progress)
    for request, merged in made:
        callback(request.names(zoo), request.method.name, merged)
    return []


def _write_new(folder: Path, files: MergeFiles, targets: Sequence[Target]) -> None:
    """Write the results to a folder that are not there yet."""
    remove_left_behind(folder)
    kept = files.kept(targets)
    new = [target for target in targets if target.path not in kept]
    check_targets(new, files.stream.zoo, files.overwrite, may_make_folders=True)
    if kept:
        logger.warning("kept, as they are there already, made in the same way of the same models: %d", len(kept))
    if new:
        make_folders(new, folder)
        files.write(new, folder)


def _files(
    stream: LayerStream, targets: Sequence[Target], route: Route, overwrite: bool, on_mismatch: OnMismatch, io: IO,
    progress: Callable[[Progress], None] | None, tensors: Chosen = Chosen(),  # noqa: B008
) -> tuple[MergeFiles, list[Target]]:  # fmt: skip
    """Return what makes merges into files, and the targets with the sub-folders of their owners; notes are shown."""
    zoo = stream.zoo
    folders = {target.owner: target.plan.folder_of(target.path) for target in targets}
    found = submodels(zoo, next((folder for folder in folders.values() if folder), None), on_mismatch, io)
    tensors.check([("", zoo), *((f"{name}/", part) for name, part in found.zoos.items())])
    parts = {name: LayerStream(tensors.of(part, f"{name}/"), route.max_memory) for name, part in found.zoos.items()}
    plans = {target.owner: target.plan for target in targets}
    lost: dict[int, list[str]] = {}
    others: dict[int, list[str]] = {}
    for owner, folder in folders.items():
        lost[owner] = [*lost_in_merges(zoo, owner), *notes_of_submodels(found, zoo, owner if folder else None)]
        lost[owner] += notes_on_labels(zoo)
        for name, part in parts.items():
            lost[owner] += [f"{name}: {note}" for note in lost_in_merges(part.zoo, owner)]
        others[owner] = [*notes_of_heads(zoo, plans[owner]), *notes_of_owner(zoo, plans[owner], folder)]
        if folder:
            like_whom = owner if plans[owner].like_whom is plans[owner].owner else BASE
            plans[owner] = dataclasses.replace(plans[owner], own_folders=found.others[like_whom])
    show(_each_once(lost.values()), [*_each_once(others.values()), *notes_of_zoo(zoo)])

    def notes(target: Target) -> list[str]:
        return [*lost[target.owner], *others[target.owner], *notes_of_zoo(zoo, target.request.models)]

    files = MergeFiles(stream, parts, route, notes, overwrite, progress)
    return files, [target._replace(plan=plans[target.owner]) for target in targets]


def _each_once(notes: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(note for several in notes for note in several))


def _show_notes(zoo: Zoo, plans: Plans, requests: Sequence[Request]) -> None:
    """Show what takes no part in merges that stay in memory."""
    owners = dict.fromkeys(owner for request in requests for owner in plans.owners(request.models))
    lost = _each_once(lost_in_merges(zoo, owner) for owner in owners)
    lost += [*notes_of_submodels(submodels(zoo, None, "error", "mmap"), zoo, None), *notes_on_labels(zoo)]
    chosen = [plans[owner] for owner in owners]
    others = _each_once([*notes_of_heads(zoo, plan), *notes_of_owner(zoo, plan, None)] for plan in chosen)
    show(lost, [*others, *notes_of_zoo(zoo)])
