"""One writer at a time for a folder, or for a file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mergekern._internal.claims import claim
from mergekern._internal.files import hidden, not_written
from mergekern.errors import OutputError

LOCK, OWNER = ".lock", ".lock-owner"
# Of the lock itself: neither is content of a folder.
LOCK_FILES = (LOCK, OWNER)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, which is made if it is not there.

    The system lets go of the lock when its owner ends, however it does; no clock decides.

    Raises:
        OutputError: another process has it, or the folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(Path(folder)):
    ...         sorted(os.listdir(folder))
    ['.lock', '.lock-owner']
    """
    lock, owner = FileLock(folder / LOCK), folder / OWNER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputError(
            f"{folder}: in use by {_read(owner)}; wait until that has ended, or give another folder"
        ) from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error}); give a folder that can") from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        # Where the disk is full, others are not told who has the lock.
        with contextlib.suppress(OSError):
            owner.write_text(json.dumps({"process": os.getpid(), "host": platform.node(), "since": since}))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def locked_file(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """Keep other processes from reading and then changing a file; one that comes waits, for `seconds` at most.

    Raises:
        OutputError: another process still has it, or its folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked_file(Path(folder) / "sketches"):
    ...         os.listdir(folder)
    ...     os.listdir(folder)
    ['.sketches.mergekern-lock']
    []
    """
    lock, last = hidden(path, "lock"), time.monotonic() + seconds
    try:
        while (descriptor := claim(lock)) is None and time.monotonic() < last:
            time.sleep(0.05)
    except OSError as error:
        raise not_written(path, error, "give another place") from error
    if descriptor is None:
        raise OutputError(f"{path}: another process is adding to it; nothing was added: run again when it has ended")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _read(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text())
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
