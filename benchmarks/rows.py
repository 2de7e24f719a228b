"""The rows of results/*.jsonl: one measured case each, appended and never changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


class Rates(NamedTuple):
    """The best rates of the machine, in bytes and operations a second."""

    bytes: float
    flops: float


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return the summary of the times of a row's rounds.

    >>> summary([3.0, 1.0, 2.0])
    {'median': 2.0, 'p25': 1.5, 'p75': 2.5, 'min': 1.0, 'rounds': 3}
    """
    p25, median, p75 = np.percentile(samples, [25, 50, 75]).tolist()
    return {"median": median, "p25": p25, "p75": p75, "min": min(samples), "rounds": len(samples)}


def make(
    case: str, samples: Sequence[float], bytes: int, flops: int, rates: Rates, provenance: Mapping[str, Any]
) -> Row:
    """Return the row of a case.

    Args:
        case: its name, such as "kernel/overlap/20x3072x10".
        samples: seconds of each round.
        bytes, flops: the least that any implementation must read and compute; see `counts`.
        rates: rates of the machine, measured in the same run.
        provenance: time, device, commit, dirty and versions.

    >>> row = make("a", [4.0], 100, 30, Rates(100.0, 10.0), {"device": "abacus"})
    >>> row["device"], row["ceiling"], row["fraction"]
    ('abacus', 3.0, 0.75)
    """
    seconds = summary(samples)
    ceiling = max(bytes / rates.bytes, flops / rates.flops)
    return {
        "case": case,
        **provenance,
        "seconds": seconds,
        "bytes": bytes,
        "flops": flops,
        "ceiling": ceiling,
        "fraction": ceiling / seconds["median"],
    }


def append(row: Row, suite: str, folder: Path = RESULTS) -> None:
    """Append a row to the file of a suite."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{suite}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(folder: Path = RESULTS) -> list[Row]:
    """Return the rows of all suites, the oldest first."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return sorted(map(json.loads, lines), key=lambda row: row["time"])


def cpu_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that were not measured on a GPU; their device says how many threads there were.

    >>> cpu_rows([{"device": "Abacus, 2 threads"}, {"device": "NVIDIA Abacus"}])
    [{'device': 'Abacus, 2 threads'}]
    """
    return [row for row in rows if row["device"].endswith(" threads")]


def newest(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Return the last row of each (case, device).

    >>> newest([{"case": "a", "device": "x", "run": 1}, {"case": "a", "device": "x", "run": 2}])
    {('a', 'x'): {'case': 'a', 'device': 'x', 'run': 2}}
    """
    return {(row["case"], row["device"]): row for row in rows}


def newest_of_one_device(rows: Sequence[Row], case: str) -> dict[str, Row]:
    """Return the last row of each case, on the device on which `case` was measured last; {} if it never was."""
    devices = [row["device"] for row in rows if row["case"] == case]
    return {name: row for (name, device), row in newest(rows).items() if device in devices[-1:]}
