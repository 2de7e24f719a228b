"""Descriptors of files that are read again and again, of which a process may hold only so many."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_opening = threading.Lock()
_kept: set[int] = set()


class KeptDescriptor:
    """A file that is open for reading as long as this object lives, if the process has descriptors to spare.

    Half of those that the process may hold are kept, of the files that come first; the others are opened for every
    read, which costs 2 µs on a local disk and a round trip on a network disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        with _opening:
            if len(_kept) < _limit() // 2:
                self._descriptor = os.open(path, os.O_RDONLY)
                _kept.add(self._descriptor)
                weakref.finalize(self, _close, self._descriptor)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Give the descriptor.

        Raises:
            OSError: the file cannot be opened.
        """
        if self._descriptor is not None:
            yield self._descriptor
            return
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _limit() -> int:
    """Return how many descriptors the process may hold."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _close(descriptor: int) -> None:
    # Without the lock: the garbage collector may call this in a thread that is opening a file just now.
    _kept.discard(descriptor)
    os.close(descriptor)
