"""The memory that a measured run needs."""

from __future__ import annotations

import threading
from pathlib import Path


class PeakMemory:
    """The most memory that the process allocates while this is entered, beyond what it had, without mapped files."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._allocated()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """The most bytes, after the end."""
        return self.peak - self.before

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._allocated())

    @staticmethod
    def _allocated() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])
