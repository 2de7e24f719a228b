"""Notes of a table: tensors left out, and pairs without a value and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergekern._internal.notes import notes_of_checkpoints
from mergekern.metrics import metric_of
from mergekern.metrics.subspace import Frozen
from mergekern.statistics import ZooStatistics

# Pairs that a note names; of a thousand models the others would be a book.
PAIRS_NAMED = 1000


def notes_of(statistics: ZooStatistics, values: Mapping[str, np.ndarray], frozen: Frozen) -> list[str]:
    """Return the notes of metrics that were computed from statistics; `values` are their (N, N) matrices."""
    provenance = statistics.provenance or {}
    notes = [f"tensor left out of everything: {line}" for line in statistics.skipped]
    notes += provenance.get("left_out", [])
    notes += notes_of_checkpoints(provenance.get("notes", {}), statistics.models)
    needs = {metric_of(name).needs for name in values}
    if "spectra" in needs:
        notes += _subspace_notes(statistics, frozen)
    if "input_gradients" in needs:
        notes += _input_notes(statistics)
    return notes + notes_of_missing(statistics.models, values)


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
        for tensors, what in (
            (same, f"equal to the base, {how} the averages over layers"),
            (short, "of rank below k, left out of the top-k and bottom-k averages"),
            (deficient, "not of full rank, left out of the bottom-k averages"),
        ):
            if tensors:
                notes.append(f"{name}: {len(tensors)} matrices {what}: {', '.join(tensors)}")
    return notes
