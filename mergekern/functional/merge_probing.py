"""merge_probes: what merge methods do to each model alone, and to each pair, on samples of their own tasks."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from mergekern._internal.versions import package_version, versions
from mergekern.checkpoints import Checkpoint, open_checkpoint, open_zoo
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch, align
from mergekern.errors import MergekernError, StatisticsError
from mergekern.functional.binding import Binding
from mergekern.functional.calibration import Calibration
from mergekern.functional.forward import Forward, Outcome
from mergekern.kernels import dispatch
from mergekern.merging.apply import MERGED_BYTES, merge_all
from mergekern.merging.recipe import Method
from mergekern.merging.registry import find_methods
from mergekern.metrics import MERGE_PROBES
from mergekern.progress import Progress
from mergekern.statistics.blocks import SUFFIX
from mergekern.statistics.merges import MergeStatistics
from mergekern.tables.metric_table import MetricTable
from mergekern.tables.notes import notes_of_missing

logger = logging.getLogger(__name__)
# Seconds of work that a run which is killed may lose.
SAVED_EVERY = 10.0
BASE = "base"  # No model of a zoo may have this name.
Group = tuple[int, ...]  # positions of the models of a merge; of one, it is the merge with the base


def merge_probes(
    checkpoints: Any,
    base: Any = None,
    *,
    calibration: Calibration,
    methods: str | Iterable[str],
    direct: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    merged_memory: int = MERGED_BYTES,
    on_mismatch: OnMismatch = "error",
    statistics: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> MetricTable:
    """Merge each model alone, and each pair if asked to, and measure it on calibration samples of its own task.

    A *solo probe* is what a merge method does to one model: its merge of the model with the base, whose task vector is
    zero, as if in a pair. That is θ₀ + τ/2 for weight_average, θ₀ + 0.3·τ for task_arithmetic, the trimmed or thinned τ
    for ties, dare and dare_ties, the leading half of the singular triplets for tsv, the same with their mean singular
    value for isotropic, and the model itself for tall_masks, which therefore tells nothing. There are N of them. A
    *direct probe* is the merge of a pair, of which there are N(N−1)/2. `mergekern.MERGE_PROBES` lists what is made of
    both for a pair: loss and accuracy beside those of the single models, mean and worst of the two tasks.

    Args:
        checkpoints, base, on_mismatch, io: as for `compute_all`.
        calibration: the model, samples and heads that merges are measured with.
        methods: of merging, one name or several; `mergekern.METHODS`.
        direct: also merge and measure every pair.
        options: of the methods, by method.
        device, max_memory, merged_memory: as for `merge_all`; the models run on this device too.
        statistics: a folder in which what was measured is kept, a file for each method: a run that was killed continues
            from there. It is of use for the same inputs (by content hash), options and versions alone.
        progress: called with a `Progress` before each merge that is measured, whose `probe` says which, and at the end;
            tensors and bytes are those of the merges.

    Returns:
        A `MetricTable` with a column for each probe and method, named "solo_loss_mean[tsv]"; `MetricTable.join` puts
        them beside the other metrics. Where labels are no classes, there are columns of losses only.

    Raises:
        OptionError: an unknown method, option or device; no base; fewer than two models.
        CalibrationError: samples or heads that do not fit the models.
        CheckpointError, MismatchError, NonFiniteError: as for `compute_all`.
        StatisticsError: `statistics` is a file.

    >>> from torch import nn
    >>> encoder, draw = nn.Linear(4, 3), torch.Generator().manual_seed(0)
    >>> samples = torch.randn(20, 4, generator=draw), torch.arange(20) % 3, (torch.eye(3), None)
    >>> base = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    >>> tuned = {m: {k: torch.randn(v.shape, generator=draw) for k, v in base.items()} for m in "abc"}
    >>> calibration = Calibration(encoder, dict.fromkeys("abc", samples), "")
    >>> merge_probes(tuned, base, calibration=calibration, methods=["tsv", "ties"]).metrics[:3]
    ('solo_loss_mean[tsv]', 'solo_loss_mean[ties]', 'solo_loss_worst[tsv]')
    """
    chosen = find_methods(methods, options)
    backend = dispatch.choose(device)
    folder = None if statistics is None else Path(statistics)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise StatisticsError(f"{folder}: is a file; statistics are kept in a folder")
    zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io)
    binding = Binding(zoo, calibration, frozenset())
    binding.check_fit(zoo.base)
    keys = {} if folder is None else _keys(binding, chosen, backend.name)
    works = []
    for method, resolved in chosen:
        path = None if folder is None else folder / f"{method.name}{SUFFIX}"
        works.append(_Work(method, resolved, path, keys.get(method.name), len(zoo.models)))
    how = {"device": device, "max_memory": max_memory, "merged_memory": merged_memory}
    _Run(binding, backend.device, how).measure(works, direct, progress)
    return _as_table(binding, works, direct, str(backend.device))


class _Work:
    """What is measured of one method, kept in a file as it grows."""

    def __init__(
        self, method: Method, options: dict[str, Any], path: Path | None, key: str | None, models: int
    ) -> None:
        self.method, self.options, self._path, self._key = method, options, path, key
        self.found = MergeStatistics.empty(models)
        self._is_saved = True
        if path is None or not path.exists():
            return
        try:
            kept, description = MergeStatistics.read(path)
            if description["key"] == key:
                self.found = kept
        except StatisticsError as error:
            logger.warning("%s; measuring again", error)

    def lacking(self, direct: bool) -> list[Group]:
        """Return the models alone, and the pairs if asked for, that are not measured yet."""
        models = range(len(self.found.solo))
        wanted: list[Group] = [*((model,) for model in models), *(combinations(models, 2) if direct else ())]
        return [group for group in wanted if any(np.isnan(self._place(group, model)[0]) for model in group)]

    def put(self, group: Group, model: int, outcome: Outcome) -> None:
        """Take how the merge of a group does on the task of one of its models."""
        self._place(group, model)[:] = _finite_loss(outcome)
        self._is_saved = False

    def put_single(self, model: int, outcome: Outcome) -> None:
        """Take how a model does on its own task."""
        self.found.single[model] = _finite_loss(outcome)
        self._is_saved = False

    def save(self) -> None:
        """Write the file, if anything is new."""
        if self._path is not None and not self._is_saved:
            self.found.write(self._path, {"key": self._key})
        self._is_saved = True

    def _place(self, group: Group, model: int) -> np.ndarray:
        if len(group) == 1:
            return self.found.solo[model]
        return self.found.direct[model, sum(group) - model]


def _finite_loss(outcome: Outcome) -> Outcome:
    """Return an outcome whose loss is ∞ where it is not finite: NaN is for what is not measured."""
    return outcome if math.isfinite(outcome.loss) else Outcome(math.inf, outcome.accuracy)


class _Run:
    """Takes merges from memory, and measures each on the task of every model in it."""

    def __init__(self, binding: Binding, device: torch.device, how: Mapping[str, Any]) -> None:
        self.binding, self.forward, self.how = binding, Forward(binding, device), how
        zoo = binding.zoo
        self.names = zoo.model_names
        # The base as a model of itself: what a model is merged with where it is alone.
        self.with_base = align(zoo.base, (*zoo.models, zoo.base), "skip" if zoo.skipped else "error")

    def measure(self, works: Sequence[_Work], direct: bool, progress: Callable[[Progress], None] | None) -> None:
        """Measure what the works lack."""
        if any(np.isnan(work.found.single[:, 0]).any() for work in works):
            for model, checkpoint in enumerate(self.binding.zoo.models):
                outcome = self._outcome(checkpoint, model)
                for work in works:
                    work.put_single(model, outcome)
        lacking = {work.method.name: work.lacking(direct) for work in works}
        total, done = sum(map(len, lacking.values())), 0
        began = saved = time.perf_counter()
        tensors, size = len(self.with_base.tensors), sum(t.nbytes for t in self.binding.zoo.base.tensors.values())
        by_method = {work.method.name: work for work in works}

        def report(what: str) -> None:
            if progress is not None:
                seconds = time.perf_counter() - began
                progress(Progress("", done * tensors, total * tensors, done * size, total * size, seconds, what))

        def take(group: tuple[str, ...], method: str, merged: dict[str, torch.Tensor]) -> None:
            nonlocal done, saved
            models = tuple(self.names.index(name) for name in group if name != BASE)
            what = f"{method} of {' + '.join(self.names[model] for model in models)}"
            report(what)
            checkpoint = open_checkpoint(merged, what)
            for model in models:
                by_method[method].put(models, model, self._outcome(checkpoint, model))
            done += 1
            if time.perf_counter() - saved > SAVED_EVERY:
                _save(works)
                saved = time.perf_counter()

        try:
            for groups, methods in _by_groups(lacking):
                names = [tuple(self.names[model] for model in group) for group in groups]
                merge_all(
                    self.with_base, methods=methods, callback=take, **self.how,
                    groups=[group if len(group) > 1 else (*group, BASE) for group in names],
                    options={name: by_method[name].options for name in methods},
                )  # fmt: skip
        except MergekernError:  # of bad input nothing more is kept
            raise
        except BaseException:
            _save(works)
            raise
        _save(works)
        report("")

    def _outcome(self, checkpoint: Checkpoint, model: int) -> Outcome:
        """Return how a checkpoint does on the task of a model."""
        name = self.names[model]
        with self.forward.undisturbed():
            parameters, buffers = self.binding.tensors(checkpoint, self.forward.device)
            task = self.binding.calibration.tasks[name]
            return self.forward.outcome(checkpoint.name, task, {**parameters, **buffers})


def _by_groups(lacking: Mapping[str, Sequence[Group]]) -> list[tuple[tuple[Group, ...], list[str]]]:
    """Return the methods that lack the same groups together: a tensor is read once for all of them.

    >>> _by_groups({"ties": [(0,), (1,)], "dare": [], "tsv": [(0,), (1,)]})
    [(((0,), (1,)), ['ties', 'tsv'])]
    """
    found: dict[tuple[Group, ...], list[str]] = {}
    for method, groups in lacking.items():
        if groups:
            found.setdefault(tuple(groups), []).append(method)
    return list(found.items())


def _save(works: Iterable[_Work]) -> None:
    for work in works:
        work.save()


def _keys(binding: Binding, chosen: Iterable[tuple[Method, dict[str, Any]]], device: str) -> dict[str, str]:
    """Return for each method a hash of everything that its statistics depend on."""
    # Where the content cannot be known, the statistics are of no use for another run.
    calibration = binding.calibration.content_hash(binding.model) or uuid.uuid4().hex
    hashes = [checkpoint.content_hash() for checkpoint in binding.zoo.checkpoints]
    common = [package_version("mergekern"), torch.__version__, device, calibration, hashes, binding.zoo.model_names]
    return {
        method.name: xxhash.xxh3_128_hexdigest(
            json.dumps([*common, binding.zoo.skipped, method.name, options]).encode()
        )
        for method, options in chosen
    }


def _as_table(binding: Binding, works: Sequence[_Work], direct: bool, device: str) -> MetricTable:
    values = {}
    for probe in MERGE_PROBES.values():
        if probe.name.startswith("direct") and not direct:
            continue
        for work in works:
            matrix = probe.function(work.found)
            if "loss" in probe.name or binding.calibration.uses_classes:
                values[f"{probe.name}[{work.method.name}]"] = matrix
    names = binding.zoo.model_names
    notes = [f"tensor taken from the base in every merge: {line}" for line in binding.zoo.skipped]
    methods = {work.method.name: work.options for work in works}
    provenance = {"methods": methods, "device": device, "versions": versions(), "calibration": binding.provenance()}
    return MetricTable(names, values, None, notes + notes_of_missing(names, values), {"merge_probes": provenance})
