"""Adding models to statistics that are there, and removing some, without measuring the others again."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mergekern.api import measure
from mergekern.checkpoints.sources import IO, CheckpointLike, ZooLike
from mergekern.checkpoints.zoo_sources import named_sources
from mergekern.errors import OptionError, StatisticsError
from mergekern.functional.calibration import Calibration
from mergekern.measurement.options import MeasureOptions
from mergekern.metrics import ADDITIONAL
from mergekern.progress import Progress
from mergekern.statistics import ZooStatistics
from mergekern.statistics.layer_block import LayerBlock
from mergekern.statistics.manifest import LayerEntry, Manifest
from mergekern.statistics.store import remove_others, writing
from mergekern.statistics.zoo import positions

logger = logging.getLogger(__name__)


def add_models(
    checkpoints: ZooLike,
    to: str | os.PathLike[str],
    *,
    base: CheckpointLike | None = None,
    calibration: Calibration | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
) -> ZooStatistics:
    """Add models to a folder of statistics: only they are factorised, and only their pairs are computed.

    The models that are there are read once more, for their inner products with the new ones, from where they were read
    before. The values are those, to the last bit, that a run on all models at once gives.

    Args:
        checkpoints: the new models: a path, or several as `compute_all` takes them.
        to: a folder that `compute_all(statistics=...)` or `mergekern metrics --statistics` finished.
        base: where the base is now, if it has moved.
        calibration: samples and heads of all models, to run them anew; if None, metrics that run models are dropped.
        device, max_memory, progress, io, rename: as for `compute_all`; `rename` also of the models that are there.

    Raises:
        OptionError: a model of that name is there, or one that is there cannot be read again since it was in memory.
        StatisticsError: not a folder of finished statistics.
        CheckpointError, MismatchError, NonFiniteError, OutputError: as for `compute_all`.

    >>> import tempfile, mergekern
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, value in (("base", 0.0), ("a", 1.0), ("b", 2.0), ("c", 3.0)):
    ...         save_file({"w": torch.full((2,), value)}, f"{folder}/{name}.safetensors")
    ...     files = [f"{folder}/a.safetensors", f"{folder}/b.safetensors"]
    ...     _ = mergekern.measure(files, f"{folder}/base.safetensors", statistics=f"{folder}/stats")
    ...     add_models(f"{folder}/c.safetensors", f"{folder}/stats").inner.tolist()
    [[2.0, 4.0, 6.0], [4.0, 8.0, 12.0], [6.0, 12.0, 18.0]]
    """
    new = named_sources(checkpoints)
    Manifest.read(Path(to))  # or there is nothing to add to
    with writing(to) as store:
        before = Manifest.read(store.path)
        models, base = _with_new(store.path, before, new, base)
        if before.functional and calibration is None:
            logger.warning(
                "%s: the metrics of activations and gradients are of all models and their samples, and are given up; "
                "give the calibration data to keep them", store.path,
            )  # fmt: skip
        options = MeasureOptions(
            metrics=_metrics_of(store.path, before),
            top_k=before.top_k,
            spectrum_k=before.spectrum_k,
            device=device,
            max_memory=max_memory,
            on_mismatch="skip" if before.skipped else "error",
            io=io,
            rename=rename,
            **_svd_of(before),
        )
        found = measure(models, base, options, calibration=calibration, statistics=store, progress=progress)
    _warn_of_changes(before, found)
    return found


def _with_new(folder: Path, before: Manifest, new: dict[str, Any], base: Any) -> tuple[dict[str, Any], Any]:
    """Return all models, those that are there from where they were read, and the base."""
    if taken := [name for name in new if name in before.models]:
        remove_others(folder, before.file_names)  # of a run that was killed when it had added them
        raise OptionError(
            f"{folder}: has a model {taken[0]!r} already; remove it first, or give the new one another name"
        )
    if gone := [name for name in before.models if before.sources.get(name) is None]:
        raise OptionError(
            f"{folder}: {gone[0]!r} was in memory when it was measured, and is needed for its inner products with the "
            "new models: call compute_all(all models, statistics=...), which measures only what is new"
        )
    base = base if base is not None else before.sources.get("base")
    return {**{name: before.sources[name] for name in before.models}, **new}, base


def remove_models(models: Iterable[str], statistics: str | os.PathLike[str]) -> tuple[str, ...]:
    """Remove models from a folder of statistics, and return those that are left; nothing is computed.

    Raises:
        OptionError: an unknown model, or fewer than two would be left.
        StatisticsError: not a folder of finished statistics.
        OutputError: the folder cannot be written to, or another process is using it.
    """
    gone = list(models)
    with writing(statistics) as store:
        manifest = Manifest.read(store.path)
        if not set(gone) <= set(manifest.models):
            remove_others(store.path, manifest.file_names)  # of a run that was killed when it had removed them
        positions(manifest.models, gone)
        left = [name for name in manifest.models if name not in gone]
        if len(left) < 2:
            raise OptionError(
                f"{store.path}: {len(left)} of {len(manifest.models)} models would be left; two are the least"
            )
        manifest = manifest.select(left)
        layers = tuple(_with_needed_blocks(store.path, entry) for entry in manifest.layers)
        store.finish(dataclasses.replace(manifest, layers=layers))
    return tuple(left)


def _with_needed_blocks(folder: Path, entry: LayerEntry) -> LayerEntry:
    """Return a tensor with those of its blocks that have pairs of its models, and those that cannot be read."""
    if len(entry.blocks) == 1:
        return entry
    models, needed = set(entry.hashes[1:]), []
    for key in entry.blocks:
        with contextlib.suppress(StatisticsError):
            if not LayerBlock.read(folder, key).key.has_pairs_of(models):
                continue
        needed.append(key)
    return dataclasses.replace(entry, blocks=tuple(needed))


def _metrics_of(folder: Path, manifest: Manifest) -> list[str]:
    """Return what a folder's statistics are for: "all", or what needs no factorisation, and metrics beyond those."""
    names = ["all"] if _has_spectra(folder, manifest) else ["task-vector geometry", "effective rank"]
    extras = {*(manifest.provenance or {}).get("extras", []), *manifest.functional}
    return names + [name for name, metric in ADDITIONAL.items() if metric.needs in extras]


def _has_spectra(folder: Path, manifest: Manifest) -> bool:
    """Tell whether some models were factorised; where every block that could tell is damaged, they are again."""
    matrices = [entry for entry in manifest.layers if len(entry.shape) == 2]
    for entry in matrices:
        has_spectra = []
        for key in entry.blocks:
            with contextlib.suppress(StatisticsError):
                has_spectra.append(LayerBlock.read(folder, key).has_spectra)
        if has_spectra:
            return any(has_spectra)
    return bool(matrices)


def _svd_of(manifest: Manifest) -> dict[str, Any]:
    """Return the options of the factorisation that a folder's statistics are from; there are none of an exact one."""
    said = (manifest.provenance or {}).get("svd")
    return {} if said is None else {"svd": said["kind"], "svd_tolerance": said["tolerance"]}


def _warn_of_changes(before: Manifest, after: ZooStatistics) -> None:
    then, now = ((provenance or {}).get("content_hashes", {}) for provenance in (before.provenance, after.provenance))
    changed = [name for name in before.models if then.get(name) != now.get(name)]
    if then.get("base") != now.get("base"):
        logger.warning("the base is another one than before: all models were measured again")
    elif changed:
        logger.warning("%s: changed since they were measured; measured again", ", ".join(changed))
