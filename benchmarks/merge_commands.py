"""Merges as commands, from the start of a process to its end, beside mergekit's on the same files, and a copy of the
bytes.

The commands alternate, so that what else the machine does meets all of them; the best of several rounds counts. Seconds
of the processor (of all threads, the system's included) depend less on other work than those of the clock. Results are
compared first: most elements of both are equal up to rounding; of random ones the shares of elements that changed.

    python benchmarks/llama_zoo.py FOLDER --models 3 --layers 6
    MERGEKERN_MERGEKIT=mergekit python -m benchmarks.merge_commands FOLDER --methods ties,linear
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import click
from safetensors import safe_open

from benchmarks import machine, mergekit_baseline, rows
from mergekern import METHODS
from mergekern.merging.mergekit import mergekit_config

COPY = """
import os, sys
*models, base, out = sys.argv[1:]
for path in models:
    open(path, "rb").read()
with open(out, "wb") as file:
    file.write(open(base, "rb").read())
    file.flush()
    os.fsync(file.fileno())
"""
# Elements of a tensor that may differ: where one breaks a tie otherwise.
DIFFERENT, NEAR = 0.02, 2.0**-6
# Random masks.
RANDOM = ("dare", "dare_ties", "della", "della_linear")
# What mergekit has as a method, and mergekern in recipes alone: a model taken as it is.
PASSTHROUGH = "passthrough"


class Seconds(NamedTuple):
    """What a command took: by the clock, and of the processor."""

    wall: float
    processor: float


def measured(command: list[str]) -> Seconds:
    """Run a command to its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def commands(folder: Path, method: str, place: Path) -> dict[str, list[str]]:
    """Return the commands that merge by a method, and the one that copies, by the ends of their cases."""
    base, models = folder / "base.safetensors", sorted(folder.glob("model_*.safetensors"))
    models = models[: most_of(method)]
    paths, out, config = [str(path) for path in models], place / "out.safetensors", place / f"{method}.yaml"
    with safe_open(base, "pt") as file:
        dtype = str(file.get_tensor(next(iter(file.keys()))).dtype).removeprefix("torch.")
    ours = [sys.executable, "-m", "mergekern", "merge", *paths, "--base", str(base), "--method", method]
    if method == PASSTHROUGH:
        config.write_text(f"merge_method: passthrough\nmodels: [{{model: {paths[0]}}}]\n")
        ours = [sys.executable, "-m", "mergekern", "merge", "--config", str(config)]
    elif METHODS[method].mergekit is not None:
        config.write_text(mergekit_config(paths, str(base), method, out_dtype=dtype))
    found = {
        "": [*ours, "--out", str(out), "--overwrite", "--device", "cpu"],
        "/copy": [sys.executable, "-c", COPY, *paths, str(base), str(place / "copy")],
    }
    program = mergekit_baseline.command()
    if program is not None and config.exists():
        found["/mergekit"] = [str(program), str(config), str(place / "mergekit"), "--quiet"]
    return found


def most_of(method: str) -> int | None:
    """Return how many models a method merges at most."""
    return 1 if method == PASSTHROUGH else METHODS[method].most


def changed(path: Path, base: Path) -> float:
    """Return the share of elements that are not those of the base."""
    different = total = 0
    with safe_open(path, "pt") as first, safe_open(base, "pt") as second:
        for name in first.keys():  # noqa: SIM118
            one, other = first.get_tensor(name), second.get_tensor(name)
            different, total = different + int((one != other).sum()), total + one.numel()
    return different / total


def agreement(ours: Path, theirs: Path) -> float:
    """Return the share of elements that are alike, of all tensors."""
    alike = total = 0
    with safe_open(ours, "pt") as first, safe_open(theirs, "pt") as second:
        for name in first.keys():  # noqa: SIM118
            one, other = first.get_tensor(name).float(), second.get_tensor(name).float()
            alike += int(((one - other).abs() <= NEAR * one.abs().clamp(min=1e-6)).sum())
            total += one.numel()
    return alike / total


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--methods", default="ties,linear,slerp", show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="Append rows to the files of this folder.")
def main(folder: Path, methods: str, rounds: int, results: Path | None) -> None:
    """Measure merges of the models in FOLDER."""
    place = folder / "merged"
    place.mkdir(exist_ok=True)
    size = (folder / "base.safetensors").stat().st_size
    rates, provenance = (machine.measure_rates()[0], machine.provenance()) if results else (None, {})
    for method in methods.split(","):
        runs: dict[str, list[Seconds]] = {}
        chosen = commands(folder, method, place)
        for _ in range(rounds):
            for end, command in chosen.items():
                runs.setdefault(end, []).append(measured(command))
        if "/mergekit" in chosen:
            results_of_both = place / "out.safetensors", place / "mergekit" / "model.safetensors"
            if method in RANDOM:
                first, second = (changed(path, folder / "base.safetensors") for path in results_of_both)
                alike = 1 - abs(first - second)
            else:
                alike = agreement(*results_of_both)
            assert alike > 1 - DIFFERENT, f"{method}: {alike:.1%} of the elements are alike"
        models = min(most_of(method) or 9, len(list(folder.glob("model_*.safetensors"))))
        for end, seconds in runs.items():
            best = min(seconds, key=lambda each: each.processor)
            click.echo(f"{method}{end}: {min(s.wall for s in seconds):.1f} s, {best.processor:.1f} s of the processor")
            if results and rates:
                case = f"merge/command/{method}/{folder.name}x{models}{end}"
                row = rows.make(case, [s.wall for s in seconds], (models + 2) * size, 0, rates, provenance)
                row["processor_seconds"] = best.processor
                rows.append(row, "merging", results)
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
