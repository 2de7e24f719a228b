"""The tests as other processors would run them: `python tests/processors.py`, or `make test-processors`.

The libraries choose their kernels by the processor, and each can be told to choose as on another one. Every value of
every variable is in at least one setting. A pass on an Intel machine with AVX-512 proves little for an AMD machine
without it; under these settings the libraries take the branches that they take there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

SETTINGS = {
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Sandybridge", "MERGEKERN_INSTRUCTION_SET": "generic", "OMP_NUM_THREADS": "1",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AUTO,STRICT",
        "OPENBLAS_CORETYPE": "Zen", "MERGEKERN_INSTRUCTION_SET": "avx2", "OMP_NUM_THREADS": "3",
    },
    "plain torch": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "3",
    },
    "plain kernels": {
        "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "SkylakeX",
        "MERGEKERN_INSTRUCTION_SET": "generic", "OMP_NUM_THREADS": "1",
    },
}  # fmt: skip
# Tests whose results depend on rounding.
SENSITIVE = ["tests/kernels", "tests/measurement", "tests/merging", "tests/metrics", "tests/test_api.py",
             "tests/test_golden.py", "tests/test_oracle.py", "tests/functional"]  # fmt: skip


def main() -> None:
    """Run the tests under each setting, print one line for each, and fail if any did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SETTINGS, help="this setting alone; may be repeated")
    parser.add_argument("--sensitive", action="store_true", help="only the tests of numbers")
    arguments, rest = parser.parse_known_args()
    command = [sys.executable, "-m", "pytest", "--numprocesses", "auto", "--dist", "loadfile", "-p", "no:benchmark"]
    paths = SENSITIVE if arguments.sensitive else []
    lines, codes = [], []
    for name in arguments.only or SETTINGS:
        print(f"--- {name}: {' '.join(f'{key}={value}' for key, value in SETTINGS[name].items())}", flush=True)
        run = subprocess.Popen(
            [*command, *paths, *rest], env=os.environ | SETTINGS[name], cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        last = ""
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            last = line if re.search(r"\d+ (passed|failed|error)", line) else last
        codes.append(run.wait())
        last = last.strip(" =\n") or f"exit {codes[-1]}"
        lines.append(f"{name}: {last}")
    print("\n".join(["", *lines]))
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
