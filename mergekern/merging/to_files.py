"""Merges into files: all of them made in one pass over a zoo, and moved into place when all are whole."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash

from mergekern._internal.claims import workspace
from mergekern._internal.files import write_atomically
from mergekern._internal.text import readable_bytes
from mergekern.checkpoints import Checkpoint, LayerStream, Zoo, open_checkpoint
from mergekern.checkpoints.layout import Layout
from mergekern.checkpoints.records import check_name, check_target, is_merged, record_path
from mergekern.checkpoints.sharded import Sharded
from mergekern.checkpoints.writer import Writer, as_output_errors, record_text
from mergekern.errors import MergekernError, OptionError, OutputError
from mergekern.merging.group_merge import GroupMerge
from mergekern.merging.merge_pass import MergePass
from mergekern.merging.output import OutputPlan, Several, ToFile
from mergekern.merging.plans import Plans
from mergekern.merging.request import Request
from mergekern.merging.route import Route
from mergekern.progress import Progress

logger = logging.getLogger("mergekern.notes")


class Target(NamedTuple):
    """A result that is to be written: a merge, its path, and what is written there."""

    request: Request
    path: Path
    plan: OutputPlan
    owner: int


@dataclass(frozen=True)
class MergeFiles:
    """What all merges of one call share that go into files.

    Attributes:
        stream: the tensors of the zoo.
        parts: tensors of sub-folders that are merged by themselves, by name.
        route: what merges.
        notes: what the record of a result says.
        overwrite: whether merges that are there are replaced.
        progress: called at the start of every tensor and at the end.
    """

    stream: LayerStream
    parts: dict[str, LayerStream]
    route: Route
    notes: Callable[[Target], Sequence[str]]
    overwrite: bool
    progress: Callable[[Progress], None] | None

    def write(self, targets: Sequence[Target], place: Path) -> None:
        """Make merges into files, all of which are moved into place at the end.

        Args:
            targets: the results; those of one merge follow each other.
            place: a folder on the disk of all targets, which holds them until then.
        """
        self._check_space(targets, place)
        with ExitStack() as stack:
            with as_output_errors(place):
                aside = stack.enter_context(workspace(place))
            whole = _Batch(self, self.stream, aside)
            whole.add(targets, [target.plan.layout_at(target.path) for target in targets], self.overwrite)
            batches = [whole]
            for name, stream in self.parts.items():
                part = _Batch(self, stream, aside)
                plans = [OutputPlan.like(stream.zoo, target.owner, target.plan.dtype) for target in targets]
                inside = [
                    # What was gathered is of the tensors of the whole folder's own model.
                    Target(replace(target.request, gathered=None), writer.temporary / name, plan, target.owner)
                    for target, writer, plan in zip(targets, whole.writers, plans, strict=True)
                ]
                layouts = [plan.layout_like(Path(plan.like_whom.source).parent) for plan in plans]
                part.add(inside, layouts, overwrite=False)
                batches.insert(0, part)  # What lies in a folder is moved there before the folder is.
            for batch in reversed(batches):
                batch.run()
            for part in batches[:-1]:
                part.seal()
                part.move()
            whole.seal()
            whole.move()

    def _check_space(self, targets: Sequence[Target], place: Path) -> None:
        """Raise OutputError unless a disk has room for the results, and say how much many of them need."""
        zoos = [stream.zoo for stream in self.parts.values()]
        needed = sum(
            plan.nbytes + sum(OutputPlan.like(zoo, owner, plan.dtype).nbytes for zoo in zoos)
            for _, _, plan, owner in targets
        )
        with as_output_errors(place):
            free = shutil.disk_usage(place).free
        sizes = f"{len(targets)} merges need {readable_bytes(needed)}, and {readable_bytes(free)} are free"
        if needed > free:
            raise OutputError(f"{place}: {sizes}; make room, merge fewer, or choose dtype='bfloat16'")
        if len(targets) > 1:
            logger.info("%s", sizes)

    def kept(self, targets: Sequence[Target]) -> set[Path]:
        """Return the paths of merges that are there already, made in the same way of the same models.

        Where any is there, the checkpoints are read once more, for the hashes of what they hold.

        Raises:
            OutputError: something else is there.
        """
        there = [target for target in targets if os.path.lexists(target.path)]
        if self.overwrite or not there or not all(is_merged(target.path) for target in there):
            return set()
        hashes = _content_hashes(self.stream)
        for target in there:
            request, path = target.request, target.path
            of_models = [hashes[0], *(hashes[1 + model] for model in request.models)]
            record = request.record(self.stream.zoo, self.route, self.notes(target), of_models)
            if not _is_made_so(path, target.plan.layout_at(path), target.plan, record):
                raise OutputError(
                    f"{path}: is there already, made in another way or of other models; pass overwrite=True "
                    "(--overwrite) to replace it"
                )
            if not record_path(path).exists():
                write_atomically(record_path(path), record_text(record))
        return {target.path for target in there}


class _Batch:
    """Results of merges of one zoo, which go into files side by side."""

    def __init__(self, how: MergeFiles, stream: LayerStream, aside: Path) -> None:
        self._how, self._stream, self._aside = how, stream, aside
        self._targets: list[Target] = []
        self._merges: dict[Request, GroupMerge] = {}
        self.writers: list[Writer] = []

    def add(self, targets: Sequence[Target], layouts: Sequence[Layout], overwrite: bool) -> None:
        zoo = self._stream.zoo
        sinks: dict[Request, list[ToFile]] = {}
        for target, layout in zip(targets, layouts, strict=True):
            record = target.request.record(zoo, self._how.route, self._how.notes(target))
            self.writers.append(Writer(target.path, layout, record, overwrite, self._aside))
            self._targets.append(target)
            sinks.setdefault(target.request, []).append(ToFile(target.plan, self.writers[-1]))
        self._merges = {request: request.merge_into(Several(every), zoo) for request, every in sinks.items()}

    def run(self) -> None:
        MergePass(self._stream, list(self._merges.values()), self._how.route, self._how.progress).run()

    def seal(self) -> None:
        for target, writer in zip(self._targets, self.writers, strict=True):
            hashes = self._merges[target.request].content_hashes()
            writer.seal(target.request.record(self._stream.zoo, self._how.route, self._how.notes(target), hashes))

    def move(self) -> None:
        for writer in self.writers:
            writer.move()


def merge_targets(results: Sequence[tuple[Request, int]], zoo: Zoo, output: Path, plans: Plans) -> list[Target]:
    """Return each result with its path in a folder, after checking all names; nothing is written.

    Args:
        results: merges, each with the position of the result's owner.
        zoo: the models.
        output: the folder.
        plans: what is written of each owner.

    Raises:
        OptionError: names of models cannot be part of file names, or two merges would have one name.
        OutputError: the folder cannot hold such files.
    """
    if not output.is_dir() and (os.path.lexists(output) or not Path(os.path.abspath(output)).parent.is_dir()):
        raise OutputError(f"{output}: not a folder, nor a new one in a folder that is there")
    targets: list[Target] = []
    taken: dict[str, tuple[str, ...]] = {}
    for request, owner in results:
        names = request.names(zoo)
        path = output / request.method.name / "+".join(map(file_name, names))
        # Disks that tell no capitals apart take such names for one.
        other = taken.setdefault(str(path).casefold(), names)
        if other != names:
            raise OptionError(
                f"the merges of {_quoted(other)} and of {_quoted(names)} would both be called {path.name!r}; give a "
                "mapping with other names"
            )
        targets.append(target_in(path, request, owner, zoo, plans))
    return targets


def target_in(path: Path, request: Request, owner: int, zoo: Zoo, plans: Plans) -> Target:
    """Return a result at a path without suffix, or, where each model has one of its own, in a folder there."""
    suffix = "" if plans[owner].folder is not None else ".safetensors"
    if plans.are_of_each:
        path /= file_name(zoo.checkpoints[owner].name)
    return Target(request, path.with_name(f"{path.name}{suffix}"), plans[owner], owner)


def file_name(model: str) -> str:
    """Return the name of a model as part of a path.

    Raises:
        OptionError: it cannot be.
    """
    if "/" in model or "\0" in model or model.startswith("."):
        raise OptionError(f"model name {model!r} cannot be part of a file name; give a mapping with other names")
    return model


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def check_targets(targets: Sequence[Target], zoo: Zoo, overwrite: bool, *, may_make_folders: bool = False) -> None:
    """Raise OutputError unless all results may be written."""
    for target in targets:
        path = target.path
        check_name(path)
        refuse_inputs(path, zoo.checkpoints)
        if path.parent.is_dir() or not may_make_folders:
            check_target(path, target.plan.folder_of(path) is not None, overwrite)


def make_folders(targets: Sequence[Target], output: Path) -> None:
    """Make the folders of merges.

    Raises:
        OutputError: one cannot be made, or lies on another disk than the folder of all.
    """
    for folder in {target.path.parent for target in targets}:
        with as_output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if folder.stat().st_dev != output.stat().st_dev:
                raise OutputError(f"{folder}: lies on another disk than {output}; give an output on its disk")


def refuse_inputs(path: Path, checkpoints: Iterable[Checkpoint]) -> None:
    """Raise OutputError if a path is that of a checkpoint that is read, or of the folder it lies in."""
    target = path.resolve()
    for checkpoint in checkpoints:
        source = Path(checkpoint.source)
        shards = checkpoint.shards.values() if isinstance(checkpoint, Sharded) else ()
        if target in [Path(shard.source).resolve() for shard in shards]:
            raise OutputError(f"{path}: is a shard of {checkpoint.name!r}, which is read; write to another place")
        if source.is_file() and target in (source.resolve(), Path(os.path.abspath(source)).parent.resolve()):
            raise OutputError(f"{path}: is {checkpoint.name!r} itself, which is read; write to another place")


def _content_hashes(stream: LayerStream) -> list[str]:
    """Return the hashes of the base and of each model over all tensors, as `GroupMerge.content_hashes` gives them."""
    hashers = [xxhash.xxh3_128() for _ in stream.zoo.checkpoints]
    for layer in stream:
        for hasher, digest in zip(hashers, layer.content_hashes(), strict=True):
            hasher.update(f"{layer.tensor.name}\0{digest}\0".encode())
        layer.release()
    stream.zoo.check_unchanged()
    return [hasher.hexdigest() for hasher in hashers]


def _is_made_so(path: Path, planned: Layout, plan: OutputPlan, record: dict) -> bool:
    """Tell whether a finished merge equals what would be made now."""
    for file, entries in planned.files.items():
        header = planned.header(file, record)
        found = path / file if planned.is_folder else path
        size = len(header) + sum(entry.nbytes for entry in entries)
        try:
            with found.open("rb") as opened:
                if found.stat().st_size != size or opened.read(len(header)) != header:
                    return False
        except OSError:
            return False
    try:
        merged = open_checkpoint(path)
        return all(_is_same(merged, plan, name) for name in plan.copied)
    except MergekernError:
        return False


def _is_same(merged: Checkpoint, plan: OutputPlan, name: str) -> bool:
    """Tell whether a merge has its owner's tensor; its values are not among those of which the record has hashes."""
    owner, entry = plan.owner, plan.entries[name]
    if name in owner.tensors:
        values = owner.read(name).to(entry.dtype)
        return entry.name in merged.tensors and torch.equal(merged.read(entry.name).nan_to_num(), values.nan_to_num())
    return entry.name in merged.buffers and torch.equal(merged.read_buffer(entry.name), owner.read_buffer(name))
