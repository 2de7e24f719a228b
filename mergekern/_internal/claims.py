"""Files and folders that belong to one living process: others tell them from what a killed one left behind.

A lock of the system on an open file is let go when its process ends, however it does. No clock and no process number,
which another process may have by then, decides.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_PREFIX, _LOCK = ".mergekern-", ".lock"


def claim(path: Path) -> int | None:
    """Make an empty file that belongs to this process until the descriptor is closed; one left behind is removed first.

    Returns:
        The descriptor, or None if the file belongs to another process, or to another thread.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if not _remove_file_left_behind(path):
                return None
            continue
        if _locked(descriptor, unsupported=True) and _is_at(descriptor, path):
            return descriptor
        # Between the two calls, another process took it for one left behind.
        os.close(descriptor)


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Give a hidden new folder inside a folder, removed at the end; those that killed processes left are removed first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with workspace(Path(folder)) as place:
    ...         place.is_dir()
    ...     os.listdir(folder)
    True
    []
    """
    place = Workspace(folder)
    try:
        yield place.path
    finally:
        place.remove()


class Workspace:
    """A hidden new folder inside a folder, which lasts as long as this object, and at most as its process.

    Those that killed processes left behind are removed first.

    Args:
        folder: where it is made.

    Attributes:
        path: the folder.
        remove: removes it; called by itself when this object goes.
    """

    def __init__(self, folder: Path) -> None:
        remove_left_behind(folder)
        lock = folder / f"{_PREFIX}{uuid.uuid4().hex}{_LOCK}"
        descriptor = claim(lock)
        assert descriptor is not None
        self.path = lock.with_suffix("")
        self.remove = weakref.finalize(self, _remove, lock, descriptor)
        self.path.mkdir()


def remove_left_behind(folder: Path) -> None:
    """Remove the workspaces of killed processes from a folder."""
    for lock in folder.glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError):  # Where it cannot be removed, it harms nobody.
            descriptor = claim(lock)
            if descriptor is not None:
                _remove(lock, descriptor)


def _remove(lock: Path, descriptor: int) -> None:
    """Remove a workspace, and then its lock: killed between the two, it is found again."""
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
    os.close(descriptor)


def _remove_file_left_behind(path: Path) -> bool:
    """Remove a file whose process has ended; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if not _locked(descriptor, unsupported=False):
            return False
        if _is_at(descriptor, path):
            path.unlink()
        return True
    finally:
        os.close(descriptor)


def _locked(descriptor: int, *, unsupported: bool) -> bool:
    """Lock an open file, or return False if another has it locked; `unsupported` where the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return unsupported
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
