"""Notes of a table: tensors left out, and pairs without a value and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergekern.metrics import metric_of
from mergekern.metrics.subspace import Frozen
from mergekern.statistics import ZooStatistics

# Pairs that a note names; of a thousand models the others would be a book.
PAIRS_NAMED = 1000
# Files and folders without a model that have a note each; the provenance names all.
LEFT_OUT_NAMED = 10


def notes_of(statistics: ZooStatistics, values: Mapping[str, np.ndarray], frozen: Frozen) -> list[str]:
    """Return the notes of metrics that were computed from statistics; `values` are their (N, N) matrices."""
    provenance = statistics.provenance or {}
    notes = [f"tensor left out of everything: {line}" for line in statistics.skipped]
    notes += shortened(provenance.get("left_out", []), LEFT_OUT_NAMED)
    notes += notes_of_checkpoints(provenance.get("notes", {}), statistics.models)
    notes += _rounding_notes(statistics)
    needs = {metric_of(name).needs for name in values}
    if "spectra" in needs:
        notes += _subspace_notes(statistics, frozen)
        if statistics.is_randomized:
            notes.append("singular values and vectors are of svd='randomized'; the table has the error of every value")
    if "input_gradients" in needs:
        notes += _input_notes(statistics)
    return notes + notes_of_missing(statistics.models, values)


def shortened(lines: Sequence[str], most: int) -> list[str]:
    """Return the first of many lines, and one that counts the others.

    >>> shortened(["a/ is left out", "b/ is left out", "c/ is left out"], 1)
    ['a/ is left out', 'and 2 more files and folders are left out']
    """
    more = [f"and {len(lines) - most} more files and folders are left out"] if len(lines) > most else []
    return [*lines[:most], *more]


def notes_of_checkpoints(notes: Mapping[str, Sequence[str]], models: Sequence[str]) -> list[str]:
    """Return the notes on single checkpoints, each sentence once with those of which it is true.

    >>> notes_of_checkpoints({"base": ["x"], "a": ["x"], "b": ["x", "y"]}, ["a", "b"])
    ['x (in the base and all 2 models)', 'y (in b)']
    """
    found: dict[str, list[str]] = {}
    for name, lines in notes.items():
        for line in lines:
            found.setdefault(line, []).append(name)
    return [f"{line} (in {_names(names, models)})" for line, names in found.items()]


def _names(names: Sequence[str], models: Sequence[str]) -> str:
    if set(models) <= set(names):
        everyone = f"all {len(models)} models"
        return f"the base and {everyone}" if len(names) > len(models) else everyone
    return ", ".join(names)


def notes_of_missing(models: Sequence[str], values: Mapping[str, np.ndarray]) -> list[str]:
    """Return which pairs have no value of which metrics, and why: a note for each metric that lacks any."""
    notes = []
    i, j = np.triu_indices(len(models), 1)
    for metric, matrix in values.items():
        missing = np.flatnonzero(np.isnan(matrix[i, j]))
        if len(missing):
            pairs = ", ".join(f"({models[i[p]]}, {models[j[p]]})" for p in missing[:PAIRS_NAMED])
            pairs += f" and {len(missing) - PAIRS_NAMED} more" if len(missing) > PAIRS_NAMED else ""
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
    groups = "; ".join(
        f"{shape[0]} samples of shape {shape[1:]}: {', '.join(names)}" for shape, names in models.items()
    )
    return [f"input gradients are compared only between tasks with equally many samples of one shape: {groups}"]


def _subspace_notes(statistics: ZooStatistics, frozen: Frozen) -> list[str]:
    """Return which matrices of which models the averages over layers leave out."""
    notes = []
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
                notes.append(f"{name}: {len(tensors)} matrices {what}: {', '.join(tensors)}")
    return notes
