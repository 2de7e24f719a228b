"""The machine and the checkout that rows were measured with."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import rows
from mergekern._internal.versions import versions

ROOT = Path(__file__).parents[1]
# Written by the run itself, so that they say nothing about the code.
WRITTEN = ["benchmarks/results", "benchmarks/plots", "README.md"]
READ_ELEMENTS = 1 << 27  # 512 MiB of float32: more than any cache
GEMM_SIZE = 2048
ROUNDS = 7


def processor() -> str:
    """Return the name of the processor and the number of its threads that torch uses."""
    name = platform.processor() or platform.machine()
    if (described := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in described.read_text().splitlines() if "model name" in line]
        name = next(iter(names), name)
    return f"{name}, {torch.get_num_threads()} threads"


def provenance() -> dict[str, Any]:
    """Return the origin of a run, for each of its rows."""
    changes = _git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in WRITTEN))
    return {
        "device": processor(),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(changes),
        "versions": versions(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def measure_rates() -> tuple[rows.Rates, dict[str, tuple[list[float], int, int]]]:
    """Measure how fast the machine reads memory and multiplies matrices, on all threads.

    Returns:
        The rates, and case -> (seconds of the rounds, bytes, flops).
    """
    values = torch.ones(READ_ELEMENTS)
    matrix = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=torch.float64)
    read, gemm = _time(values.sum), _time(lambda: matrix @ matrix)
    flops = 2 * GEMM_SIZE**3
    cases = {"machine/read": (read, values.nbytes, 0), "machine/gemm_float64": (gemm, 0, flops)}
    return rows.Rates(values.nbytes / min(read), flops / min(gemm)), cases


def _time(function: Callable[[], object]) -> list[float]:
    function()
    samples = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        function()
        samples.append(time.perf_counter() - began)
    return samples


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
