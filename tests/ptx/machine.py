"""Kernels of PTX, launched on the processor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Each of these registers its instructions.
from tests.ptx import accesses, arithmetic, control, conversions, warpgroups, warps  # noqa: F401
from tests.ptx.block import Block, Step
from tests.ptx.memory import GlobalMemory, SharedMemory
from tests.ptx.operands import PtxError
from tests.ptx.program import parse
from tests.ptx.steps import steps_of


class Machine:
    """The kernels of a PTX file.

    Args:
        ptx: its text.

    Attributes:
        kernels: by name.
    """

    def __init__(self, ptx: str) -> None:
        self.kernels = parse(ptx)
        self._steps: dict[str, list[Step]] = {}

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, arguments: Sequence[int], shared_bytes: int = 0
    ) -> None:
        """Run a kernel to its end, one block after the other.

        Args:
            name: of the kernel.
            grid: blocks, (x, y).
            threads: of a block; a multiple of 32.
            arguments: the bits of each parameter; tensors as addresses.
            shared_bytes: of dynamic shared memory.

        Raises:
            PtxError: behaviour that a GPU leaves undefined, or an instruction that this machine does not know.
        """
        kernel = self.kernels[name]
        if threads > kernel.most_threads or threads % 32:
            raise PtxError(f"{name} with {threads} threads: a multiple of 32, at most {kernel.most_threads}")
        if len(arguments) != len(kernel.parameters):
            raise PtxError(f"{name} takes {len(kernel.parameters)} arguments, not {len(arguments)}")
        steps = self._steps.get(name) or self._steps.setdefault(name, steps_of(kernel))
        values = dict(zip(kernel.parameters, arguments, strict=True))
        memory = GlobalMemory()
        with np.errstate(all="ignore"):
            for y in range(grid[1]):
                for x in range(grid[0]):
                    shared = SharedMemory(shared_bytes, threads)
                    Block(kernel, (x, y), grid, threads, values, memory, shared).run(steps)
