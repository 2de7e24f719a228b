"""KnownRun: how each model, and the base, does on the samples of the models' tasks: N + N runs, without any merge."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mergekern.checkpoints import Checkpoint
from mergekern.errors import StatisticsError
from mergekern.functional.calibration import Calibration
from mergekern.functional.forward import Outcome
from mergekern.metrics import MODEL_SCORES
from mergekern.metrics.model_scores import KnownScores
from mergekern.statistics.blocks import SUFFIX, read_block, write_block

logger = logging.getLogger(__name__)
FORMAT = 1
FILE = f"models{SUFFIX}"
# A run that is killed may lose this many seconds of work.
SAVED_EVERY = 10.0


class KnownRun:
    """Losses and accuracies of models and of their base, kept in a file as they are measured.

    The last axis of an array is (loss, accuracy): NaN where not measured; a loss that is not finite is ∞, and the
    accuracy is NaN where labels are no classes.

    Args:
        models: how many there are.
        path: the file; None keeps nothing.
        key: hash of all inputs; what a file holds under another key is measured again.

    Attributes:
        own: (N, 2) float64, each model on its own task.
        base: (N, 2) float64, the base on the task of each model.
    """

    def __init__(self, models: int, path: Path | None, key: str | None) -> None:
        self.own, self.base = (np.full((models, 2), np.nan) for _ in range(2))
        self._path, self._key = path, key
        if path is None or not path.exists():
            return
        try:
            arrays, description = read_block(path)
        except StatisticsError as error:
            logger.warning("%s; measuring again", error)
            return
        if (description.get("format"), description.get("key")) == (FORMAT, key):
            self.own, self.base = arrays["own"], arrays["base"]

    def measure(
        self, base: Checkpoint, models: tuple[Checkpoint, ...], outcome: Callable[[Checkpoint, int], Outcome]
    ) -> None:
        """Measure what is lacking; `outcome` returns how a checkpoint does on the task of a model."""
        saved, is_saved = time.perf_counter(), True
        try:
            for number, model in enumerate(models):
                for checkpoint, into in ((model, self.own), (base, self.base)):
                    if np.isnan(into[number, 0]):
                        into[number] = finite_loss(outcome(checkpoint, number))
                        is_saved = False
                if time.perf_counter() - saved > SAVED_EVERY:
                    self._save()
                    saved, is_saved = time.perf_counter(), True
        finally:
            if not is_saved:
                self._save()

    def columns(self, calibration: Calibration) -> dict[str, np.ndarray]:
        """Return the (N, N) matrices of the model scores; those of losses only, where labels are no classes."""
        (own_loss, own), (base_loss, base) = (np.where(np.isfinite(v), v, np.nan).T for v in (self.own, self.base))
        known = KnownScores(own, base, own_loss, base_loss)
        return {
            name: score.function(known)
            for name, score in MODEL_SCORES.items()
            if calibration.uses_classes or "loss" in name
        }

    def _save(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_block(self._path, {"own": self.own, "base": self.base}, {"format": FORMAT, "key": self._key})


def finite_loss(outcome: Outcome) -> Outcome:
    """Return an outcome whose loss is ∞ where it is not finite: NaN is for what is not measured."""
    return outcome if math.isfinite(outcome.loss) else Outcome(math.inf, outcome.accuracy)


def samples_note(calibration: Calibration) -> str:
    """Return in words how many samples the model scores were measured on."""
    sizes = [task.size for task in calibration.tasks.values()]
    few, many = min(sizes), max(sizes)
    return f"model scores are of {few if few == many else f'{few} to {many}'} samples a task"
