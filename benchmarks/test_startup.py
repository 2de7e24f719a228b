"""How long a command takes to start, beside the interpreter alone and beside importing torch."""

import subprocess
import sys

import pytest

from benchmarks.counts import Counts

COMMANDS = {
    "startup/python": ["-c", "pass"],
    "startup/help": ["-m", "mergekern", "--help"],
    "startup/import": ["-c", "import mergekern"],
    "startup/import_torch": ["-c", "import torch"],
    "startup/import_and_torch": ["-c", "import torch, mergekern; mergekern.compute_all"],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_startup(benchmark, describe, case):
    describe(case, Counts(0, 0), group="startup")
    command = [sys.executable, *COMMANDS[case]]
    done = benchmark.pedantic(subprocess.run, args=(command,), kwargs={"capture_output": True}, rounds=5, iterations=1)
    assert done.returncode == 0, done.stderr
