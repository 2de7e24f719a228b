"""Branches and barriers."""

from __future__ import annotations

from tests.ptx.block import Block, BlockBarrier, Branch, Step
from tests.ptx.operands import Constant, Label, Values
from tests.ptx.program import Instruction, Kernel
from tests.ptx.steps import operation, unknown


@operation("bra")
def _branch(instruction: Instruction, kernel: Kernel) -> Step:
    (label,) = instruction.operands
    assert isinstance(label, Label)
    target = kernel.labels[label.name]
    return lambda block, mask: Branch(target, mask)


@operation("ret", "exit")
def _end(instruction: Instruction, kernel: Kernel) -> Step:
    end = len(kernel.instructions)
    return lambda block, mask: Branch(end, mask)


@operation("bar", "barrier")
def _barrier(instruction: Instruction, kernel: Kernel) -> Step:
    if "warp" in instruction.modifiers:
        return _warp_barrier
    if instruction.operands != (Constant(0),):
        raise unknown(instruction)  # those of some of the threads, and of other numbers
    return lambda block, mask: BlockBarrier()


def _warp_barrier(block: Block, mask: Values | None) -> None:
    block.shared.warp_barrier(block.whole_warps(mask))


@operation("fence", "membar", "prefetch", "griddepcontrol")
def _fence(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.modifiers[:2] == ("proxy", "async"):
        return lambda block, mask: block.shared.fence(block.those(mask))
    return lambda block, mask: None
