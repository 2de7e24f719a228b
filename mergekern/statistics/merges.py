"""What merging N models by one method gave on samples of their tasks: everything that merge probes need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import read_block, write_block

FORMAT = 1


@dataclass(frozen=True)
class MergeStatistics:
    """Mean loss and accuracy, the last axis of every array, of models on calibration samples of their own tasks.

    NaN where nothing was measured; a loss that is not finite is ∞. Accuracy is NaN where labels are no classes.

    Attributes:
        single: (N, 2) of each model as it is.
        solo: (N, 2) of its merge with the base, which has a task vector of zero.
        direct: (N, N, 2): [i, j] is of the merge of models i and j, on the task of i.
    """

    single: np.ndarray
    solo: np.ndarray
    direct: np.ndarray

    @staticmethod
    def empty(models: int) -> MergeStatistics:
        """Return what is known of N models before anything is measured."""
        return MergeStatistics(*(np.full((*shape, 2), np.nan) for shape in ((models,), (models,), (models, models))))

    def write(self, path: Path, description: Mapping[str, Any]) -> None:
        """Write to a file, with what these statistics are of."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"single": self.single, "solo": self.solo, "direct": self.direct}
        write_block(path, arrays, {"format": FORMAT, **description})

    @staticmethod
    def read(path: Path) -> tuple[MergeStatistics, dict[str, Any]]:
        """Read from a file; StatisticsError if it is missing, damaged or something else."""
        arrays, description = read_block(path)
        if description.get("format") != FORMAT or arrays.keys() != {"single", "solo", "direct"}:
            raise StatisticsError(f"{path}: not a block of statistics of merges in format {FORMAT}")
        return MergeStatistics(**arrays), description
