"""merge_recipe: models merged as a recipe of mergekit says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mergekern._internal.claims import workspace
from mergekern._internal.notes import show
from mergekern.checkpoints import LayerStream
from mergekern.checkpoints.records import check_name, check_target
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.writer import Writer, as_output_errors
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.merging.group_merge import GroupMerge
from mergekern.merging.in_memory import route_on
from mergekern.merging.merge_pass import MergePass
from mergekern.merging.output import InMemory, Sink, StateDict, ToFile
from mergekern.merging.recipes.models import Models
from mergekern.merging.recipes.plan import PlannedSlice, plan_recipe
from mergekern.merging.recipes.reading import read_recipe
from mergekern.merging.recipes.result import Result
from mergekern.merging.route import Route
from mergekern.merging.to_files import refuse_inputs
from mergekern.progress import Progress


def merge_recipe(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> StateDict | Path:
    """Merge models as a recipe of mergekit says: the same file gives the same tensors as mergekit 0.1.5.

    `docs/mergekit-recipes.md` lists the keys that a recipe may have, and where results differ on purpose.

    Args:
        recipe: path of a YAML file, or its content as a mapping. Models are paths, which count from the working folder
            or from that of the file, ids on the Hugging Face Hub, or either with an adapter, "model+adapter".
        output: a folder or a `.safetensors` file, as for `merge`; None returns the tensors. A folder gets the other
            files of base_model, or of the first model; config.json follows the number of layers, the dtype and the
            tokenizer of the recipe.
        overwrite: whether an `output` that exists is replaced; only what mergekern wrote is.
        device: "cpu", a CUDA device such as "cuda:1", or "auto"; see `merge`.
        max_memory: bytes of weights held at a time; see `merge`.
        on_mismatch: "error", or "skip", which takes tensors that not all models share from the base, or the first
            model.
        progress: called with a `Progress` at the start of every tensor and at the end.
        io: "mmap" maps the files; "pread" reads them.

    Returns:
        The merged state dict, name -> tensor, or the path written.

    Raises:
        OptionError: the recipe cannot be read, has a key, method or parameter that is not known or not supported, or
            lacks one; nothing is written then.
        OutputError, CheckpointError, MismatchError, NonFiniteError: as for `merge`.

    The record beside the result, `mergekern.json`, holds the recipe.

    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, value in {"a": 1.0, "b": 2.0}.items():
    ...         save_file({f"h.{i}.w": torch.full((2,), value) for i in range(3)}, f"{folder}/{name}.safetensors")
    ...     models = [
    ...         {"model": f"{folder}/a.safetensors", "parameters": {"weight": [1.0, 0.5]}},
    ...         {"model": f"{folder}/b.safetensors", "parameters": {"weight": [0.0, 0.5]}},
    ...     ]
    ...     merged = merge_recipe({"merge_method": "linear", "models": models})
    >>> {name: tensor.tolist() for name, tensor in merged.items()}
    {'h.0.w': [1.0, 1.0], 'h.1.w': [1.25, 1.25], 'h.2.w': [1.5, 1.5]}
    """
    given = read_recipe(recipe)
    route = route_on(device, max_memory)
    result = Result(plan_recipe(given.recipe, Models(given.place, io), on_mismatch), given.content)
    if output is None:
        show(*result.notes(None))
        sinks = [InMemory(part) for part in result.parts]
        _run(result, sinks, route, progress)
        return {name: tensor for sink in sinks for name, tensor in sink.finished().items()}
    path = Path(output)
    folder = result.folder_at(path)
    check_name(path)
    refuse_inputs(path, (checkpoint for model in result.plan.models for checkpoint in model.files))
    check_target(path, folder is not None, overwrite)
    lost, others = result.notes(folder)
    show(lost, others)
    notes = [*lost, *others]
    with as_output_errors(path), workspace(path.absolute().parent) as aside:
        writer = Writer(path, result.layout_at(path), result.record(route.description, notes), overwrite, aside)
        hashes = _run(result, [ToFile(part, writer) for part in result.parts], route, progress)
        writer.seal(result.record(route.description, notes, hashes))
        writer.move()
    return path


def _run(
    result: Result, sinks: list[Any], route: Route, progress: Callable[[Progress], None] | None
) -> list[list[str]]:
    """Merge all slices; return the content hashes of the base and the models of each."""
    merges, streams = [], []
    for planned, sink in zip(result.plan.slices, sinks, strict=True):
        merges.append(_merge_of(planned, result, sink))
        streams.append(LayerStream(planned.slice.zoo, route.max_memory))
    sizes = [[stream.zoo.nbytes(tensor) for tensor in stream.zoo.tensors] for stream in streams]
    for place, (merge, stream) in enumerate(zip(merges, streams, strict=True)):
        MergePass(stream, [merge], route, _of_all(progress, sizes, place)).run()
    return [merge.content_hashes() for merge in merges]


def _merge_of(planned: PlannedSlice, result: Result, sink: Sink) -> GroupMerge:
    zoo, settings = planned.slice.zoo, planned.settings
    first = settings[zoo.tensors[0].name]
    models = range(len(zoo.models))
    return GroupMerge(zoo, models, result.plan.method, first, sink, settings.__getitem__)


def _of_all(
    progress: Callable[[Progress], None] | None, sizes: list[list[int]], place: int
) -> Callable[[Progress], None] | None:
    """Return what reports the progress of one slice as that of all of them."""
    if progress is None:
        return None
    before = [size for earlier in sizes[:place] for size in earlier]
    total = [size for each in sizes for size in each]

    def report(one: Progress) -> None:
        if one.tensor or place == len(sizes) - 1:
            progress(
                dataclasses.replace(
                    one, tensors_done=one.tensors_done + len(before), tensors_total=len(total),
                    bytes_done=one.bytes_done + sum(before), bytes_total=sum(total),
                )
            )  # fmt: skip

    return report
