"""Mapped files that are cut short while they are read."""

from __future__ import annotations

import weakref

import torch

try:
    from mergekern import _native as extension
except ImportError:  # the package was installed without a compiler
    extension = None  # type: ignore[assignment]


def guard(storage: torch.UntypedStorage) -> None:
    """Keep the process alive when the file that a storage maps is cut short: reads beyond its end then give zeros.

    The system would end the process by SIGBUS, without a word. Whoever reads must check afterwards that the file is
    the one that was opened. The guard costs nothing until then, and ends with the storage. Without the C++ extension
    there is none.

    >>> guard(torch.UntypedStorage(16))
    """
    if extension is not None and storage.nbytes():
        number = extension.guard(storage.data_ptr(), storage.nbytes())
        weakref.finalize(storage, extension.unguard, number).atexit = False
