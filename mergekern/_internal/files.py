"""Writing files so that a run killed at any moment leaves the old content or the new, never half of it."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from mergekern._internal.claims import claim
from mergekern.errors import OutputError

# Bytes of the longest name that a file may have on the usual file systems.
LONGEST_NAME = 255


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside `path`, flush it to disk, and rename it."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_output(path: Path, content: bytes) -> None:
    """Write a file that a user asked for, atomically.

    Raises:
        OutputError: it cannot be written; what was there before is still there.
    """
    try:
        _refuse_others(path)
        write_atomically(path, content)
    except OSError as error:
        raise not_written(path, error, "give another place") from error


def check_output(path: Path) -> None:
    """Raise OutputError where `write_output` could not write, before anything is computed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     check_output(Path(folder) / "table.csv")
    ...     os.listdir(folder)
    []
    """
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: the folder it is to lie in does not exist")
    try:
        _refuse_others(path)
        # Only an attempt tells: rights, quotas and read-only disks all have a say, and root has other rights.
        descriptor, temporary = _new_temporary(path)
        temporary.unlink()
        os.close(descriptor)
    except OSError as error:
        raise not_written(path, error, "give another place") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a link to a file that never changes, or a copy where it lies on another disk."""
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as temporary, source.open("rb") as read, temporary.open("wb") as file:
            shutil.copyfileobj(read, file)
            file.flush()
            os.fsync(file.fileno())


def not_written(path: Path, error: OSError, remedy: str) -> OutputError:
    """Return the error that says why a file cannot be written, and how much room there is."""
    folder = next(each for each in path.absolute().parents if os.path.exists(each))
    free = shutil.disk_usage(folder).free
    why = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(f"{path}: cannot be written ({why}; {free:,} bytes free); {remedy}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file beside `path`, which takes its place at the end if nothing is raised.

    A temporary file that a killed process left there is removed.
    """
    descriptor, temporary = _new_temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def hidden(path: Path, ending: str) -> Path:
    """Return the path of a hidden file beside `path`, which belongs to it; names that are too long are hashed.

    >>> hidden(Path("zoo/table.csv"), "0").name
    '.table.csv.mergekern-0'
    """
    name = f".{path.name}.mergekern-{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{xxhash.xxh3_128_hexdigest(os.fsencode(path.name))}.mergekern-{ending}"
    return path.with_name(name)


def _new_temporary(path: Path) -> tuple[int, Path]:
    """Return the descriptor and path of a new temporary file; it is this process's until the descriptor is closed."""
    for number in itertools.count():
        temporary = hidden(path, str(number))
        descriptor = claim(temporary)
        if descriptor is not None:
            return descriptor, temporary
    raise AssertionError


def _refuse_others(path: Path) -> None:
    """Raise OSError where a path is a folder or a device, or has a name that no file can have."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "neither a file nor new", found)
