"""Check and time everything on a GPU, in one call without network: what `make gpu-check` runs.

    python benchmarks/device.py [--only kernel/gram] [--seconds 450] [--results FOLDER]

First the tests of device code; then the ceilings of the machine; then every kernel, correct before it is timed, and all
of compute_all. Groups of cases run in processes of their own, and what fails does not stop the rest. The table comes
last. Without a GPU all of it runs on small sizes through the interpreters, which shows that the program works.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if not __package__:  # run as a file: its folder would hide modules of the same names
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import device_machine

if TYPE_CHECKING:
    from benchmarks.device_session import Journal, Session
    from mergekern.kernels.device_backend import DeviceBackend

# The package is imported only after its extension has been built.

RESULTS = device_machine.ROOT / "benchmarks" / "results"
# On a GPU the tests may take this share of the time, and each tool of the sanitizer so many seconds.
TESTS = 0.35
SANITIZER_SECONDS = 240.0
# Every kernel of this package; compute_all has those of the spectrum.
SANITIZED = [
    f"--only={each}" for each in ("kernel/gram", "kernel/task_product", "compute_all", "merge/dare", "merge/ties")
]
# What was begun in time may go on for so many seconds.
GRACE = 40.0
# Groups of cases and how their cases begin, by importance: what there is no time for is left out.
GROUPS = {
    "machine": "machine",
    "gram": "kernel/gram",
    "spectrum": "kernel/spectrum",
    "compute_all": "compute_all",
    "task_product": "kernel/task_product",
    "overlap": "kernel/overlap",
    "merging": "merge",
    "trim": "kernel/trim",
    "combine": "kernel/combine",
    "polar": "kernel/polar",
    "truncation": "kernel/truncation",
    "baseline": "baseline_pair",
    "probes": "probes",
    "other ways to the spectrum": "kernel/spectrum",
}
NEEDS_CUDA_KERNELS = ("spectrum", "compute_all", "merging", "trim")
# Stages of a case are in the table if they take this share of it; all are in the rows.
STAGES_SHOWN = 0.01


@click.command()
@click.option("--only", multiple=True, help="Beginning of the cases to measure, or 'build' or 'tests'; repeatable.")
@click.option("--seconds", default=450.0, show_default=True, help="Time after which no case is begun.")
@click.option("--results", type=click.Path(path_type=Path), help="Folder of the rows.  [default: that of the checkout]")
@click.option("--commit", help="Of the checkout, as `git describe --always --dirty` gives it, where there is no git.")
@click.option("--small", is_flag=True, help="Small sizes; rows are kept only with --results.")
@click.option("--dry-run", is_flag=True, help="Small sizes, on the processor, even if there is a GPU.")
@click.option("--sanitize", is_flag=True, help="Also run the small sizes under compute-sanitizer.")
@click.option("--group", hidden=True, help="Run this group alone, of the run whose journal and seed are given.")
@click.option("--journal", type=click.Path(path_type=Path), hidden=True)
@click.option("--seed", type=int, hidden=True)
def main(
    only: tuple[str, ...],
    seconds: float,
    results: Path | None,
    commit: str | None,
    small: bool,
    dry_run: bool,
    sanitize: bool,
    group: str | None,
    journal: Path | None,
    seed: int | None,
) -> None:
    """Check and time the kernels and compute_all on the GPU of this machine."""
    deadline = time.time() + seconds
    if lacking := device_machine.missing(device_machine.NEEDED):
        raise click.ClickException(f"these packages are needed and not installed: {', '.join(lacking)}")
    has_gpu = not dry_run and _has_gpu()
    if not has_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    small |= not has_gpu
    if results is None and not small:
        results = RESULTS
    if group is not None and journal is not None and seed is not None:
        run_group(group, _session(deadline, results, commit, small, journal, only, seed))
        return

    seed = int.from_bytes(os.urandom(3), "little")
    if not has_gpu:
        click.echo("No GPU: small sizes, through the interpreters; the times mean nothing.")
    versions = device_machine.describe(_device_name(has_gpu))
    click.echo(f"seed of the inputs: {seed}")
    failed = _failed_checks(only, seconds, has_gpu)
    with tempfile.TemporaryDirectory(prefix="mergekern-gpu-check-") as folder:
        path = Path(folder) / "journal"
        kept = _journal(path)
        kept.add("versions", versions=versions)
        lacking = device_machine.missing(["cupy"]) if has_gpu else ([] if shutil.which("g++") else ["g++"])
        session = None
        for each, beginning in GROUPS.items():
            # The ceilings belong to every row.
            if not any(_wants(only, other) for other in (GROUPS.values() if each == "machine" else [beginning])):
                continue
            if lacking and each in NEEDS_CUDA_KERNELS:
                click.echo(f"without {lacking[0]}: no {each}")
                failed += [each] if has_gpu else []
            elif small:
                session = session or _session(deadline, results, commit, small, path, only, seed)
                run_group(each, session)
            elif not _in_a_process(each, path, deadline, seed, results):
                failed.append(f"{each} (its process broke)")
        if sanitize and has_gpu:
            clean = device_machine.sanitize(SANITIZER_SECONDS, ["--small", *SANITIZED])
            failed += [tool for tool, is_clean in clean.items() if not is_clean]
        failed += [line["case"] for line in kept.read("failed")]
        print_table(kept)
    taken = f"{time.time() - deadline + seconds:.0f} s"
    click.echo(f"{taken}; FAILED: {', '.join(failed)}" if failed else f"{taken}; all passed")
    sys.exit(bool(failed))


def _failed_checks(only: Sequence[str], seconds: float, has_gpu: bool) -> list[str]:
    """Build the extension and run the tests, where they are wanted; return which of the two failed."""
    failed = []
    if _wants(only, "build") and not device_machine.build_extension(seconds / 3):
        failed.append("build")
    if _wants(only, "tests") and not device_machine.run_tests(seconds * (TESTS if has_gpu else 1)):
        failed.append("tests")
    return failed


def _wants(only: Sequence[str], name: str) -> bool:
    return not only or any(name.startswith(each) or each.startswith(name) for each in only)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device_name(has_gpu: bool) -> str:
    import torch

    return torch.cuda.get_device_name() if has_gpu else "cpu (dry run)"


def _journal(path: Path) -> Journal:
    from benchmarks.device_session import Journal

    return Journal(path)


def _in_a_process(group: str, journal: Path, deadline: float, seed: int, results: Path | None) -> bool:
    """Run one group in a process of its own; return whether that came to its end."""
    left = deadline - time.time()
    if left <= 0:
        click.echo(f"skipped {group}: out of time")
        return True
    own = ["--group", group, "--journal", str(journal), "--seed", str(seed), "--seconds", str(left)]
    if results is not None:
        own += ["--results", str(results.resolve())]
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], *own]
    return device_machine.run(command, left + GRACE) == 0


def _session(
    deadline: float,
    results: Path | None,
    commit: str | None,
    small: bool,
    journal: Path,
    only: Sequence[str],
    seed: int,
) -> Session:
    """Return a session on the GPU, or on the processor with interpreted and emulated kernels."""
    import torch

    from benchmarks.device_session import FULL, SMALL, Session
    from mergekern._internal.versions import versions

    kept = _journal(journal)
    name = _device_name(torch.cuda.is_available())
    described = commit or device_machine.checkout()
    provenance: dict[str, Any] = {
        "device": name,
        "commit": described.removesuffix("-dirty"),
        "dirty": described.endswith("-dirty"),
        "versions": versions() | kept.read("versions")[-1]["versions"],
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    suite = re.sub(r"\W+", "_", name).strip("_").lower()
    return Session(_backend(name), SMALL if small else FULL, kept, results, suite, provenance, deadline, only, seed)


def _backend(name: str) -> DeviceBackend:
    """Return the kernels; without those of CUDA, the others are measured all the same."""
    import torch

    from mergekern.kernels.device_backend import DeviceBackend, cuda_backend

    if not torch.cuda.is_available():
        from tests.support.cuda_on_host import HostCudaModule

        module: Any = HostCudaModule() if shutil.which("g++") else None
        return DeviceBackend("emulated", name, torch.device("cpu"), 2, module)
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        return cuda_backend(device)
    except Exception:
        click.echo(f"no CUDA kernels: {traceback.format_exc()}")
        return DeviceBackend("Triton alone", name, device, 1, None)  # type: ignore[arg-type]


def run_group(group: str, session: Session) -> None:
    """Measure the cases of one of GROUPS."""
    from benchmarks import device_engine, device_kernels, device_merging, device_spectrum

    functions: dict[str, Callable[[Session], None]] = {
        "machine": device_kernels.rates,
        "gram": device_kernels.gram,
        "spectrum": device_spectrum.spectra,
        "compute_all": device_engine.compute_all,
        "task_product": device_kernels.task_product,
        "overlap": device_kernels.overlap,
        "merging": device_merging.merges,
        "trim": device_merging.trim,
        "combine": device_merging.combine,
        "polar": device_merging.polar,
        "truncation": device_merging.truncation,
        "baseline": device_engine.baseline_pair,
        "probes": device_engine.probes,
        "other ways to the spectrum": device_spectrum.alternatives,
    }
    click.echo(f"[{group}]")
    with session.step(group):
        functions[group](session)


def print_table(journal: Journal) -> None:
    """Print a line for each case; then how far compute_all is from its floor, and the ratios to other ways."""
    found = {line["row"]["case"]: line for line in journal.read("row")}
    rates = {line["name"]: line["rate"] for line in journal.read("rate")}
    medians = {case: line["row"]["seconds"]["median"] for case, line in found.items()}
    click.echo(f"\n{'case':72}{'ms':>11}{'GB/s':>8}{'TFLOP/s':>9}{'of ceiling':>12}{'host ms':>9}")
    for case, line in found.items():
        row, seconds = line["row"], medians[case]
        if seconds < STAGES_SHOWN * medians.get(case.rpartition("/")[0], 0.0):
            continue
        bandwidth, speed = row["bytes"] / seconds / 1e9, row["flops"] / seconds / 1e12
        columns = f"{bandwidth:8.0f}{speed:9.2f}{row['fraction']:12.0%}" if row["ceiling"] else " " * 29
        click.echo(f"{case:72}{1e3 * seconds:11.3f}{columns}{1e3 * line['host']:9.1f}")
    for line in journal.read("skipped"):
        click.echo(f"{line['case']:72}    skipped")
    for work in journal.read("work"):
        if {"copy", "gemm_float64"} <= rates.keys():
            floors = work["bytes"] / rates["copy"], work["flops"] / rates["gemm_float64"]
            click.echo(
                f"floor of compute_all: {1e3 * floors[0]:.1f} ms by bytes, {1e3 * floors[1]:.1f} ms by operations"
            )
            for where in ("device", "host", "files"):
                if case := next((c for c in found if c.startswith("compute_all/") and c.endswith(f"/{where}")), None):
                    distance = medians[case] / max(floors)
                    click.echo(f"compute_all from {where}: {medians[case]:.3f} s, {distance:.1f} times the floor")
        if {work["device_case"], work["pair_case"]} <= found.keys():
            ratio = work["pairs"] * medians[work["pair_case"]] / medians[work["device_case"]]
            click.echo(f"{work['pairs']} pairs, one after the other by the plain way: {ratio:.0f} times as long")
    for merge in journal.read("merge"):
        if {merge["device_case"], merge["cpu_case"]} <= found.keys():
            ratio = medians[merge["cpu_case"]] / medians[merge["device_case"]]
            click.echo(f"{merge['cpu_case']}: {ratio:.1f} times as long as {merge['device_case']}")


if __name__ == "__main__":
    main()
