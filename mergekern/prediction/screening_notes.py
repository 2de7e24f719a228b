"""Notes of a screening: those of all tiles, in terms of the whole zoo."""

from __future__ import annotations

from mergekern._internal.notes import notes_of_checkpoints
from mergekern.metrics.subspace import Frozen
from mergekern.statistics import ZooStatistics
from mergekern.statistics.manifest import Manifest
from mergekern.tables.metric_table import MetricTable
from mergekern.tables.notes import left_out_by_rank, worded_by_models


class ScreeningNotes:
    """The notes of all tiles, each once. A note on single models counts those of the zoo, not those of a tile.

    Args:
        manifest: the models of the zoo, and the notes on their checkpoints.
        frozen: as for `MetricTable.from_statistics`.
    """

    def __init__(self, manifest: Manifest, frozen: Frozen) -> None:
        self._models, self._frozen = manifest.models, frozen
        self._on_checkpoints = notes_of_checkpoints((manifest.provenance or {}).get("notes", {}), manifest.models)
        self._by_rank: dict[str, dict[str, None]] = {}
        self._others: dict[str, None] = {}

    def add(self, statistics: ZooStatistics, table: MetricTable) -> None:
        """Add the notes of the table of one tile."""
        by_rank = left_out_by_rank(statistics, self._frozen)
        of_tile = worded_by_models(by_rank, table.models)
        if set(of_tile) <= set(table.notes):  # else no metric of the table needs the ranks
            for what, models in by_rank.items():
                self._by_rank.setdefault(what, {}).update(dict.fromkeys(models))
        known = {*of_tile, *notes_of_checkpoints(table.provenance.get("notes", {}), table.models)}
        self._others |= dict.fromkeys(note for note in table.notes if note not in known)

    def lines(self) -> list[str]:
        """Return the notes of the zoo."""
        by_rank = {what: list(models) for what, models in self._by_rank.items()}
        every = [*self._on_checkpoints, *worded_by_models(by_rank, self._models), *self._others]
        return list(dict.fromkeys(every))
