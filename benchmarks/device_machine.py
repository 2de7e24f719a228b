"""Facts about a machine with a GPU, and the programs that run on it: the build of the extension and the tests.

Nothing here imports the package, whose extension is built first, or anything that may be missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
NEEDED = ("torch", "triton", "numpy", "scipy", "pandas", "safetensors", "threadpoolctl", "xxhash", "pytest")
# What runs without, and what is then left out.
OPTIONAL = {
    "cupy": "CUDA kernels",
    "pybind11": "build of the C++ extension",
    "pyarrow": "tests of Parquet files",
    "hypothesis": "tests of random inputs",
}
# How files with tests of device code are known; others may need packages that a machine with a GPU lacks.
OF_DEVICES = re.compile(r"\bmark\.gpu\b|\bTRITON\b")
FAILURES_SHOWN = 10


def missing(packages: Sequence[str]) -> list[str]:
    """Return the modules that cannot be imported.

    >>> missing(["json", "no_such_package"])
    ['no_such_package']
    """
    return [name for name in packages if importlib.util.find_spec(name) is None]


def describe(device: str) -> dict[str, str]:
    """Print the parts of the machine, and return the versions that rows do not have already."""
    import torch

    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    driver = _output(query) if shutil.which(query[0]) else ""
    versions = {"triton": _version("triton"), "cuda": str(torch.version.cuda)}
    if found := re.search(r"[\d.]+$", driver.split("\n")[0]):
        versions["driver"] = found[0]
    cupy = next((d for d in importlib.metadata.distributions() if (d.name or "").startswith("cupy")), None)
    if cupy is not None:
        versions["cupy"] = cupy.version
    click.echo(f"{device}; {os.cpu_count()} cores; Python {sys.version.split()[0]}, torch {torch.__version__}")
    click.echo("; ".join(f"{name} {version}" for name, version in versions.items()) + (f"; {driver}" if driver else ""))
    for name in missing(list(OPTIONAL)):
        click.echo(f"without {name}: no {OPTIONAL[name]}")
    return versions


def checkout() -> str:
    """Return the commit as `git describe --always --dirty` gives it, "unknown" where git cannot say."""
    return _output(["git", "describe", "--always", "--dirty"]) if shutil.which("git") else "unknown"


def build_extension(seconds: float) -> bool:
    """Build the C++ extension in the checkout, if that is possible here; return False if it was tried and failed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or missing(["pybind11", "setuptools"]):
        click.echo("no C++ extension is built: it needs a compiler, setuptools and pybind11; NumPy does its work")
        return True
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = run(command, seconds, capture=True)
    # The build is optional for installers, and so reports a failure by leaving nothing.
    built = done == 0 and any((ROOT / "mergekern").glob("_native*"))
    click.echo("the C++ extension is built" if built else "FAILED: the C++ extension cannot be built")
    return built


def run_tests(seconds: float, marks: str = "gpu") -> bool:
    """Run the tests of device code with some marks, and return whether all passed; failures are printed at once."""
    without = [name for name in OPTIONAL if missing([name])]
    imports = re.compile(rf"^\s*(?:import|from)\s+(?:{'|'.join(without)})\b", re.MULTILINE) if without else None
    texts = {path: path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    chosen = [
        str(path.relative_to(ROOT))
        for path, text in texts.items()
        if OF_DEVICES.search(text) and not (imports and imports.search(text))
    ]
    options = [
        "-m",
        marks,
        "-p",
        "benchmarks.failures_at_once",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "-W",
        "default",
        "-q",
        "--tb=short",
    ]
    options += [f"--maxfail={FAILURES_SHOWN}", "--durations=5"]
    # Most of the time goes into compiling kernels, each for itself.
    if not missing(["xdist"]) and (workers := min(6, (os.cpu_count() or 1) // 2)) > 1:
        options += ["-n", str(workers)]
    return run([sys.executable, "-m", "pytest", *options, *chosen], seconds) == 0


def sanitize(seconds: float, arguments: Sequence[str]) -> dict[str, bool]:
    """Run this program on small sizes under the tools of compute-sanitizer; return which were clean."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        click.echo("no compute-sanitizer is on the PATH")
        return {}
    found = {}
    for name in ("memcheck", "racecheck"):
        command = [tool, f"--tool={name}", "--error-exitcode=9", "--target-processes=all", sys.executable]
        # Memory of a cache would hide accesses beyond a tensor.
        extra = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name == "memcheck" else {}
        click.echo(f"{name}:")
        found[name] = run([*command, str(ROOT / "benchmarks" / "device.py"), *arguments], seconds, **extra) == 0
    return found


def run(command: list[str], seconds: float, capture: bool = False, **extra: str) -> int:
    """Run a program in the checkout to its end or its time, and return its status; its output shows if it fails."""
    sys.stdout.flush()
    output = subprocess.PIPE if capture else None
    with subprocess.Popen(
        command,
        cwd=ROOT,
        # What a program that is stopped has printed must not be left in a buffer.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **extra},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            printed, _ = program.communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)  # and those that it started
            click.echo(f"stopped after {seconds:.0f} s: {' '.join(command)}")
            return -1
    if capture and program.returncode != 0:
        click.echo(printed[-3000:])
    return program.returncode


def _output(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
