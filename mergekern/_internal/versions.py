"""The versions that results depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Return the versions that results depend on.

    >>> sorted(versions())
    ['mergekern', 'numpy', 'python', 'scipy', 'torch']
    """
    found = {"python": platform.python_version()}
    for package in ("mergekern", "torch", "numpy", "scipy"):
        found[package] = package_version(package)
    return found


def package_version(package: str) -> str:
    """Return the version of an installed package.

    >>> package_version("no such package")
    'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


# From the metadata of the installed package, which takes it from pyproject.toml.
__version__ = package_version("mergekern")
