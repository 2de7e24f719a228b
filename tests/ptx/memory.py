"""The memories of a GPU, each access checked: global memory of the process's tensors, shared, and local."""

from __future__ import annotations

import atexit
import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch

from tests.ptx.operands import UNSIGNED, PtxError, Values

WORD = 4  # bytes by which races are found
# Generic addresses say by their first byte which memory they are of.
SHARED, LOCAL = 0x7F << 56, 0x7E << 56
_LOWEST, _HIGHEST = 1 << 12, 1 << 47
_NOBODY, _SEVERAL = -1, -2


class _Everything:
    """The memory of this process as one array; what is read or written there is checked before."""

    def __init__(self, width: int) -> None:
        count = (_HIGHEST - _LOWEST) // width
        self.__array_interface__ = {
            "shape": (count,), "typestr": f"<u{width}", "data": (_LOWEST, False), "version": 3,
        }  # fmt: skip


_EVERYTHING = {width: np.asarray(_Everything(width)) for width in (1, 2, 4, 8)}


class GlobalMemory:
    """CPU tensors at their own addresses.

    Args:
        spans: (first byte, byte after the last) of what may be touched; those of all living tensors by default.
    """

    def __init__(self, spans: Sequence[tuple[int, int]] | None = None) -> None:
        spans = living_tensors() if spans is None else sorted(spans)
        self._first = np.array([first for first, _ in spans], dtype=np.int64)
        self._end = np.array([end for _, end in spans], dtype=np.int64)

    def check(self, addresses: Values, width: int) -> None:
        """Check that bytes at addresses are aligned and lie in one tensor.

        Raises:
            PtxError: they are not, or do not.
        """
        if (addresses % width).any():
            raise PtxError(f"an access of {width} bytes at {int(addresses[addresses % width != 0][0]):#x}: not aligned")
        span = np.searchsorted(self._first, addresses, side="right") - 1
        outside = (span < 0) | (addresses + width > self._end[span])
        if outside.any():
            raise PtxError(
                f"global memory at {int(addresses[outside][0]):#x} is of no tensor; {int(outside.sum())} threads"
            )

    def read(self, addresses: Values, width: int) -> Values:
        """Return unsigned values of `width` bytes."""
        self.check(addresses, width)
        return _EVERYTHING[width][(addresses - _LOWEST) // width]

    def write(self, addresses: Values, values: Values, width: int) -> None:
        """Write unsigned values of `width` bytes.

        Raises:
            PtxError: as for `check`; two threads write different values to one place.
        """
        self.check(addresses, width)
        places = (addresses - _LOWEST) // width
        _EVERYTHING[width][places] = values
        if (_EVERYTHING[width][places] != values).any():
            raise PtxError("two threads write different values to one place of global memory")


def living_tensors() -> list[tuple[int, int]]:
    """Return the spans of memory of all CPU tensors, in their order, none of which overlap."""
    spans = set()
    for each in _tensors():
        if each.layout == torch.strided and each.is_cpu:
            storage = each.untyped_storage()
            spans.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and first < joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        elif end > first:
            joined.append((first, end))
    return joined


# Looking through all objects of a process takes 0.1 s, and a factorisation has a hundred launches: those that are old
# are put aside, where the collector does not look any more, and the tensors among them are remembered.
_MOST_YOUNG = 20_000
_old_tensors: list[weakref.ref[torch.Tensor]] = []
atexit.register(gc.unfreeze)  # some libraries report what is not collected at the end


def _tensors() -> list[torch.Tensor]:
    young = gc.get_objects()
    tensors = _among(young)
    _old_tensors[:] = [reference for reference in _old_tensors if reference() is not None]
    found = tensors + [tensor for reference in _old_tensors if (tensor := reference()) is not None]
    if len(young) > _MOST_YOUNG:
        _old_tensors.extend(map(weakref.ref, tensors))
        gc.freeze()
    return found


def _among(objects: Iterable[object]) -> list[torch.Tensor]:
    # By type: some objects only pretend to be of a class, or load a library to tell.
    return [cast(torch.Tensor, each) for each in objects if type(each) in (torch.Tensor, torch.nn.Parameter)]


def added_in_turn(addresses: Values, there: Values, values: Values) -> tuple[Values, Values]:
    """Return what is at each address before and after values are added, one after the other.

    Args:
        addresses: one for each value.
        there: what is at each address at first.
        values: integers.

    Returns:
        Before each addition; and after all of those to the same address.

    >>> before, after = added_in_turn(np.array([8, 0, 8]), np.array([5, 1, 5]), np.array([1, 2, 3]))
    >>> before.tolist(), after.tolist()
    ([5, 1, 6], [9, 3, 9])
    """
    order = np.argsort(addresses, kind="stable")
    _, first, place = np.unique(addresses[order], return_index=True, return_inverse=True)
    sums = np.cumsum(values[order], dtype=values.dtype)
    of_others = (sums[first] - values[order][first])[place]  # what went to the addresses before this one
    last = np.append(first[1:], len(order)) - 1
    before, after = np.empty_like(there), np.empty_like(there)
    before[order] = there[order] + (sums - values[order] - of_others)
    after[order] = there[order] + (sums[last][place] - of_others)
    return before, after


class _Marks:
    """Who touched each word of shared memory last, and when: thread and warp, or several, and the barriers before."""

    def __init__(self, words: int) -> None:
        self.thread = np.full(words, _NOBODY)
        self.warp = np.full(words, _NOBODY)
        self.barriers = np.zeros(words, dtype=np.int64)
        self.warp_barriers = np.zeros(words, dtype=np.int64)

    def of_others(self, words: Values, threads: Values, barriers: int, warp_barriers: Values) -> Values:
        """Tell which words another thread touched since the barrier that parts it from these threads."""
        touched = (self.thread[words] != _NOBODY) & (self.barriers[words] == barriers)
        same_warp = self.warp[words] == threads // 32
        parted = same_warp & (self.warp_barriers[words] != warp_barriers)
        return touched & ~parted & (self.thread[words] != threads)

    def set(self, words: Values, threads: Values, barriers: int, warp_barriers: Values) -> None:
        """Note that threads touched words; who touched them since the last barrier of the block is not forgotten."""
        current = (self.barriers[words] == barriers) & (self.thread[words] != _NOBODY)
        of_warp = current & (self.warp_barriers[words] == warp_barriers) & (self.warp[words] == threads // 32)
        several = of_warp & (self.thread[words] != threads)
        several_warps = current & (self.warp[words] != threads // 32)
        thread = np.where(several | several_warps, _SEVERAL, threads)
        warp = np.where(several_warps, _SEVERAL, threads // 32)
        self.thread[words], self.warp[words] = thread, warp
        self.barriers[words], self.warp_barriers[words] = barriers, warp_barriers
        # Several of these threads may touch one word at once.
        self.thread[words[self.thread[words] != thread]] = _SEVERAL
        self.warp[words[self.warp[words] != warp]] = _SEVERAL


class SharedMemory:
    """The shared memory of one block; it begins as NaN.

    Args:
        size: bytes.
        threads: of the block.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self._bytes = np.full(-(-size // 16) * 16, 0xFF, dtype=np.uint8)
        words = len(self._bytes) // WORD
        self._reads, self._writes, self._atomics = _Marks(words), _Marks(words), _Marks(words)
        self._barriers = 1
        self._warp_barriers = np.ones(-(-threads // 32), dtype=np.int64)
        # The thread that wrote each word, until it has fenced that and all have met; for `check_asynchronous`.
        self._writer = np.full(words, _NOBODY)
        self._is_fenced = np.zeros(words, dtype=bool)
        self._threads = np.arange(threads)

    def barrier(self) -> None:
        """All threads of the block have met."""
        self._barriers += 1
        if self._is_fenced.any():
            self._writer[self._is_fenced] = _NOBODY
            self._is_fenced[:] = False

    def fence(self, threads: Values) -> None:
        """Threads make what they wrote visible to asynchronous readers, once all have met at a barrier."""
        self._is_fenced |= np.isin(self._writer, threads)

    def check_asynchronous(self, addresses: Values) -> None:
        """Check words that a warpgroup's products read: by any thread of it, until they land.

        Raises:
            PtxError: beyond the end, a race, or a word that its writer has not fenced before a barrier.
        """
        self._places(addresses, WORD, WORD)
        threads = np.resize(self._threads, len(addresses))
        self._touch(addresses, WORD, threads, (self._writes, self._atomics), self._reads, "reads")
        unseen = self._writer[addresses // WORD] != _NOBODY
        if unseen.any():
            at = int(addresses[unseen][0])
            raise PtxError(f"a product reads shared memory at {at}, written without fence.proxy.async and a barrier")

    def peek(self, addresses: Values) -> Values:
        """Return words, without a check: what lands late reads what is there then."""
        return self._bytes.view(np.uint32)[addresses // WORD]

    def warp_barrier(self, warps: Values) -> None:
        """All threads of these warps have met."""
        self._warp_barriers[warps] += 1

    def read(self, addresses: Values, width: int, threads: Values, at_once: int = 0) -> Values:
        """Return unsigned values of `width` bytes, read by threads.

        Args:
            addresses: one for each thread.
            width: bytes, of each value.
            threads: their numbers.
            at_once: bytes that the address must be a multiple of; `width` by default.

        Raises:
            PtxError: beyond the end, not aligned, or a race.
        """
        places = self._places(addresses, width, at_once or width)
        self._touch(addresses, width, threads, (self._writes, self._atomics), self._reads, "reads")
        return self._bytes[places].view(UNSIGNED[8 * width])[:, 0]

    def write(self, addresses: Values, values: Values, width: int, threads: Values) -> None:
        """Write unsigned values of `width` bytes.

        Raises:
            PtxError: as for `read`; two threads write different values to one place.
        """
        places = self._places(addresses, width, width)
        self._touch(addresses, width, threads, (self._reads, self._writes, self._atomics), self._writes, "writes")
        as_bytes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, width)
        self._bytes[places] = as_bytes
        self._note_writers(addresses, width, threads)
        if (self._bytes[places] != as_bytes).any():
            raise PtxError("a race: two threads write different values to one place of shared memory at once")

    def add(self, addresses: Values, values: Values, threads: Values) -> Values:
        """Add integers, each as one step, in the order of the threads; return what was there before each."""
        width = values.dtype.itemsize
        places = self._places(addresses, width, width)
        self._touch(addresses, width, threads, (self._reads, self._writes), self._atomics, "adds to")
        before, after = added_in_turn(addresses, self._bytes[places].view(values.dtype)[:, 0], values)
        self._bytes[places] = np.ascontiguousarray(after).view(np.uint8).reshape(-1, width)
        self._note_writers(addresses, width, threads)
        return before

    def expect(self, addresses: Values, width: int, threads: Values) -> None:
        """Begin an asynchronous write: until it lands, what is there is NaN."""
        self.write(addresses, np.full(len(addresses), 2 ** (8 * WORD) - 1, np.uint32), width, threads)

    def _note_writers(self, addresses: Values, width: int, threads: Values) -> None:
        for first in range(0, width, WORD):
            words = (addresses + first) // WORD
            self._writer[words], self._is_fenced[words] = threads, False

    def _places(self, addresses: Values, width: int, multiple: int) -> Values:
        if len(addresses) and (addresses.min() < 0 or addresses.max() + width > self.size):
            raise PtxError(f"shared memory at {int(addresses.max())}, of {self.size} bytes")
        if (addresses % multiple).any():
            raise PtxError(f"an access of {multiple} bytes of shared memory is not aligned")
        return addresses[:, None] + np.arange(width)

    def _touch(
        self, addresses: Values, width: int, threads: Values, against: Sequence[_Marks], marks: _Marks, verb: str
    ) -> None:  # fmt: skip
        when = self._warp_barriers[threads // 32]
        for first in range(0, width, WORD):
            words = (addresses + first) // WORD
            for each in against:
                race = each.of_others(words, threads, self._barriers, when)
                if race.any():
                    at = int(np.nonzero(race)[0][0])
                    raise PtxError(
                        f"a race: thread {int(threads[at])} {verb} shared memory at {int(words[at]) * WORD}, which "
                        f"thread {int(each.thread[words[at]])} touched since the last barrier of both"
                    )
            marks.set(words, threads, self._barriers, when)


class LocalMemory:
    """Memory of each thread alone; it begins as NaN.

    Args:
        size: bytes of each thread.
        threads: of the block.
    """

    def __init__(self, size: int, threads: int) -> None:
        self._bytes = np.full((threads, size), 0xFF, dtype=np.uint8)

    def read(self, addresses: Values, width: int, threads: Values) -> Values:
        """Return unsigned values of `width` bytes."""
        return self._bytes[threads[:, None], self._places(addresses, width)].view(UNSIGNED[8 * width])[:, 0]

    def write(self, addresses: Values, values: Values, width: int, threads: Values) -> None:
        """Write unsigned values of `width` bytes."""
        as_bytes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, width)
        self._bytes[threads[:, None], self._places(addresses, width)] = as_bytes

    def _places(self, addresses: Values, width: int) -> Values:
        if len(addresses) and (addresses.min() < 0 or addresses.max() + width > self._bytes.shape[1]):
            raise PtxError(f"local memory at {int(addresses.max())}, of {self._bytes.shape[1]} bytes")
        return addresses[:, None] + np.arange(width)
