"""`python -m tests.fuzz`: any number of hostile inputs; fails if one of them is not answered as it should be."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.running import run_inputs
from tests.fuzz.world import make_world


def main() -> int:
    """Run inputs and print what is wrong, and how many ended how."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    exits: Counter[str] = Counter()
    start, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder))
        numbers = range(given.first, given.first + given.inputs)
        for done, outcome in enumerate(run_inputs(Path(folder), given.seed, numbers, given.processes), 1):
            exits[str(outcome.exit)] += 1
            if outcome.fault:
                wrong += 1
                print(f"{outcome.number}: {outcome.what}\n  {outcome.fault}", flush=True)
            if done % 1000 == 0:
                print(f"{done} inputs, {wrong} wrong, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    ends = ", ".join(f"exit {status}: {count}" for status, count in sorted(exits.items()))
    print(f"{given.inputs} inputs of seed {given.seed}, {time.monotonic() - start:.0f} s; {ends}; {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
