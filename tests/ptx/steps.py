"""Instructions as steps that a block takes: what each does is registered by its name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.block import Block, BlockBarrier, Branch, Step
from tests.ptx.operands import Operand, PtxError, Values
from tests.ptx.program import Instruction, Kernel

Factory = Callable[[Instruction, Kernel], Step]
FACTORIES: dict[str, Factory] = {}


def operation(*names: str) -> Callable[[Factory], Factory]:
    """Register what makes the steps of instructions of these names."""

    def register(factory: Factory) -> Factory:
        FACTORIES.update(dict.fromkeys(names, factory))
        return factory

    return register


def unknown(instruction: Instruction) -> PtxError:
    """Return the error that an instruction, or a form of it, is not known."""
    return PtxError(f"this machine does not know the instruction {instruction.text!r}")


def steps_of(kernel: Kernel) -> list[Step]:
    """Return the steps of a kernel.

    Raises:
        PtxError: an instruction is not known.
    """
    return [_step(instruction, kernel) for instruction in kernel.instructions]


def _step(instruction: Instruction, kernel: Kernel) -> Step:
    factory = FACTORIES.get(instruction.name)
    if factory is None:
        raise unknown(instruction)
    step = factory(instruction, kernel)
    return step if instruction.guard is None else _guarded(step, *instruction.guard)


def _guarded(step: Step, predicate: Operand, wanted: bool) -> Step:
    def guarded(block: Block, mask: Values | None) -> Branch | BlockBarrier | None:
        allowed: Values = predicate.read(block, np.dtype(bool)) == wanted
        allowed = allowed if mask is None else mask & allowed
        if not allowed.any():
            return None
        outcome = step(block, None if allowed.all() else allowed)
        if isinstance(outcome, Branch):
            return Branch(outcome.target, allowed)
        if isinstance(outcome, BlockBarrier) and not allowed.all():
            raise PtxError("a part of the threads skip a barrier")
        return outcome

    return guarded
