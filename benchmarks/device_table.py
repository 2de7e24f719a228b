"""The table at the end of a device run: each case with its time, its prediction, and how far it is from ceilings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.device_session import Journal

NOTES = Path(__file__).parent / "NOTES.md"
# Stages of a case are in the table if they take this share of it; all are in the rows.
STAGES_SHOWN = 0.01
# A row of the tables of predictions: | `case` | count | milliseconds |
_ROW = re.compile(r"^\| `([^`]+)` \|[^|]*\| ([\d.,]+)(?:–([\d.,]+))? \|$", re.MULTILINE)


class Prediction(NamedTuple):
    """Milliseconds, from and to.

    >>> Prediction(2.0, 3.0).verdict(2.5), Prediction(2.0, 3.0).verdict(9.0), Prediction(2.0, 3.0).verdict(1.0)
    ('as predicted', '3.0 times', '0.50 times')
    """

    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:g}" if self.least == self.most else f"{self.least:g}–{self.most:g}"

    def verdict(self, milliseconds: float) -> str:
        """Return how a time compares with the nearer end."""
        if milliseconds > self.most:
            return f"{milliseconds / self.most:.1f} times"
        return f"{milliseconds / self.least:.2f} times" if milliseconds < self.least else "as predicted"


@cache
def predictions(notes: Path = NOTES) -> dict[str, Prediction]:
    """Return the predictions of the notes, by case."""
    found = {}
    for case, least, most in _ROW.findall(notes.read_text("utf-8")):
        numbers = [float(each.replace(",", "")) for each in (least, most or least)]
        found[case] = Prediction(*numbers)
    return found


def table(journal: Journal) -> Iterator[str]:
    """Yield a line for each case; then how far compute_all is from its floor, and the ratios to other ways."""
    found = {line["row"]["case"]: line for line in journal.read("row")}
    rates = {line["name"]: line["rate"] for line in journal.read("rate")}
    medians = {case: line["row"]["seconds"]["median"] for case, line in found.items()}
    predicted = predictions()
    yield f"\n{'case':64}{'ms':>11}{'predicted':>13}{'':>14}{'GB/s':>7}{'TFLOP/s':>9}{'of ceiling':>11}{'host ms':>9}"
    for case, line in found.items():
        row, seconds = line["row"], medians[case]
        if seconds < STAGES_SHOWN * medians.get(case.rpartition("/")[0], 0.0):
            continue
        expected = predicted.get(case)
        beside = f"{'':>27}"
        if expected is not None:
            range_of = (
                f"{expected.least:g}" if expected.least == expected.most else f"{expected.least:g}–{expected.most:g}"
            )
            beside = f"{range_of:>13}{expected.verdict(1e3 * seconds):>14}"
        bandwidth, speed = row["bytes"] / seconds / 1e9, row["flops"] / seconds / 1e12
        columns = f"{bandwidth:7.0f}{speed:9.2f}{row['fraction']:11.0%}" if row["ceiling"] else " " * 27
        yield f"{case:64}{1e3 * seconds:11.3f}{beside}{columns}{1e3 * line['host']:9.1f}"
    for line in journal.read("skipped"):
        yield f"{line['case']:64}    skipped"
    yield from _floors(journal, rates, medians)
    for merge in journal.read("merge"):
        if {merge["device_case"], merge["cpu_case"]} <= found.keys():
            ratio = medians[merge["cpu_case"]] / medians[merge["device_case"]]
            yield f"{merge['cpu_case']}: {ratio:.1f} times as long as {merge['device_case']}"


def _floors(journal: Journal, rates: dict[str, float], medians: dict[str, float]) -> Iterator[str]:
    for work in journal.read("work"):
        if {"copy", "gemm_float64"} <= rates.keys():
            floors = work["bytes"] / rates["copy"], work["flops"] / rates["gemm_float64"]
            yield f"floor of compute_all: {1e3 * floors[0]:.1f} ms by bytes, {1e3 * floors[1]:.1f} ms by operations"
            for where in ("device", "host", "files"):
                if case := next((c for c in medians if c == work["device_case"].replace("/device", f"/{where}")), None):
                    distance = medians[case] / max(floors)
                    yield f"compute_all from {where}: {medians[case]:.3f} s, {distance:.1f} times the floor"
        if {work["device_case"], work["pair_case"]} <= medians.keys():
            ratio = work["pairs"] * medians[work["pair_case"]] / medians[work["device_case"]]
            yield f"{work['pairs']} pairs, one after the other by the plain way: {ratio:.0f} times as long"
