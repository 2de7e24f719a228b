"""Merges into files: all of them made in one pass over a zoo, and moved into place when all are whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from mergekern._internal.claims import workspace
from mergekern._internal.files import write_atomically
from mergekern.checkpoints import Checkpoint, LayerStream, Zoo, open_checkpoint
from mergekern.checkpoints.layout import Layout
from mergekern.checkpoints.records import check_name, check_target, is_merged, record_path
from mergekern.checkpoints.sharded import Sharded
from mergekern.checkpoints.writer import Writer, as_output_errors, record_text
from mergekern.errors import MergekernError, OptionError, OutputError
from mergekern.merging.group_merge import GroupMerge
from mergekern.merging.merge_pass import MergePass
from mergekern.merging.output import OutputPlan, ToFile
from mergekern.merging.request import Request
from mergekern.merging.route import Route
from mergekern.progress import Progress

Target = tuple[Request, Path]


@dataclass(frozen=True)
class MergeFiles:
    """What all merges of one call share that go into files.

    Attributes:
        stream: the tensors of the zoo.
        plan: what is written.
        parts: plans of sub-folders that are merged by themselves, with their tensors, by name.
        route: what merges.
        notes: what the record of a merge says, by the merge.
        overwrite: whether merges that are there are replaced.
        progress: called at the start of every tensor and at the end.
    """

    stream: LayerStream
    plan: OutputPlan
    parts: dict[str, tuple[LayerStream, OutputPlan]]
    route: Route
    notes: Callable[[Request], Sequence[str]]
    overwrite: bool
    progress: Callable[[Progress], None] | None

    def write(self, targets: Sequence[Target], place: Path) -> None:
        """Make merges into files, all of which are moved into place at the end.

        Args:
            targets: each merge with its path.
            place: a folder on the disk of all targets, which holds them until then.
        """
        with ExitStack() as stack:
            with as_output_errors(place):
                aside = stack.enter_context(workspace(place))
            # All targets are files, or all are folders.
            whole = _Batch(self, self.stream, self.plan, self.plan.layout_at(targets[0][1]), aside)
            for request, path in targets:
                whole.add(request, path, self.overwrite)
            batches = [whole]
            for name, (stream, plan) in self.parts.items():
                part = _Batch(self, stream, plan, plan.layout_like(Path(plan.base.source).parent), aside)
                for (request, _), writer in zip(targets, whole.writers, strict=True):
                    part.add(request, writer.temporary / name, overwrite=False)
                batches.insert(0, part)  # What lies in a folder is moved there before the folder is.
            for batch in reversed(batches):
                batch.run()
            for part in batches[:-1]:
                part.seal()
                part.move()
            whole.seal()
            whole.move()

    def kept(self, targets: Sequence[Target]) -> set[Path]:
        """Return the paths of merges that are there already, made in the same way of the same models.

        Where any is there, the checkpoints are read once more, for the hashes of what they hold.

        Raises:
            OutputError: something else is there.
        """
        there = [(request, path) for request, path in targets if os.path.lexists(path)]
        if self.overwrite or not there or not all(is_merged(path) for _, path in there):
            return set()
        hashes, planned = _content_hashes(self.stream), self.plan.layout_at(there[0][1])
        for request, path in there:
            of_models = [hashes[0], *(hashes[1 + model] for model in request.models)]
            record = request.record(self.stream.zoo, self.route, self.notes(request), of_models)
            if not _is_made_so(path, planned, self.plan, record):
                raise OutputError(
                    f"{path}: is there already, made in another way or of other models; pass overwrite=True "
                    "(--overwrite) to replace it"
                )
            if not record_path(path).exists():
                write_atomically(record_path(path), record_text(record))
        return {path for _, path in there}


class _Batch:
    """Merges of the same zoo into files, side by side."""

    def __init__(self, how: MergeFiles, stream: LayerStream, plan: OutputPlan, layout: Layout, aside: Path) -> None:
        self._how, self._stream, self._plan, self._layout, self._aside = how, stream, plan, layout, aside
        self._requests: list[Request] = []
        self._merges: list[GroupMerge] = []
        self.writers: list[Writer] = []

    def add(self, request: Request, path: Path, overwrite: bool) -> None:
        zoo = self._stream.zoo
        record = request.record(zoo, self._how.route, self._how.notes(request))
        writer = Writer(path, self._layout, record, overwrite, self._aside)
        self.writers.append(writer)
        self._requests.append(request)
        self._merges.append(request.merge_into(ToFile(self._plan, writer), zoo))

    def run(self) -> None:
        MergePass(self._stream, self._merges, self._how.route, self._how.progress).run()

    def seal(self) -> None:
        for request, merge, writer in zip(self._requests, self._merges, self.writers, strict=True):
            notes = self._how.notes(request)
            writer.seal(request.record(self._stream.zoo, self._how.route, notes, merge.content_hashes()))

    def move(self) -> None:
        for writer in self.writers:
            writer.move()


def merge_targets(requests: Sequence[Request], zoo: Zoo, output: Path, plan: OutputPlan) -> list[Target]:
    """Return each merge with its path in a folder, after checking all names; nothing is written.

    Raises:
        OptionError: names of models cannot be part of file names, or two merges would have one name.
        OutputError: the folder cannot hold such files.
    """
    if not output.is_dir() and (os.path.lexists(output) or not Path(os.path.abspath(output)).parent.is_dir()):
        raise OutputError(f"{output}: not a folder, nor a new one in a folder that is there")
    suffix = "" if plan.folder is not None else ".safetensors"
    targets: list[Target] = []
    taken: dict[str, tuple[str, ...]] = {}
    for request in requests:
        names = request.names(zoo)
        if bad := next((name for name in names if "/" in name or "\0" in name or name.startswith(".")), None):
            raise OptionError(f"model name {bad!r} cannot be part of a file name; give a mapping with other names")
        path = output / request.method.name / f"{'+'.join(names)}{suffix}"
        # Disks that tell no capitals apart take such names for one.
        other = taken.setdefault(str(path).casefold(), names)
        if other != names:
            raise OptionError(
                f"the merges of {_quoted(other)} and of {_quoted(names)} would both be called {path.name!r}; give a "
                "mapping with other names"
            )
        targets.append((request, path))
    return targets


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def check_targets(
    targets: Sequence[Target], zoo: Zoo, plan: OutputPlan, overwrite: bool, *, may_make_folders: bool = False
) -> None:
    """Raise OutputError unless all merges may be written."""
    for _, path in targets:
        check_name(path)
        refuse_inputs(path, zoo.checkpoints)
        if path.parent.is_dir() or not may_make_folders:
            check_target(path, plan.folder_of(path) is not None, overwrite)


def make_folders(targets: Sequence[Target], output: Path) -> None:
    """Make the folders of merges.

    Raises:
        OutputError: one cannot be made, or lies on another disk than the folder of all.
    """
    for folder in {path.parent for _, path in targets}:
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
    """Tell whether a merge has the base's tensor; its values are not among those of which the record has hashes."""
    if name in plan.base.tensors:
        values = plan.base.read(name).to(plan.entries[name].dtype)
        return name in merged.tensors and torch.equal(merged.read(name).nan_to_num(), values.nan_to_num())
    return name in merged.buffers and torch.equal(merged.read_buffer(name), plan.base.read_buffer(name))
