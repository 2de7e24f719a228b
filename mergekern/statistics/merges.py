"""Statistics of the merges of N models by one method, from which the merge probes are computed."""

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
    """Mean loss and accuracy of models and of their merges on calibration samples.

    The last axis of every array is (loss, accuracy). Values that were not measured are NaN. A loss that is not finite
    is ∞. The accuracy is NaN where labels are not classes.

    Attributes:
        single: (N, 2) float64, each model on its own task.
        solo: (N, 2) float64, each model merged with the base, on the model's task. The base has a task vector of zero.
        direct: (N, N, 2) float64; [i, j] is the merge of models i and j on the task of i.
    """

    single: np.ndarray
    solo: np.ndarray
    direct: np.ndarray

    @staticmethod
    def empty(models: int) -> MergeStatistics:
        """Return the statistics of N models before anything is measured: NaN everywhere."""
        return MergeStatistics(*(np.full((*shape, 2), np.nan) for shape in ((models,), (models,), (models, models))))

    def write(self, path: Path, description: Mapping[str, Any]) -> None:
        """Write the statistics to a file, with a description of what was merged and how."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"single": self.single, "solo": self.solo, "direct": self.direct}
        write_block(path, arrays, {"format": FORMAT, **description})

    @staticmethod
    def read(path: Path) -> tuple[MergeStatistics, dict[str, Any]]:
        """Return the statistics in a file, and their description.

        Raises:
            StatisticsError: the file is missing, is damaged or holds something else.
        """
        arrays, description = read_block(path)
        if description.get("format") != FORMAT or arrays.keys() != {"single", "solo", "direct"}:
            raise StatisticsError(f"{path}: not a block of statistics of merges in format {FORMAT}")
        return MergeStatistics(**arrays), description
