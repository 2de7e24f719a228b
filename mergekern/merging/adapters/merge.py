"""merge_adapters: LoRA adapters merged into one, in memory or as a folder that PEFT loads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mergekern._internal.claims import workspace
from mergekern._internal.notes import notes_of_checkpoints, show
from mergekern._internal.text import listed
from mergekern._internal.validation import one_of
from mergekern.checkpoints.folder_files import folder_files
from mergekern.checkpoints.folders import ADAPTER_FILES
from mergekern.checkpoints.layout import Entry, Layout
from mergekern.checkpoints.records import check_name, check_target
from mergekern.checkpoints.sources import ADAPTER_CONFIG, IO
from mergekern.checkpoints.writer import Writer, as_output_errors
from mergekern.errors import OutputError
from mergekern.merging.adapters.adapter_merge import AdapterMerge
from mergekern.merging.adapters.configuration import base_of, merged_configuration
from mergekern.merging.adapters.options import resolve_options
from mergekern.merging.adapters.plan import notes_of_plan, plan_modules, plan_whole
from mergekern.merging.adapters.reading import Adapters, Contents, open_adapters, shares_no_module
from mergekern.merging.adapters.registry import COMBINATIONS, SAVED_WHOLE, MajoritySign, SavedWhole
from mergekern.merging.adapters.truncation import Truncation
from mergekern.merging.arguments import Weights, finite_weights, resolve_dtype
from mergekern.progress import Progress

_WEIGHTS_FILE = ADAPTER_FILES[0]


class MergedAdapter(NamedTuple):
    """A merged LoRA adapter in memory.

    Attributes:
        tensors: by the names that PEFT gives them in adapter_model.safetensors.
        config: adapter_config.json.
        truncation_error: relative Frobenius error of the approximation of rank r, over all modules together; 0 where
            the combination has none.
        notes: what took no part, and what could not be kept.
    """

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    truncation_error: float
    notes: list[str]


def merge_adapters(
    adapters: Any,
    combination: str = "svd",
    *,
    weights: Weights = None,
    density: float | None = None,
    svd_rank: int | None = None,
    majority_sign: MajoritySign = "total",
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    dtype: str | torch.dtype | None = None,
    base_name: str | None = None,
    saved_whole: SavedWhole = "error",
    rename: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> MergedAdapter | Path:
    """Merge LoRA adapters of one model into one LoRA adapter, from their factors; the model itself is not needed.

    `docs/adapters.md` says which combination to take, and what each one does. The result has scale 1 in every module
    (lora_alpha = r, no rsLoRA).

    Args:
        adapters: a folder of PEFT adapters, a sequence of their paths, or a mapping name -> path. One alone is made
            smaller by "svd".
        combination: one of `mergekern.COMBINATIONS`. "cat" is exact, "svd" the best of a rank.
        weights: one for each adapter, by name or in their order, of any sign; 1 by default.
        density: share of the elements that are kept, above 0 and at most 1; needed by ties, dare and magnitude_prune.
        svd_rank: largest rank of a module of the result, for "svd" and the forms in _svd; by default the largest of the
            adapters.
        majority_sign: how ties elects a sign: by the sum ("total"), or by the number of signs ("frequency").
        seed: seed of the random masks of dare.
        output: a folder to be written, which PEFT loads; None returns the tensors.
        overwrite: whether an `output` that mergekern wrote is replaced.
        dtype: "float64", "float32", "float16" or "bfloat16", of all tensors; by default each module has that of its
            factors, the widest where they differ. Sums are float64 and rounded once.
        base_name: name of the base in the result's configuration; needed where the adapters name different ones.
        saved_whole: what becomes of tensors that adapters hold whole (modules_to_save, biases) where they are not the
            same in all: "error", "average", their weighted mean, or "skip".
        rename: parts of tensor names to replace, OLD -> NEW; see `merge`.
        progress: called with a `Progress` at the start of every module and at the end.
        io: "mmap" maps the files; "pread" reads them.

    Returns:
        The path written; or, without `output`, a `MergedAdapter`.

    Raises:
        OptionError: an unknown combination; an option that it lacks or does not take, or out of range; adapters of
            different bases; tensors held whole.
        MismatchError: adapters do not fit together, or differ in rank where the combination needs equal ranks.
        CheckpointError, NonFiniteError: an adapter cannot be read, is no LoRA, or holds NaN or infinite values.
        OutputError: the output exists already, or cannot be written.

    The result does not depend on the order of the adapters, nor on the number of threads, to the last bit. Beside it
    lies its record, mergekern.json: combination, options, weights, hashes, truncation error and notes.
    """
    merge = _planned(
        open_adapters(adapters, io, rename), combination, weights,
        {"density": density, "svd_rank": svd_rank, "majority_sign": majority_sign, "seed": seed},
        resolve_dtype(dtype), base_name, saved_whole,
    )  # fmt: skip
    if output is not None:
        _check_output(Path(output), merge.adapters, overwrite)
    show([], merge.notes)
    if output is None:
        sink = _InMemory(merge.entries)
        truncation = merge.run(sink, progress)
    else:
        truncation = _write(merge, Path(output), overwrite, progress)
    show([], [truncation.note] if "svd_rank" in merge.options else [])
    if output is None:
        return MergedAdapter(sink.tensors, dict(merge.config), truncation.error, list(merge.notes))
    return Path(output)


def _planned(
    adapters: Adapters, name: str, weights: Weights, given: Mapping[str, Any], dtype: torch.dtype | None,
    base_name: str | None, saved_whole: SavedWhole,
) -> AdapterMerge:  # fmt: skip
    options = resolve_options(name, given)
    one_of("saved_whole", saved_whole, SAVED_WHOLE)
    count = len(adapters.adapters)
    values = (1.0,) * count if weights is None else tuple(map(float, finite_weights(weights, adapters.names)))
    base = base_of(adapters, base_name)
    modules = plan_modules(adapters, COMBINATIONS[name], options.get("svd_rank"), dtype)
    whole, notes_on_whole = plan_whole(adapters, saved_whole, values, dtype)
    ranks = {output.module.name: output.rank for output in modules if not output.module.is_bias}
    has_biases = any(output.module.is_bias for output in modules)
    config, notes_on_config = merged_configuration(adapters, ranks, base, [output.name for output in whole], has_biases)
    notes = [*notes_on_whole, *notes_of_plan(adapters, modules, {"dtype": dtype}), *notes_on_config]
    notes += _notes_on_folders(adapters)
    if alone := shares_no_module(adapters):
        notes.append(f"adapters that share no module with another: {listed(alone)}")
    notes += notes_of_checkpoints(
        {adapter.name: adapter.notes for adapter in sorted(adapters.adapters, key=lambda adapter: adapter.name)},
        adapters.names,
    )
    return AdapterMerge(adapters, name, options, values, modules, whole, config, Contents(adapters), notes)


class _InMemory:
    """A `Sink` that keeps the tensors."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._shapes = {entry.name: entry.shape for entry in entries}
        self.tensors: dict[str, torch.Tensor] = {}

    def write(self, name: str, values: torch.Tensor) -> None:
        """See `Sink`."""
        self.tensors[name] = values.reshape(self._shapes[name]).clone()


def _write(merge: AdapterMerge, path: Path, overwrite: bool, progress: Callable[[Progress], None] | None) -> Truncation:
    by_size = tuple(sorted(merge.entries, key=lambda entry: -entry.dtype.itemsize))
    config = (json.dumps(merge.config, indent=2) + "\n").encode()
    layout = Layout({_WEIGHTS_FILE: by_size}, {_WEIGHTS_FILE: {"format": "pt"}}, {ADAPTER_CONFIG: config})
    place = path.absolute().parent
    with ExitStack() as stack:
        with as_output_errors(place):
            aside = stack.enter_context(workspace(place))
        writer = Writer(path, layout, merge.record(Truncation()), overwrite, aside)
        truncation = merge.run(writer, progress)
        writer.seal(merge.record(truncation))
        writer.move()
    return truncation


def _check_output(path: Path, adapters: Adapters, overwrite: bool) -> None:
    """Raise OutputError unless the result may be written."""
    check_name(path)
    if path.suffix == ".safetensors":
        raise OutputError(f"{path}: an adapter is a folder; give a name without .safetensors")
    for adapter in adapters.adapters:
        if path.resolve() == Path(adapter.source).resolve():
            raise OutputError(f"{path}: is {adapter.name!r} itself, which is read; write to another place")
    check_target(path, True, overwrite)


def _notes_on_folders(adapters: Adapters) -> list[str]:
    """Return a note on the files beside the adapters, such as tokenizers."""
    own = {ADAPTER_CONFIG, *ADAPTER_FILES}
    found: set[str] = set()
    for adapter in adapters.adapters:
        files = folder_files(Path(adapter.source), own)
        found |= {*files.copied, *files.submodels, *files.left}
    return (
        [f"files beside the adapters, which are not copied ({len(found):,}): {listed(sorted(found))}"] if found else []
    )
