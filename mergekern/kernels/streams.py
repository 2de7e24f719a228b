"""The order of work on a device: copies in, kernels, and results out, each on a queue of its own.

What one queue does waits for another only where a `wait` says so. `CudaStreams` are those of a GPU. `HostStreams` do
everything at once, in the order of the calls, which meets every wait: for kernels that the processor runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch

# Weights to the device, what is computed there, and what is fetched.
Queue = Literal["copies", "kernels", "results"]


class Event(Protocol):
    """A point of a queue."""

    def synchronize(self) -> None:
        """Wait until the queue has come to this point."""


class Streams(Protocol):
    """Three queues of one device."""

    def stream(self, queue: Queue) -> torch.cuda.Stream | None:
        """Return the CUDA stream of a queue; None if it is none."""

    def on(self, queue: Queue, what: str) -> AbstractContextManager[None]:
        """Put what this thread does meanwhile into a queue, and name it in a profile."""

    def record(self, queue: Queue) -> Event:
        """Return the point that a queue has come to."""

    def wait(self, queue: Queue, event: Event) -> None:
        """Let what is put into a queue from now on wait for an event."""

    def keep(self, tensors: Iterable[torch.Tensor], queue: Queue) -> None:
        """Do not reuse the memory of tensors before a queue has done what was put into it so far."""

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy on the host, which the current queue fills later."""


class HostStreams:
    """Three queues that the processor works off at once.

    >>> streams = HostStreams()
    >>> with streams.on("kernels", "a sum"):
    ...     total = torch.ones(2).sum()
    >>> streams.wait("results", streams.record("kernels"))
    >>> streams.fetch(total)
    tensor(2.)
    """

    def stream(self, queue: Queue) -> torch.cuda.Stream | None:
        """See `Streams`."""
        return None

    def on(self, queue: Queue, what: str) -> AbstractContextManager[None]:
        """See `Streams`."""
        return contextlib.nullcontext()

    def record(self, queue: Queue) -> Event:
        """See `Streams`."""
        return _Past()

    def wait(self, queue: Queue, event: Event) -> None:
        """See `Streams`."""

    def keep(self, tensors: Iterable[torch.Tensor], queue: Queue) -> None:
        """See `Streams`."""

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Streams`."""
        return tensor.cpu()


class _Past:
    """A point that has been reached."""

    def synchronize(self) -> None:
        """Return at once."""


class CudaStreams:
    """Three streams of a CUDA device, which begin behind what the caller has queued there.

    Args:
        device: a device of type "cuda".
    """

    def __init__(self, device: torch.device) -> None:
        queues: tuple[Queue, ...] = ("copies", "kernels", "results")
        self._streams = {queue: torch.cuda.Stream(device) for queue in queues}
        # Weights that are there already may still be on their way from whatever the caller does.
        before = torch.cuda.current_stream(device).record_event()
        for stream in self._streams.values():
            stream.wait_event(before)

    def stream(self, queue: Queue) -> torch.cuda.Stream:
        """See `Streams`."""
        return self._streams[queue]

    @contextlib.contextmanager
    def on(self, queue: Queue, what: str) -> Iterator[None]:
        """See `Streams`; a range of NVTX, which Nsight shows."""
        # The text is an argument: names of tensors may have braces, which torch would format.
        with torch.cuda.stream(self._streams[queue]), torch.cuda.nvtx.range("{}: {}", queue, what):
            yield

    def record(self, queue: Queue) -> Event:
        """See `Streams`."""
        return self._streams[queue].record_event()

    def wait(self, queue: Queue, event: Event) -> None:
        """See `Streams`."""
        assert isinstance(event, torch.cuda.Event)
        self._streams[queue].wait_event(event)

    def keep(self, tensors: Iterable[torch.Tensor], queue: Queue) -> None:
        """See `Streams`."""
        for tensor in tensors:
            tensor.record_stream(self._streams[queue])

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Streams`; through pinned memory, which torch caches."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)
