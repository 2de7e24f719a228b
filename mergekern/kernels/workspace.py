"""Arrays that a thread uses again and again.

Large arrays that are freed go back to the system, and each new one is paid for page by page: on a virtual machine a
fresh 3072 × 768 difference took 24 ms to touch, a used one 4 ms.
"""

from __future__ import annotations

import math
import threading

import numpy as np


class Workspace(threading.local):
    """Named float64 arrays, each thread's own, kept until the thread ends.

    >>> workspace = Workspace()
    >>> workspace.array("a", (2, 3)).shape
    (2, 3)
    """

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialised array on a cache line. It overwrites the one last returned for this name."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].size < size:
            buffer = np.empty(size + 8)
            self._buffers[name] = buffer[-buffer.ctypes.data % 64 // 8 :][:size]
        return self._buffers[name][:size].reshape(shape)
