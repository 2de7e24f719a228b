"""Commands that are told to end clean up first, as they do at Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of a scheduler or `kill`, and of a terminal that is closed. What nohup has set to be ignored stays so.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """End with the status 128 + signal, such as 143, after everything that was begun is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, handler)


def _stop(number: int, frame: Any) -> None:
    # A second one would stop the cleaning up.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
