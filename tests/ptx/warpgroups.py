"""`wgmma`: products of matrices by four warps, of registers and shared memory, that land at their wait.

PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions". Known are blocks of one warpgroup, TF32, A in registers and
B in shared memory. What is checked of them:

- accumulators are NaN until the wait, and B is read only there, as late as a GPU may;
- registers that were written since the last `wgmma.fence` are not given to a product, and nobody writes to those of a
  product on its way;
- shared memory that threads wrote was fenced by them (`fence.proxy.async`), before a barrier.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.ptx.block import Block, Step
from tests.ptx.operands import Constant, Operand, PtxError, Register, Values, elements
from tests.ptx.program import Instruction, Kernel
from tests.ptx.steps import operation, unknown
from tests.ptx.warps import tf32

THREADS = 128
ROWS, INNER = 64, 8
# Of the two bits of a descriptor: bytes of a row within which its 16-byte pieces change places.
SWIZZLES = {0: 16, 1: 128, 2: 64, 3: 32}
_BITS64, _FLOAT32 = np.dtype(np.uint64), np.dtype(np.float32)
_LANES = np.arange(THREADS) % 32
_ROW, _COLUMN = _LANES // 4 + 16 * (np.arange(THREADS) // 32), _LANES % 4


@dataclass(eq=False)
class Product:
    """A product on its way.

    Attributes:
        registers: of D.
        before: what D held; None where it begins at zero, or where another product on its way gives it.
        begins_at_zero: whether D = A·B, not D + A·B.
        left: A, (64, 8) float64.
        addresses: of the elements of B in shared memory, (8, N).
        group: the group of products that this is in.
    """

    registers: tuple[Register, ...]
    before: Values | None
    begins_at_zero: bool
    left: Values
    addresses: Values
    group: int


@operation("wgmma")
def _warpgroup(instruction: Instruction, kernel: Kernel) -> Step:
    kind = instruction.modifiers[0]
    if kind == "fence":
        return _together(_fence)
    if kind == "commit_group":
        return _together(_close_group)
    if kind == "wait_group":
        (left,) = instruction.operands
        assert isinstance(left, Constant)
        return _together(partial(_wait, left.value))
    if kind == "mma_async":
        return _together(_product(instruction))
    raise unknown(instruction)


def _together(step: Step) -> Step:
    """Return a step that all threads of the block take together."""

    def checked(block: Block, mask: Values | None) -> None:
        if block.threads != THREADS or not (mask is None or mask.all()):
            raise PtxError("a warpgroup is not whole, or not alone in its block, where all of its threads must meet")
        step(block, None)

    return checked


def _fence(block: Block, mask: Values | None) -> None:
    block.fenced = dict(block.registers)


def _close_group(block: Block, mask: Values | None) -> None:
    block.closed_products += 1


def _product(instruction: Instruction) -> Step:
    shape = re.fullmatch(r"m64n(\d+)k8", instruction.modifiers[3])
    if shape is None or instruction.modifiers[4:] != ("f32", "tf32", "tf32") or len(instruction.operands) != 6:
        raise unknown(instruction)
    d, a, descriptor, scale, *signs = instruction.operands
    registers, fragments = elements(d), elements(a)
    columns = int(shape[1])
    if len(registers) * THREADS != ROWS * columns or len(fragments) != 4 or signs != [Constant(1), Constant(1)]:
        raise unknown(instruction)
    sums = tuple(each for each in registers if isinstance(each, Register))

    def step(block: Block, mask: Values | None) -> None:
        left = np.empty((ROWS, INNER))
        for i, each in enumerate(fragments):
            _check_fenced(block, each)
            left[_ROW + 8 * (i % 2), _COLUMN + 4 * (i // 2)] = tf32(each.read(block, _FLOAT32))
        addresses = _elements_at(_uniform(block, descriptor), columns)
        block.shared.check_asynchronous(addresses.ravel())
        before = None
        if not any(other.registers == sums for other in block.products):
            before = _accumulators(block, sums)
        from_zero = not _uniform_predicate(block, scale)
        block.products.append(Product(sums, before, from_zero, left, addresses, block.closed_products))

    return step


def _check_fenced(block: Block, register: Operand) -> None:
    assert isinstance(register, Register)
    if block.registers.get(register.name) is not block.fenced.get(register.name):
        raise PtxError(f"{register.name} was written since the last wgmma.fence")


def _accumulators(block: Block, registers: tuple[Register, ...]) -> Values:
    """Return what D holds, (64, N) float32, and make it NaN until the product lands."""
    total = np.empty((ROWS, 2 * len(registers)), np.float32)
    for i, each in enumerate(registers):
        if each.name in block.registers:
            _check_fenced(block, each)
        total[_place(i)] = each.read(block, _FLOAT32)
        block.registers[each.name] = block.on_the_way[each.name] = np.full(THREADS, 0xFFFFFFFF, np.uint32)
    return total


def _place(i: int) -> tuple[Values, Values]:
    """Return the row and column of D that each thread has in its i-th register."""
    return _ROW + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * _COLUMN + i % 2


def _uniform(block: Block, operand: Operand) -> int:
    values = operand.read(block, _BITS64)
    if (values != values[0]).any():
        raise PtxError("threads of a warpgroup give different descriptors")
    return int(values[0])


def _uniform_predicate(block: Block, operand: Operand) -> bool:
    values = operand.read(block, np.dtype(bool))
    if (values != values[0]).any():
        raise PtxError("threads of a warpgroup scale D differently")
    return bool(values[0])


def _elements_at(descriptor: int, columns: int) -> Values:
    """Return the addresses of B[k, n], (8, columns): its columns are rows of shared memory, eight of them an atom."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise PtxError("a descriptor with a base offset is not known")
    width = SWIZZLES[descriptor >> 62]
    k, n = np.arange(INNER)[:, None], np.arange(columns)[None, :]
    # Without swizzles an atom is 16 bytes wide, and the next along k is `leading` bytes further.
    along = k * 4 if width > 16 else k // 4 * leading + k % 4 * 4
    linear = start + n // 8 * stride + n % 8 * width + along
    # Where its row is within eight rows of 128 bytes decides how the pieces of 16 bytes change places.
    return linear ^ ((linear >> 7 & 7 & (width // 16 - 1)) << 4)


def _wait(left: int, block: Block, mask: Values | None) -> None:
    """Let products land: of all groups but the last ones."""
    landing = [each for each in block.products if each.group < block.closed_products - left]
    block.products = [each for each in block.products if each.group >= block.closed_products - left]
    totals: dict[tuple[Register, ...], Values] = {}
    for each in landing:
        total = totals.get(each.registers, each.before)
        assert total is not None
        right = tf32(block.shared.peek(each.addresses.ravel()).view(np.float32)).reshape(each.addresses.shape)
        added = each.left @ right
        totals[each.registers] = (added if each.begins_at_zero else total + added).astype(np.float32)
    for registers, total in totals.items():
        following = next((each for each in block.products if each.registers == registers), None)
        if following is not None:  # a later group goes on with these sums
            following.before = total
            continue
        for i, register in enumerate(registers):
            if block.registers[register.name] is not block.on_the_way.pop(register.name):
                raise PtxError(f"{register.name} was written while a product of it was on its way")
            values = np.ascontiguousarray(total[_place(i)]).view(np.uint32)
            block.registers[register.name] = block.fenced[register.name] = values
