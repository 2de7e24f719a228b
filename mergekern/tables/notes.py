"""Notes of a table: tensors left out, and pairs without a value and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergekern._internal.notes import names_of, notes_of_checkpoints
from mergekern._internal.text import NAMED, listed
from mergekern.metrics import metric_of
from mergekern.metrics.subspace import SIDES, Frozen, SmallTensors, is_constant
from mergekern.statistics import ZooStatistics

# Files and folders without a model that have a note each; the provenance names all.
LEFT_OUT_NAMED = 10


def notes_of(
    statistics: ZooStatistics,
    values: Mapping[str, np.ndarray],
    frozen: Frozen,
    small_tensors: SmallTensors = "include",
) -> list[str]:
    """Return the notes of metrics that were computed from statistics; `values` are their (N, N) matrices."""
    provenance = statistics.provenance or {}
    notes = [f"tensor left out of everything: {line}" for line in statistics.skipped[:NAMED]]
    if (more := len(statistics.skipped) - NAMED) > 0:
        notes.append(f"tensors left out of everything: {more:,} more")
    notes += few_lines(provenance.get("left_out", []), LEFT_OUT_NAMED)
    notes += notes_of_checkpoints(provenance.get("notes", {}), statistics.models)
    notes += _rounding_notes(statistics)
    needs = {metric_of(name).needs for name in values}
    if "spectra" in needs:
        notes += worded_by_models(left_out_by_rank(statistics, frozen), statistics.models)
        notes += _constant_notes(statistics, values, small_tensors)
        if statistics.is_randomized:
            notes.append("singular values and vectors are of svd='randomized'; the table has the error of every value")
    elif "interference" in needs:
        notes += worded_by_models(left_out_by_rank(statistics, "exclude"), statistics.models)
    if "input_gradients" in needs:
        notes += _input_notes(statistics)
    return notes + notes_of_missing(statistics.models, values)


def few_lines(lines: Sequence[str], most: int) -> list[str]:
    """Return the first of many lines, and one that counts the others.

    >>> few_lines(["a/ is left out", "b/ is left out", "c/ is left out"], 1)
    ['a/ is left out', 'and 2 more files and folders are left out']
    """
    more = [f"and {len(lines) - most} more files and folders are left out"] if len(lines) > most else []
    return [*lines[:most], *more]


def notes_of_missing(models: Sequence[str], values: Mapping[str, np.ndarray]) -> list[str]:
    """Return which pairs have no value of which metrics, and why: a note for each metric that lacks any."""
    notes = []
    i, j = np.triu_indices(len(models), 1)
    for metric, matrix in values.items():
        missing = np.flatnonzero(np.isnan(matrix[i, j]))
        if len(missing):
            pairs = listed(f"({models[i[p]]}, {models[j[p]]})" for p in missing)
            notes.append(f"{metric}: no value for {len(missing)} pairs, {metric_of(metric).undefined}: {pairs}")
    return notes


def _rounding_notes(statistics: ZooStatistics) -> list[str]:
    """Return how much of which task vectors can be rounding."""
    energy = np.zeros(len(statistics.models))
    for layer in statistics.layers:
        energy += 0.0 if layer.rounding is None else layer.rounding
    square = np.diagonal(statistics.inner)
    unchanged = np.sum([layer.unchanged for layer in statistics.layers], axis=0)
    shares = ", ".join(
        f"{name} {100 * energy[model] / square[model]:.2g} % ({unchanged[model]} of {len(statistics.layers)} tensors "
        "are unchanged)"
        for model, name in enumerate(statistics.models)
        if energy[model] > 0
    )
    what = "rounding to a narrower dtype can explain up to this share of a task vector's squared length"
    return [f"{what}: {shares}"] if shares else []


def _input_notes(statistics: ZooStatistics) -> list[str]:
    """Return which models' input gradients differ in shape from those of others."""
    assert statistics.functional.input_gradients is not None
    models: dict[tuple[int, ...], list[str]] = {}
    for name, shape in zip(statistics.models, statistics.functional.input_gradients.shapes, strict=True):
        models.setdefault(shape, []).append(name)
    if len(models) == 1:
        return []
    every = [f"{shape[0]} samples of shape {shape[1:]}: {listed(names)}" for shape, names in models.items()]
    groups = "; ".join(every[:NAMED]) + (f"; and {len(every) - NAMED:,} more" if len(every) > NAMED else "")
    return [f"input gradients are compared only between tasks with equally many samples of one shape: {groups}"]


def left_out_by_rank(statistics: ZooStatistics, frozen: Frozen) -> dict[str, list[str]]:
    """Return for which models the averages over layers leave matrices out; a key says which matrices, and why."""
    found: dict[str, list[str]] = {}
    how = "left out of" if frozen == "exclude" else "included in"
    for model, name in enumerate(statistics.models):
        same, short, deficient = [], [], []
        for layer in statistics.layers:
            if (spectrum := layer.spectrum) is None:
                continue
            if spectrum.rank[model] == 0:
                same.append(layer.name)
            elif spectrum.rank[model] < spectrum.k:
                short.append(layer.name)
            elif spectrum.rank[model] < min(layer.shape):
                deficient.append(layer.name)
        has_bottom = not statistics.is_randomized
        for tensors, what in (
            (same, f"equal to the base, {how} the averages over layers"),
            (short, f"of rank below k, left out of the top-k {'and bottom-k ' * has_bottom}averages"),
            (deficient * has_bottom, "not of full rank, left out of the bottom-k averages"),
        ):
            if tensors:
                found.setdefault(f"{len(tensors)} matrices {what}: {listed(tensors)}", []).append(name)
    return found


def worded_by_models(found: Mapping[str, Sequence[str]], models: Sequence[str]) -> list[str]:
    """Return a note for each key, with the models for which it is true, at most NAMED of them.

    >>> worded_by_models({"1 matrices equal to the base": ["a", "b"]}, ["a", "b"])
    ['all 2 models: 1 matrices equal to the base']
    """
    notes = [f"{names_of(names, models)}: {what}" for what, names in found.items()]
    more = len(notes) - NAMED
    return notes if more <= 0 else [*notes[:NAMED], f"{more:,} more notes of this kind, on other models"]


def _constant_notes(
    statistics: ZooStatistics, values: Mapping[str, np.ndarray], small_tensors: SmallTensors
) -> list[str]:
    """Return which matrices count as constants in which metrics, or are left out of them."""
    how = (
        "left out"
        if small_tensors == "exclude"
        else 'counted as in the published code (small_tensors="exclude" does not)'
    )
    found: dict[tuple[str, ...], list[str]] = {}
    for name in values:
        if name in SIDES:
            tensors = tuple(layer.name for layer in statistics.layers if is_constant(layer, SIDES[name]))
            found.setdefault(tensors, []).append(name)
    return [
        f"{len(tensors)} matrices are too small to tell models apart in {', '.join(names)}, {how}: {listed(tensors)}"
        for tensors, names in found.items()
        if tensors
    ]
