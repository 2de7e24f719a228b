"""merge_probes: what merge methods do to each model alone, and to each pair, on samples of their own tasks."""

from __future__ import annotations

import json
import logging
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
from mergekern.functional.gathering import gather
from mergekern.functional.known_scores import FILE, KnownRun, finite_loss, samples_note
from mergekern.kernels import dispatch
from mergekern.merging.gathered import Gathered, Need, run_for
from mergekern.merging.merge import MERGED_BYTES, merge_all
from mergekern.merging.method import Method
from mergekern.merging.output import StateDict
from mergekern.merging.registry import find_methods
from mergekern.metrics import MERGE_PROBES
from mergekern.progress import Progress
from mergekern.statistics.blocks import SUFFIX
from mergekern.statistics.merges import MergeStatistics
from mergekern.tables.metric_table import MetricTable
from mergekern.tables.notes import notes_of_missing

logger = logging.getLogger(__name__)
# A run that is killed may lose this many seconds of work.
SAVED_EVERY = 10.0
BASE = "base"  # No model of a zoo may have this name.
Group = tuple[int, ...]  # Positions of the models of a merge; a single model is merged with the base.


def merge_probes(
    checkpoints: Any,
    base: Any = None,
    *,
    calibration: Calibration,
    methods: str | Iterable[str],
    direct: bool = False,
    model_scores: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    merged_memory: int = MERGED_BYTES,
    on_mismatch: OnMismatch = "error",
    statistics: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
) -> MetricTable:
    """Merge each model alone, and each pair if asked to, and measure it on calibration samples of its own task.

    A *solo probe* is what a merge method does to one model: its merge of the model with the base, whose task vector is
    zero, as if in a pair. That is θ₀ + τ/2 for weight_average, θ₀ + 0.3·τ for task_arithmetic, the trimmed or thinned τ
    for ties, dare and dare_ties, the leading half of the singular triplets for tsv, the same with their mean singular
    value for isotropic, and the model itself for tall_masks, which therefore tells nothing. There are N of them. A
    *direct probe* is the merge of a pair. There are N(N−1)/2 of them. `mergekern.MERGE_PROBES` lists the metrics of a
    pair that come from both: loss and accuracy beside those of the single models, mean and worst of the two tasks.

    Args:
        checkpoints, base, on_mismatch, io, rename: as for `compute_all`.
        calibration: the model, samples and heads that merges are measured with.
        methods: one merge method or several, of `mergekern.METHODS`; also "regmean" and "fisher", for which the base of
            a solo probe is run on the samples of all tasks. None with `model_scores`, if you like.
        direct: also merge and measure every pair.
        model_scores: also measure each model, and the base on each model's task with that model's head, once for all
            methods. The table then has the columns of `mergekern.MODEL_SCORES`, which the predictor "prior" reads.
        options: options of each method: method -> option -> value.
        device, max_memory, merged_memory: as for `merge_all`; the models run on this device too.
        statistics: a folder in which what was measured is kept, a file for each method: a run that was killed continues
            from there. What was measured of other inputs (by content hash), options or versions is measured again.
        progress: called with a `Progress` before each merge that is measured, which its `activity` names, and at the
            end; tensors and bytes are those of the merges.

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
    chosen = [] if model_scores and not methods else find_methods(methods, options)
    for method, _ in chosen:
        method.check_count(2)
    backend = dispatch.choose(device)
    folder = None if statistics is None else Path(statistics)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise StatisticsError(f"{folder}: is a file; statistics are kept in a folder")
    zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, rename=rename)
    binding = Binding(zoo, calibration, frozenset())
    binding.check_fit(zoo.base)
    keys = {} if folder is None else _keys(binding, chosen, backend.name)
    known = None
    if model_scores:
        known = KnownRun(len(zoo.models), None if folder is None else folder / FILE, keys.get(FILE))
    measured = []
    for method, resolved in chosen:
        path = None if folder is None else folder / f"{method.name}{SUFFIX}"
        measured.append(_MethodProbes(method, resolved, path, keys.get(method.name), len(zoo.models)))
    how = {"device": device, "max_memory": max_memory, "merged_memory": merged_memory}
    _ProbeRun(binding, backend.device, measured, known, direct, progress).measure(how)
    return _as_table(binding, measured, known, direct, str(backend.device))


def _keys(binding: Binding, chosen: Iterable[tuple[Method, dict[str, Any]]], device: str) -> dict[str, str]:
    """Return for each method, and for model scores, a hash of everything that their statistics depend on."""
    # Where the content cannot be known, the statistics are of no use for another run.
    calibration = binding.calibration.content_hash(binding.model) or uuid.uuid4().hex
    hashes = [checkpoint.content_hash() for checkpoint in binding.zoo.checkpoints]
    zoo = binding.zoo
    common = [
        package_version("mergekern"),
        torch.__version__,
        device,
        calibration,
        hashes,
        zoo.model_names,
        zoo.skipped,
    ]
    how = {method.name: [*common, method.name, options] for method, options in chosen}
    return {name: xxhash.xxh3_128_hexdigest(json.dumps(what).encode()) for name, what in {**how, FILE: common}.items()}


class _MethodProbes:
    """Statistics of the merges by one method, kept in a file as they grow.

    Args:
        method: how models are merged.
        options: all options of the method.
        path: the file; None keeps nothing.
        key: hash of all inputs; what a file holds under another key is measured again.
        models: how many there are.

    Attributes:
        method, options: as given.
        statistics: what is measured so far.
    """

    def __init__(
        self, method: Method, options: dict[str, Any], path: Path | None, key: str | None, models: int
    ) -> None:
        self.method, self.options, self._path, self._key = method, options, path, key
        self.statistics = MergeStatistics.empty(models)
        self._is_saved = True
        if path is None or not path.exists():
            return
        try:
            kept, description = MergeStatistics.read(path)
            if description["key"] == key:
                self.statistics = kept
        except StatisticsError as error:
            logger.warning("%s; measuring again", error)

    @property
    def lacks_single_models(self) -> bool:
        """Whether a model as it is has not been measured yet."""
        return bool(np.isnan(self.statistics.single[:, 0]).any())

    def lacking(self, direct: bool) -> list[Group]:
        """Return the models alone, and the pairs if asked for, that are not measured yet."""
        models = range(len(self.statistics.solo))
        wanted: list[Group] = [*((model,) for model in models), *(combinations(models, 2) if direct else ())]
        return [group for group in wanted if any(np.isnan(self._place(group, model)[0]) for model in group)]

    def put(self, group: Group, model: int, outcome: Outcome) -> None:
        """Keep how the merge of a group does on the task of one of its models."""
        self._place(group, model)[:] = finite_loss(outcome)
        self._is_saved = False

    def put_single(self, model: int, outcome: Outcome) -> None:
        """Keep how a model as it is does on its own task."""
        self.statistics.single[model] = finite_loss(outcome)
        self._is_saved = False

    def save(self) -> None:
        """Write the file, if anything is new."""
        if self._path is not None and not self._is_saved:
            self.statistics.write(self._path, {"key": self._key})
        self._is_saved = True

    def _place(self, group: Group, model: int) -> np.ndarray:
        if len(group) == 1:
            return self.statistics.solo[model]
        return self.statistics.direct[model, sum(group) - model]


class _ProbeRun:
    """One run over the merges that are not measured yet, each made in memory and run on the task of every model in it.

    Args:
        plan: the models, and what they are run on.
        device: the models run here.
        measured: what is measured so far of each method, and takes what this run adds.
        known: the same of the models and the base without a merge, if it is asked for.
        direct: whether pairs are merged as well.
        progress: called before each merge that is measured, and at the end.
    """

    def __init__(
        self, binding: Binding, device: torch.device, measured: Sequence[_MethodProbes], known: KnownRun | None,
        direct: bool, progress: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        self._binding, self._forward, self._progress = binding, Forward(binding, device), progress
        self._names, self._known = binding.zoo.model_names, known
        self._by_method = {each.method.name: each for each in measured}
        self._lacking = {name: each.lacking(direct) for name, each in self._by_method.items()}
        # The base as a model of itself: what a model is merged with where it is alone.
        zoo = binding.zoo
        self._with_base = align(zoo.base, (*zoo.models, zoo.base), "skip" if zoo.skipped else "error")
        self._tensors_of_merge = len(self._with_base.tensors)
        self._bytes_of_merge = sum(tensor.nbytes for tensor in zoo.base.tensors.values())
        self._samples = _Once(binding, device)
        self._total, self._done = sum(map(len, self._lacking.values())), 0
        self._start = self._last_saved = time.perf_counter()

    def measure(self, how: Mapping[str, Any]) -> None:
        """Measure what is lacking.

        Args:
            how: device and memory, for `merge_all`.
        """
        self._measure_single_models()
        try:
            for groups, methods in _by_groups(self._lacking):
                self._measure_merges(groups, methods, how)
        except MergekernError:  # of bad input nothing more is kept
            raise
        except BaseException:
            self._save()
            raise
        self._save()
        self._report("")

    def _measure_single_models(self) -> None:
        zoo = self._binding.zoo
        if self._known is not None:
            self._known.measure(zoo.base, zoo.models, self._outcome)
        if not any(each.lacks_single_models for each in self._by_method.values()):
            return
        for model, checkpoint in enumerate(zoo.models):
            outcome = self._outcome(checkpoint, model) if self._known is None else Outcome(*self._known.own[model])
            for each in self._by_method.values():
                each.put_single(model, outcome)

    def _measure_merges(self, groups: Sequence[Group], methods: Sequence[str], how: Mapping[str, Any]) -> None:
        """Merge these groups by these methods, and measure each merge as it is handed over."""
        names = [tuple(self._names[model] for model in group) for group in groups]
        merge_all(
            self._with_base, methods=methods, callback=self._measure_merge, **how,
            groups=[group if len(group) > 1 else (*group, BASE) for group in names],
            options={method: self._by_method[method].options for method in methods},
            calibration=self._samples if any(self._by_method[method].method.needs for method in methods) else None,
        )  # fmt: skip

    def _measure_merge(self, group: tuple[str, ...], method: str, merged: StateDict) -> None:
        """Run one merge on the task of every model in it."""
        models = tuple(self._names.index(name) for name in group if name != BASE)
        what = f"{method} of {' + '.join(self._names[model] for model in models)}"
        self._report(what)
        checkpoint = open_checkpoint(merged, what)
        for model in models:
            self._by_method[method].put(models, model, self._outcome(checkpoint, model))
        self._done += 1
        if time.perf_counter() - self._last_saved > SAVED_EVERY:
            self._save()
            self._last_saved = time.perf_counter()

    def _outcome(self, checkpoint: Checkpoint, model: int) -> Outcome:
        """Return how a checkpoint does on the task of a model."""
        with self._forward.undisturbed():
            parameters, buffers = self._binding.tensors(checkpoint, self._forward.device)
            task = self._binding.calibration.tasks[self._names[model]]
            return self._forward.outcome(checkpoint.name, task, {**parameters, **buffers})

    def _save(self) -> None:
        for each in self._by_method.values():
            each.save()

    def _report(self, what: str) -> None:
        if self._progress is not None:
            tensors, size, done, total = self._tensors_of_merge, self._bytes_of_merge, self._done, self._total
            seconds = time.perf_counter() - self._start
            self._progress(Progress("", done * tensors, total * tensors, done * size, total * size, seconds, what))


class _Once:
    """Gathers what merges need of runs of the models, once for all merges; of the base on the samples of all tasks."""

    def __init__(self, binding: Binding, device: torch.device) -> None:
        self._binding, self._device = binding, device
        self._found: dict[frozenset[Need], Gathered] = {}

    def gather(self, needs: frozenset[Need], progress: Callable[[Progress], None] | None) -> Gathered:
        """Return what is needed of the models and the base."""
        if needs not in self._found:
            self._found[needs] = gather(self._binding, needs, self._device, base=BASE, progress=progress)
        return self._found[needs]


@run_for.register(_Once)
def _(
    samples: _Once, zoo: Any, needs: frozenset[Need], device: Any, progress: Callable[[Progress], None] | None
) -> Gathered:
    return samples.gather(needs, progress)


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


def _as_table(
    binding: Binding, measured: Sequence[_MethodProbes], known: KnownRun | None, direct: bool, device: str
) -> MetricTable:
    values = {} if known is None else known.columns(binding.calibration)
    for probe in MERGE_PROBES.values():
        if probe.name.startswith("direct") and not direct:
            continue
        for each in measured:
            if "loss" in probe.name or binding.calibration.uses_classes:
                values[f"{probe.name}[{each.method.name}]"] = probe.function(each.statistics)
    names = binding.zoo.model_names
    notes = [f"tensor taken from the base in every merge: {line}" for line in binding.zoo.skipped]
    notes += [] if known is None else [samples_note(binding.calibration)]
    methods = {each.method.name: each.options for each in measured}
    provenance = {"methods": methods, "device": device, "versions": versions(), "calibration": binding.provenance()}
    return MetricTable(names, values, None, notes + notes_of_missing(names, values), {"merge_probes": provenance})
