"""What `mergekern --version` says, without importing a library."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import mergekern

MISSING = "missing: NumPy takes their place, and is slower; `pip install` with a C++17 compiler there builds them"


def version_lines() -> list[str]:
    """Return the version of the package, by what the processor and a GPU compute, and the versions of libraries."""
    gpu = ", ".join(f"{name} {found}" for name in ("triton", *_cupys()) if (found := _version(name)))
    return [
        f"mergekern {mergekern.__version__}",
        f"compiled kernels: {_compiled_kernels()}",
        f"kernels for NVIDIA GPUs: {gpu or 'none; they need triton and cupy'}",
        f"torch {_version('torch')}, numpy {_version('numpy')}, Python {platform.python_version()}",
    ]


def _compiled_kernels() -> str:
    if find_spec("mergekern._native") is None:
        return MISSING
    try:
        from mergekern import _native
    except ImportError as error:
        return f"do not load ({error}): NumPy takes their place, and is slower"
    return f"for {_native.instruction_set()}"


def _cupys() -> list[str]:
    return ["cupy", *(f"cupy-cuda{major}x" for major in (11, 12, 13, 14))]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
