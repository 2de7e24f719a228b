"""Loads, stores, additions in memory, and asynchronous copies."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.ptx.block import AsyncCopy, Block, Step
from tests.ptx.memory import LOCAL, SHARED, WORD, added_in_turn
from tests.ptx.operands import UNSIGNED, Address, Constant, Operand, Parameter, PtxError, Values, elements, type_of
from tests.ptx.program import Instruction, Kernel
from tests.ptx.steps import operation, unknown

_SPACES = ("global", "shared", "local")


def _space(instruction: Instruction) -> str:
    return next((each for each in instruction.modifiers if each in _SPACES), "generic")


def _by_space(space: str, addresses: Values) -> list[tuple[str, Values]]:
    """Return, for each memory, which of the addresses are of it."""
    if space != "generic":
        return [(space, np.ones(len(addresses), dtype=bool))]
    tags = addresses.view(np.uint64) >> np.uint64(56)
    shared, local = tags == SHARED >> 56, tags == LOCAL >> 56
    parts = {"shared": shared, "local": local, "global": ~shared & ~local}
    return [(name, part) for name, part in parts.items() if part.any()]


def _untagged(addresses: Values) -> Values:
    return addresses & np.int64(~(0x7F << 56))


def _read(block: Block, space: str, addresses: Values, width: int, threads: Values) -> Values:
    """Return unsigned values of `width` bytes for each address."""
    found = np.empty(len(addresses), UNSIGNED[8 * width])
    for name, part in _by_space(space, addresses):
        there = addresses[part]
        if name == "global":
            found[part] = block.memory.read(there, width)
        else:
            memory = block.shared if name == "shared" else block.local
            found[part] = memory.read(_untagged(there), width, threads[part])
    return found


def _write(block: Block, space: str, addresses: Values, values: Values, width: int, threads: Values) -> None:
    for name, part in _by_space(space, addresses):
        there = addresses[part]
        if name == "global":
            block.memory.write(there, values[part], width)
        else:
            memory = block.shared if name == "shared" else block.local
            memory.write(_untagged(there), values[part], width, threads[part])


def _check_vector(block: Block, space: str, addresses: Values, size: int) -> None:
    """A vector must lie at a multiple of its whole size."""
    if space == "global":
        block.memory.check(addresses, size)
    elif (addresses % size).any():
        raise PtxError(f"a vector of {size} bytes is not aligned")


@operation("ld")
def _load(instruction: Instruction, kernel: Kernel) -> Step:
    target, source = instruction.operands
    assert isinstance(source, Address)
    dtype = type_of(instruction.modifiers[-1])
    width, targets, space = dtype.itemsize, elements(target), _space(instruction)
    if isinstance(source.base, Parameter):
        return _parameter(instruction, source.base.name, source.offset)

    def step(block: Block, mask: Values | None) -> None:
        threads = block.those(mask)
        addresses = source.address(block)[threads]
        _check_vector(block, space, addresses, width * len(targets))
        for place, each in enumerate(targets):
            found = np.zeros(block.threads, UNSIGNED[8 * width])
            found[threads] = _read(block, space, addresses + place * width, width, threads)
            each.write(block, found.view(dtype), mask)

    return step


def _parameter(instruction: Instruction, name: str, offset: int) -> Step:
    target, _ = instruction.operands
    dtype = type_of(instruction.modifiers[-1])
    if offset:
        raise unknown(instruction)

    def step(block: Block, mask: Values | None) -> None:
        bits = 8 * dtype.itemsize
        value = block.arguments[name] & ((1 << bits) - 1)
        target.write(block, np.full(block.threads, value, UNSIGNED[bits]).view(dtype), mask)

    return step


@operation("st")
def _store(instruction: Instruction, kernel: Kernel) -> Step:
    target, source = instruction.operands
    assert isinstance(target, Address)
    width = type_of(instruction.modifiers[-1]).itemsize
    dtype, sources, space = np.dtype(UNSIGNED[8 * width]), elements(source), _space(instruction)

    def step(block: Block, mask: Values | None) -> None:
        threads = block.those(mask)
        addresses = target.address(block)[threads]
        _check_vector(block, space, addresses, width * len(sources))
        for place, each in enumerate(sources):
            _write(block, space, addresses + place * width, each.read(block, dtype)[threads], width, threads)

    return step


@operation("atom", "red")
def _add_in_memory(instruction: Instruction, kernel: Kernel) -> Step:
    *targets, where, value = instruction.operands
    assert isinstance(where, Address)
    space, dtype = _space(instruction), type_of(instruction.modifiers[-1])
    if "add" not in instruction.modifiers or space not in ("global", "shared") or dtype.kind == "f":
        raise unknown(instruction)

    def step(block: Block, mask: Values | None) -> None:
        threads = block.those(mask)
        addresses, values = where.address(block)[threads], value.read(block, dtype)[threads]
        before = np.zeros(block.threads, dtype)
        if space == "shared":
            before[threads] = block.shared.add(addresses, values, threads)
        else:
            there = block.memory.read(addresses, dtype.itemsize).view(dtype)
            before[threads], after = added_in_turn(addresses, there, values)
            block.memory.write(addresses, after.view(UNSIGNED[8 * dtype.itemsize]), dtype.itemsize)
        for target in targets:
            target.write(block, before, mask)

    return step


@operation("cp")
def _copy(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.modifiers[:2] == ("async", "commit_group"):
        return _close_group
    if instruction.modifiers[:2] in (("async", "wait_group"), ("async", "wait_all")):
        return partial(_wait, _number(instruction.operands[0]) if instruction.operands else None)
    if "async" not in instruction.modifiers or "bulk" in instruction.modifiers:
        raise unknown(instruction)
    return _begin_copy(instruction)


def _number(operand: Operand) -> int:
    assert isinstance(operand, Constant)
    return operand.value


def _close_group(block: Block, mask: Values | None) -> None:
    block.closed_groups[block.those(mask)] += 1


def _wait(left: int | None, block: Block, mask: Values | None) -> None:
    """Let the copies of threads land: of all groups that they closed but the last ones; None for all copies."""
    waits = np.zeros(block.threads, dtype=bool)
    waits[block.those(mask)] = True
    for copy in block.copies:
        lands = copy.on_the_way & waits[copy.threads]
        if left is not None:
            lands &= copy.groups < block.closed_groups[copy.threads] - left
        _land(block, copy, lands)
    block.copies = [copy for copy in block.copies if copy.on_the_way.any()]


def _begin_copy(instruction: Instruction) -> Step:
    """cp.async: bytes of global memory to shared memory, of which the first may be read and the rest be zeros."""
    to, source, size, *read = instruction.operands
    assert isinstance(to, Address)
    assert isinstance(source, Address)
    count = _number(size)

    def step(block: Block, mask: Values | None) -> None:
        threads = block.those(mask)
        into, out_of = to.address(block)[threads], source.address(block)[threads]
        limits = read[0].read(block, np.dtype(np.uint32))[threads] if read else np.full(len(threads), count)
        if (into % count).any():
            raise PtxError(f"a copy of {count} bytes is not aligned in shared memory")
        for first in range(0, count, WORD):
            block.shared.expect(into + first, WORD, threads)
        groups = block.closed_groups[threads]
        block.copies.append(AsyncCopy(threads, groups, into, out_of, limits, count, np.ones(len(threads), dtype=bool)))

    return step


def _land(block: Block, copy: AsyncCopy, lands: Values) -> None:
    """Carry out the copies of some threads."""
    copy.on_the_way &= ~lands
    threads, into, out_of, limits = (each[lands] for each in (copy.threads, copy.into, copy.out_of, copy.limits))
    read = limits > 0
    block.memory.check(out_of[read], copy.count if (limits[read] == copy.count).all() else WORD)
    for first in range(0, copy.count, WORD):
        values = np.zeros(len(into), np.uint32)
        within = limits > first
        values[within] = block.memory.read(out_of[within] + first, WORD)
        block.shared.write(into + first, values, WORD, threads)
