"""Transfers between host and device.

Weights are copied to the device through two pinned buffers: one is filled while the other is copied.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import torch

# Bytes of each of the two buffers. Larger buffers gain nothing; smaller ones do not reach the full copy rate.
BUFFER = 64 << 20
# Bytes that one thread copies at a time. Several threads read a mapped file faster than one.
PIECE = 4 << 20
# Alignment of every tensor, so that kernels can use wide loads.
ALIGNMENT = 256


def with_index(device: torch.device) -> torch.device:
    """Return a device as tensors name it: "cuda" is the current CUDA device, such as "cuda:0".

    >>> with_index(torch.device("cpu")), with_index(torch.device("cuda:1"))
    (device(type='cpu'), device(type='cuda', index=1))
    """
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Make a stream current for this thread. None, on devices without streams, has no effect."""
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


def fetched(values: torch.Tensor) -> torch.Tensor:
    """Return a host copy of a device's tensor, through pinned memory that torch caches. Wait for the current stream.

    >>> fetched(torch.ones(2))
    tensor([1., 1.])
    """
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return host


class Uploader:
    """Copies tensors to one device, on one stream.

    Args:
        device: device of the results; for devices other than CUDA, torch itself moves the tensors.
        stream: stream of the copies; by default one of its own.

    >>> Uploader(torch.device("cpu")).upload([torch.ones(2)], ThreadPoolExecutor(1))
    [tensor([1., 1.])]
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None = None) -> None:
        self.device = with_index(device)
        self.stream = torch.cuda.Stream(self.device) if stream is None and device.type == "cuda" else stream
        self._buffers: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._next = 0

    def upload(self, tensors: Sequence[torch.Tensor], pool: ThreadPoolExecutor) -> list[torch.Tensor]:
        """Return copies of tensors on the device. Tensors that are already there are returned themselves.

        A tensor that occurs several times is copied once. Work on the results must wait for `stream`. Sources may be
        released at once, except pinned ones: they are copied directly, and must not change until the copy is done.
        """
        if self.stream is None:
            return [tensor.to(self.device) for tensor in tensors]
        first = {id(tensor): index for index, tensor in reversed(list(enumerate(tensors)))}
        sources = {at: _bytes(tensors[at]) for at in sorted(first.values()) if tensors[at].device != self.device}
        starts = dict(zip(sources, _starts(sources.values()), strict=False))
        uploaded = list(tensors)
        with torch.cuda.stream(self.stream):
            room = torch.empty(sum(map(_rounded, sources.values())), dtype=torch.uint8, device=self.device)
            for index, source in sources.items():
                there = room[starts[index] :][: len(source)]
                if source.is_pinned():
                    there.copy_(source, non_blocking=True)
                uploaded[index] = there.view(tensors[index].dtype).view(tensors[index].shape)
            pageable = {starts[index]: source for index, source in sources.items() if not source.is_pinned()}
            if pageable:
                self._through_buffers(pageable, room, pool)
        return [uploaded[first[id(tensor)]] for tensor in tensors]

    def _through_buffers(self, sources: dict[int, torch.Tensor], room: torch.Tensor, pool: ThreadPoolExecutor) -> None:
        """Copy sources to their starts in `room`. Small ones share a buffer."""
        if not self._buffers:
            self._buffers = [torch.empty(BUFFER, dtype=torch.uint8, device="cpu", pin_memory=True) for _ in range(2)]
            self._copied = [torch.cuda.Event() for _ in range(2)]
        for begin in range(0, len(room), BUFFER):
            buffer, copied = self._buffers[self._next], self._copied[self._next]
            pieces = list(_pieces(sources, begin, buffer))
            if not pieces:
                continue
            self._next = 1 - self._next
            copied.synchronize()
            # NumPy copies on this thread; torch would start threads for each piece.
            for done in [pool.submit(np.copyto, piece.numpy(), source.numpy()) for _, piece, source in pieces]:
                done.result()
            first, last = pieces[0][0], pieces[-1][0] + len(pieces[-1][1])
            room[begin + first : begin + last].copy_(buffer[first:last], non_blocking=True)
            copied.record(self.stream)


def _pieces(
    sources: dict[int, torch.Tensor], begin: int, buffer: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (offset, piece of the buffer, source of the piece) for one buffer, whose bytes start at `begin`."""
    for start, source in sources.items():
        first, last = max(start, begin), min(start + len(source), begin + len(buffer))
        for at in range(first, last, PIECE):
            stop = min(at + PIECE, last)
            yield at - begin, buffer[at - begin : stop - begin], source[at - start : stop - start]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _rounded(source: torch.Tensor) -> int:
    return -(-len(source) // ALIGNMENT) * ALIGNMENT


def _starts(sources: Iterable[torch.Tensor]) -> Iterator[int]:
    return itertools.accumulate(map(_rounded, sources), initial=0)
