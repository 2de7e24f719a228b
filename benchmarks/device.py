"""Check and time everything on a GPU, in one call without network: what `make gpu-check` runs.

    python benchmarks/device.py [--part 1] [--only kernel/gram] [--seconds 290] [--results FOLDER]

First the tests of device code; then the ceilings of the machine; then every kernel, correct before it is timed, and all
of compute_all. `device_groups` has their order, by importance, in two parts. Groups of cases run in processes of their
own, each within its time; what fails is printed at once, and does not stop the rest. The table comes last, with the
predictions of NOTES.md. Without a GPU all of it runs on small sizes through the interpreters, which shows that the
program works.
"""

from __future__ import annotations

import contextlib
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
from benchmarks.device_groups import GROUPS, PART_SECONDS, TESTS
from benchmarks.device_table import table

if TYPE_CHECKING:
    from benchmarks.device_session import Journal, Session
    from mergekern.kernels.device_backend import DeviceBackend

# The package is imported only after its extension has been built.

RESULTS = device_machine.ROOT / "benchmarks" / "results"
# On a GPU each tool of the sanitizer may take so many seconds.
SANITIZER_SECONDS = 240.0
# Every kernel of this package; compute_all has those of the spectrum.
SANITIZED = [
    f"--only={each}" for each in ("kernel/gram", "kernel/task_product", "compute_all", "merge/dare", "merge/ties")
]
# What was begun in time may go on for so many seconds.
GRACE = 40.0


@click.command()
@click.option("--part", type=click.IntRange(1, 2), help="One of two parts, each under six minutes.  [default: both]")
@click.option("--only", multiple=True, help="Beginning of the cases to measure, or 'build' or 'tests'; repeatable.")
@click.option("--seconds", type=float, help="Time after which no case is begun.  [default: 290 for each part]")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    envvar="OUT",
    show_envvar=True,
    help="Folder of the rows, the journal and the table.  [default: that of the rows of the checkout]",
)
@click.option("--commit", help="Of the checkout, as `git describe --always --dirty` gives it, where there is no git.")
@click.option("--small", is_flag=True, help="Small sizes; rows are kept only with --results.")
@click.option("--dry-run", is_flag=True, help="Small sizes, on the processor, even if there is a GPU.")
@click.option("--sanitize", is_flag=True, help="Also run the small sizes under compute-sanitizer.")
@click.option("--group", hidden=True, help="Run this group alone, of the run whose journal and seed are given.")
@click.option("--journal", type=click.Path(path_type=Path), hidden=True)
@click.option("--seed", type=int, hidden=True)
def main(
    part: int | None,
    only: tuple[str, ...],
    seconds: float | None,
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
    seconds = (PART_SECONDS if part else 2 * PART_SECONDS) if seconds is None else seconds
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
    failed = _failed_checks(only, part, seconds, has_gpu)
    kept_in = results if results not in (None, RESULTS) else None
    with (
        contextlib.nullcontext(kept_in) if kept_in else tempfile.TemporaryDirectory(prefix="mergekern-gpu-check-") as at
    ):
        path = Path(at) / f"journal{part or ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _journal(path)
        kept.add("versions", versions=versions)
        failed += _failed_groups(only, part, deadline, seed, results, kept, path, has_gpu, small, commit)
        if sanitize and has_gpu:
            clean = device_machine.sanitize(SANITIZER_SECONDS, ["--small", *SANITIZED])
            failed += [tool for tool, is_clean in clean.items() if not is_clean]
        failed += [line["case"] for line in kept.read("failed")]
        taken = f"{time.time() - deadline + seconds:.0f} s"
        said = [*table(kept), f"{taken}; FAILED: {', '.join(failed)}" if failed else f"{taken}; all passed"]
        click.echo("\n".join(said))
        if kept_in:
            (kept_in / f"table{part or ''}.txt").write_text("\n".join(said) + "\n", "utf-8")
    sys.exit(bool(failed))


def _failed_groups(
    only: Sequence[str], part: int | None, deadline: float, seed: int, results: Path | None, kept: Journal, path: Path,
    has_gpu: bool, small: bool, commit: str | None,
) -> list[str]:  # fmt: skip
    """Run the groups that are wanted, and return those that cannot run or whose process broke."""
    failed = []
    lacking = device_machine.missing(["cupy"]) if has_gpu else ([] if shutil.which("g++") else ["g++"])
    session = None
    for each, group in GROUPS.items():
        # The ceilings belong to every row.
        beginnings = [other.beginning for other in GROUPS.values()] if each == "machine" else [group.beginning]
        if not any(_wants(only, beginning) for beginning in beginnings):
            continue
        if part is not None and part != group.part and each != "machine":
            continue
        if lacking and group.needs_cuda:
            click.echo(f"without {lacking[0]}: no {each}")
            failed += [each] if has_gpu else []
        elif small:
            session = session or _session(deadline, results, commit, small, path, only, seed)
            run_group(each, session)
        elif not _in_a_process(each, path, deadline, seed, results):
            failed.append(f"{each} (its process broke)")
            click.echo(f"FAILED {each}: its process broke, or took more than {group.seconds:.0f} s")
    return failed


def _failed_checks(only: Sequence[str], part: int | None, seconds: float, has_gpu: bool) -> list[str]:
    """Build the extension and run the tests, where they are wanted; return which of the two failed."""
    failed = []
    if _wants(only, "build") and not device_machine.build_extension(seconds / 3):
        failed.append("build")
    marks, most = TESTS[part]
    if _wants(only, "tests") and not device_machine.run_tests(most if has_gpu else seconds, marks):
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
    return device_machine.run(command, min(left + GRACE, GROUPS[group].seconds)) == 0


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
    from benchmarks import device_engine, device_kernels, device_merging, device_randomized, device_spectrum

    functions: dict[str, Callable[[Session], None]] = {
        "machine": device_kernels.rates,
        "gram": device_kernels.gram,
        "spectrum": device_spectrum.spectra,
        "randomized_spectrum": device_randomized.spectra,
        "compute_all": device_engine.compute_all,
        "large models": device_randomized.large_models,
        "task_product": device_kernels.task_product,
        "overlap": device_kernels.overlap,
        "merging": device_merging.merges,
        "signs": device_kernels.signs,
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


if __name__ == "__main__":
    main()
