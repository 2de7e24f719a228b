"""The threads of one block: what they hold, and which of them go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from tests.ptx.memory import GlobalMemory, LocalMemory, SharedMemory
from tests.ptx.operands import PtxError, Values
from tests.ptx.program import Kernel

if TYPE_CHECKING:
    from tests.ptx.warpgroups import Product


@dataclass(frozen=True)
class Branch:
    """Where threads go on.

    Attributes:
        target: index of an instruction; beyond the last, the threads end.
        taken: the threads that do; None for all.
    """

    target: int
    taken: Values | None


class BlockBarrier:
    """All threads of the block wait for each other."""


@dataclass
class AsyncCopy:
    """Copies of bytes from global to shared memory, one of each thread, that have not all landed.

    Attributes:
        threads: that copy.
        groups: the group of each thread's copies that this is in.
        into, out_of: addresses.
        limits: bytes that are read of each; the rest are zeros.
        count: bytes of each.
        on_the_way: of which threads it has not landed.
    """

    threads: Values
    groups: Values
    into: Values
    out_of: Values
    limits: Values
    count: int
    on_the_way: Values


# What an instruction does to a block, for the threads of a mask (None for all): most only write registers or memory.
Step = Callable[["Block", Union[Values, None]], Union[Branch, BlockBarrier, None]]  # noqa: UP007


@dataclass
class Block:
    """The threads of one block.

    Of the threads that can go on, those at the lowest instruction go first; threads that parted meet again so.

    Attributes:
        kernel: what they execute.
        place: of the block in the grid, (x, y).
        grid: blocks, (x, y).
        threads: of the block.
        arguments: the bits of the kernel's parameters, by name.
        memory: global memory.
        shared: shared memory of the block.
        registers: values of each register that was written.
        carry: of the last addition that keeps it.
        copies: asynchronous copies that have not landed.
        closed_groups: how many groups of copies each thread has closed.
        products: of the warpgroup (`warpgroups`), which have not landed.
        closed_products: how many groups of products it has closed.
        fenced: the registers at its last fence; a write to one replaces its array.
        on_the_way: what stands in the registers of products until they land.
    """

    kernel: Kernel
    place: tuple[int, int]
    grid: tuple[int, int]
    threads: int
    arguments: dict[str, int]
    memory: GlobalMemory
    shared: SharedMemory
    registers: dict[str, Values] = field(default_factory=dict)
    carry: Values | None = None
    copies: list[AsyncCopy] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    closed_products: int = 0
    fenced: dict[str, Values] = field(default_factory=dict)
    on_the_way: dict[str, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make what follows from the rest."""
        self.local = LocalMemory(self.kernel.local_bytes, self.threads)
        self.numbers = np.arange(self.threads)
        self.closed_groups = np.zeros(self.threads, dtype=np.int64)
        self._everybody = np.ones(self.threads, dtype=bool)

    def special(self, name: str) -> Any:
        """Return the value of a register of the hardware."""
        if name == "tid.x":
            return self.numbers
        if name == "laneid":
            return self.numbers % 32
        x, y = self.place
        values = {
            "ntid.x": self.threads,
            "ctaid.x": x,
            "ctaid.y": y,
            "nctaid.x": self.grid[0],
            "nctaid.y": self.grid[1],
        }
        return values.get(name, 1 if name.startswith("n") else 0)

    def those(self, mask: Values | None) -> Values:
        """Return the numbers of the threads of a mask."""
        return self.numbers if mask is None else self.numbers[mask]

    def whole_warps(self, mask: Values | None) -> Values:
        """Return the warps of a mask.

        Raises:
            PtxError: a part of a warp is missing.
        """
        lanes = (self._everybody if mask is None else mask).reshape(-1, 32)
        if (lanes.any(axis=1) != lanes.all(axis=1)).any():
            raise PtxError("a part of a warp is missing, where all of its threads must meet")
        return np.nonzero(lanes.all(axis=1))[0]

    def run(self, steps: Sequence[Step]) -> None:
        """Run all threads to their end.

        Raises:
            PtxError: behaviour that a GPU leaves undefined.
        """
        at = np.zeros(self.threads, dtype=np.int64)
        waits = np.zeros(self.threads, dtype=bool)
        while True:
            ready = ~waits & (at < len(steps))
            if not ready.any():
                if not waits.any():
                    break
                self._meet(at, waits, len(steps))
                continue
            here = int(at[ready].min())
            mask = ready & (at == here)
            others = at[ready & ~mask]
            self._run_group(
                steps, here, None if mask.all() else mask, int(others.min()) if len(others) else -1, at, waits
            )
        if self.copies:
            raise PtxError("the kernel ends while asynchronous copies are on their way")
        if self.products:
            raise PtxError("the kernel ends while products of a warpgroup are on their way")

    def _run_group(
        self, steps: Sequence[Step], here: int, mask: Values | None, others: int, at: Values, waits: Values
    ) -> None:  # fmt: skip
        """Run threads at one instruction until they part, wait, end, or come to where the next of the others are.

        Args:
            steps: of all instructions.
            here: where the threads are.
            mask: the threads; None for all.
            others: where the next of the others are; -1 if nobody else goes on.
            at, waits: of every thread, changed.
        """
        end = len(steps)
        while here < end and here != others:
            outcome = self._execute(steps, here, mask)
            following = here + 1
            if outcome is None:
                here = following
                continue
            if isinstance(outcome, BlockBarrier):
                if mask is None:
                    self.shared.barrier()
                    here = following
                    continue
                at[mask], waits[mask] = here, True
                return
            if outcome.taken is None or (mask is None and outcome.taken.all()):
                here = outcome.target
            else:
                taken = outcome.taken if mask is None else mask & outcome.taken
                # Only where all of them go on at one place they stay together.
                if not taken.any():
                    here = following
                elif mask is not None and (taken == mask).all():
                    here = outcome.target
                else:
                    where = np.where(taken, outcome.target, following)
                    at[...] = where if mask is None else np.where(mask, where, at)
                    return
            if 0 <= others < here:
                break
        at[... if mask is None else mask] = here

    def _execute(self, steps: Sequence[Step], here: int, mask: Values | None) -> Branch | BlockBarrier | None:
        try:
            return steps[here](self, mask)
        except PtxError as error:
            if "\n" in str(error):
                raise
            text = self.kernel.instructions[here].text
            raise PtxError(f"{error}\n  in block {self.place} of {self.kernel.name}, at {here}: {text}") from None

    def _meet(self, at: Values, waits: Values, end: int) -> None:
        """Let threads go on from a barrier that all have reached."""
        if (at[~waits] >= end).any():
            raise PtxError(f"threads of {self.kernel.name} have ended while others wait at a barrier")
        if len(np.unique(at[waits])) > 1:
            raise PtxError(f"threads of {self.kernel.name} wait at different barriers")
        at[waits] += 1
        waits[:] = False
        self.shared.barrier()
