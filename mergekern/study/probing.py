"""Merge probes of a study's zoo, and what metrics, probes and measured merges cost in seconds on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from rich.progress import Progress

from mergekern._internal.files import write_atomically
from mergekern.functional.calibration import Calibration
from mergekern.functional.merge_probes import merge_probes
from mergekern.prediction import plan_measurements
from mergekern.study.analysis import DIRECT, METRICS, SOLO
from mergekern.study.scoring import score_merges
from mergekern.tables.metric_table import MetricTable

MERGES = "merges"
# Merges whose measurement is timed, for each method.
TIMED_MERGES = 20


class Timings:
    """Seconds that things took, kept in a file from the first time that they were measured.

    Args:
        path: a CSV file with the columns what (metrics, solo probes, direct probes or merges), method, count (of models
            or pairs) and seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], tuple[int, float]] = {}
        if path.exists():
            kept = pd.read_csv(path, keep_default_na=False)
            self.rows = {(what, method): (count, s) for what, method, count, s in kept.itertuples(index=False)}

    def measure(self, what: str, method: str, count: int, work: Callable[[], Any]) -> Any:
        """Do some work, keep how long it took, and return its result."""
        began = time.perf_counter()
        result = work()
        self.rows[what, method] = (count, round(time.perf_counter() - began, 3))
        return result

    def save(self) -> None:
        """Write the file."""
        rows = [(what, method, count, seconds) for (what, method), (count, seconds) in self.rows.items()]
        frame = pd.DataFrame(rows, columns=["what", "method", "count", "seconds"])
        write_atomically(self.path, frame.to_csv(index=False).encode())

    def seconds(self, what: str, method: str, count: int | None = None) -> float:
        """Return how long something took, or would have taken a count of the same."""
        measured, seconds = self.rows[what, method]
        return seconds if count is None else seconds / measured * count


def probe_merges(
    zoo: Path, calibration: Calibration, methods: Sequence[str], out: Path, timings: Timings, bar: Progress
) -> pd.DataFrame:
    """Return the merge probes of all pairs, a file for each method, and keep how long they took.

    Args:
        zoo: its folder.
        calibration: samples that take no part in scores.
        methods: names of merge methods.
        out: a folder for METHOD.parquet; methods with a file and a time are not measured again.
        timings: get solo probes, and direct probes, of each method.
        bar: shows how far it is.
    """
    out.mkdir(exist_ok=True)
    frames = []
    for method in bar.track(methods, description="probing merges"):
        path = out / f"{method}.parquet"
        if not (path.exists() and (DIRECT, method) in timings.rows):
            # Both from nothing: the second continues from the statistics of the first.
            with TemporaryDirectory() as folder:
                how: dict[str, Any] = {"calibration": calibration, "methods": method, "statistics": folder}
                probe = partial(merge_probes, zoo, device="cpu", **how)
                models = len(calibration.tasks)
                timings.measure(SOLO, method, models, probe)
                table = timings.measure(DIRECT, method, models * (models - 1) // 2, partial(probe, direct=True))
            table.save(path)
            timings.save()
        frames.append(MetricTable.load(path).to_pandas())
    return pd.concat(frames, axis=1)


def time_others(
    zoo: Path, compute: Callable[[], MetricTable], methods: Sequence[str], alone: pd.Series,
    timings: Timings, bar: Progress,
) -> None:  # fmt: skip
    """Measure how long all metrics take, and measuring `TIMED_MERGES` merges by each method; once.

    Args:
        zoo: its folder.
        compute: computes all metrics of it, from nothing.
        methods: names of merge methods.
        alone: accuracy of each single model on its task.
        timings: get metrics, and merges of each method.
        bar: shows how far it is.
    """
    if (METRICS, "") not in timings.rows:
        timings.measure(METRICS, "", len(alone), compute)
        timings.save()
    models = sorted(alone.index)
    plan = list(plan_measurements(models, min(TIMED_MERGES, len(models) * (len(models) - 1) // 2)).index)
    for method in bar.track(methods, description="timing"):
        if (MERGES, method) not in timings.rows:
            with TemporaryDirectory() as folder:
                score = partial(score_merges, zoo, plan, [method], alone, Path(folder) / "scores.csv", bar)
                timings.measure(MERGES, method, len(plan), score)
            timings.save()
