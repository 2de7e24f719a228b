"""Writing files so that a run killed at any moment leaves the old content or the new, never half of it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekern.errors import OutputError


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside `path`, flush it to disk, and rename it."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a link to a file that never changes, or a copy where it lies on another disk."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            with source.open("rb") as read, temporary.open("wb") as file:
                shutil.copyfileobj(read, file)
                file.flush()
                os.fsync(file.fileno())


def not_written(path: Path, error: OSError, remedy: str) -> OutputError:
    """Return the error that says why a file cannot be written, and how much room there is."""
    folder = next(each for each in path.absolute().parents if each.exists())
    return OutputError(f"{path}: cannot be written ({error}; {shutil.disk_usage(folder).free:,} bytes free); {remedy}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file beside `path`, which takes its place at the end if nothing is raised."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
