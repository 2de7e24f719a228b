"""What the threads of a warp do together: exchanges, sums, and products of small matrices."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tests.ptx.block import Block, Step
from tests.ptx.operands import Address, Group, Operand, PtxError, Values, elements
from tests.ptx.program import Instruction, Kernel
from tests.ptx.steps import operation, unknown

Size = tuple[int, int]
_BITS32 = np.dtype(np.uint32)
_LANES = np.arange(32)


@operation("shfl")
def _exchange(instruction: Instruction, kernel: Kernel) -> Step:
    mode = instruction.modifiers[1]
    target, value, other, clamp, _ = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        block.whole_warps(mask)
        values = value.read(block, _BITS32)
        by, limits = other.read(block, _BITS32).astype(np.int64) & 31, clamp.read(block, _BITS32).astype(np.int64)
        lane, segment, most = block.numbers % 32, (limits >> 8) & 31, limits & 31
        last, first = (lane & segment) | (most & ~segment & 31), lane & segment
        source = {"bfly": lane ^ by, "idx": first | (by & ~segment & 31), "up": lane - by, "down": lane + by}[mode]
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, lane) + block.numbers // 32 * 32
        results = elements(target)
        results[0].write(block, values[source], mask)
        if len(results) > 1:
            results[1].write(block, inside, mask)

    return step


@operation("redux")
def _sum_of_warp(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.modifiers != ("sync", "add", "s32"):
        raise unknown(instruction)
    target, value, _ = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        block.whole_warps(mask)
        sums = value.read(block, np.dtype(np.int32)).reshape(-1, 32).sum(axis=1, dtype=np.int32)
        target.write(block, np.repeat(sums, 32), mask)

    return step


@operation("ldmatrix", "stmatrix")
def _matrices(instruction: Instruction, kernel: Kernel) -> Step:
    """Matrices of 8 rows of 16 bytes: lanes 8i to 8i + 7 give the rows of the i-th; a lane gets 4 bytes of each."""
    if not {"m8n8", "b16"} <= {*instruction.modifiers}:
        raise unknown(instruction)
    loads, transposed = instruction.name == "ldmatrix", "trans" in instruction.modifiers
    address = instruction.operands[1 if loads else 0]
    assert isinstance(address, Address)
    registers = elements(instruction.operands[0 if loads else 1])

    def step(block: Block, mask: Values | None) -> None:
        warps = block.whole_warps(mask)
        addresses = address.address(block).reshape(-1, 32)
        if (addresses[warps][:, : 8 * len(registers)] % 16).any():
            raise PtxError("a row of a matrix is not aligned to 16 bytes")
        for place, register in enumerate(registers):
            rows = addresses[:, 8 * place : 8 * place + 8]
            if loads:
                values = np.zeros((block.threads // 32, 32), np.uint32)
                for warp in warps:
                    values[warp] = _load_matrix(block, rows[warp], int(warp), transposed)
                register.write(block, values.reshape(-1), mask)
            else:
                values = register.read(block, _BITS32).reshape(-1, 32)
                for warp in warps:
                    _store_matrix(block, rows[warp], values[warp], int(warp), transposed)

    return step


def _words(rows: Values, warp: int) -> tuple[Values, Values]:
    """Return the addresses of the 32 words of a matrix, and the lanes that the words of a row belong to."""
    return np.repeat(rows, 4) + np.tile(np.arange(4) * 4, 8), warp * 32 + _LANES


def _load_matrix(block: Block, rows: Values, warp: int, transposed: bool) -> Values:
    addresses, threads = _words(rows, warp)
    words = block.shared.read(addresses, 4, threads)
    return _transposed(words) if transposed else words


def _store_matrix(block: Block, rows: Values, values: Values, warp: int, transposed: bool) -> None:
    addresses, threads = _words(rows, warp)
    block.shared.write(addresses, _transposed(values) if transposed else values, 4, threads)


def _transposed(words: Values) -> Values:
    """Return the words of a transposed 8×8 matrix of 16 bits, two elements of a row in each word."""
    elements16 = np.ascontiguousarray(words).view(np.uint16).reshape(8, 8)
    return np.ascontiguousarray(elements16.T).view(np.uint32).reshape(32)


@operation("mma")
def _product(instruction: Instruction, kernel: Kernel) -> Step:
    """D = A·B + C of one warp, each lane with its elements: the layouts of the PTX ISA, "Matrix fragments for mma"."""
    shape = next(each for each in instruction.modifiers if re.fullmatch(r"m\d+n\d+k\d+", each))
    rows, columns, inner = (int(each) for each in re.findall(r"\d+", shape))
    kinds = instruction.modifiers[-4:]
    if kinds not in (("f64",) * 4, ("f32", "tf32", "tf32", "f32")) or (rows, columns) not in ((16, 8), (8, 8)):
        raise unknown(instruction)
    assert all(isinstance(each, Group) for each in instruction.operands)
    d, a, b, c = (elements(each) for each in instruction.operands)
    dtype = np.dtype(np.float64 if kinds[0] == "f64" else np.float32)
    group, lane = _LANES // 4, _LANES % 4
    halves = rows // 8  # elements of A go down first, then to the right
    of_a = [(group + 8 * (i % halves), lane + 4 * (i // halves)) for i in range(len(a))]
    of_b = [(lane + 4 * i, group) for i in range(len(b))]
    of_c = [(group + 8 * (i // 2), 2 * lane + i % 2) for i in range(len(c))]
    if (len(a) * 32, len(b) * 32, len(c) * 32) != (rows * inner, inner * columns, rows * columns):
        raise unknown(instruction)

    def fragments(
        block: Block, registers: Sequence[Operand], places: list[tuple[Values, Values]], size: Size
    ) -> Values:
        matrices = np.empty((block.threads // 32, *size), dtype)
        for register, (row, column) in zip(registers, places, strict=True):
            matrices[:, row, column] = register.read(block, dtype).reshape(-1, 32)
        return matrices

    def step(block: Block, mask: Values | None) -> None:
        block.whole_warps(mask)
        left, right = fragments(block, a, of_a, (rows, inner)), fragments(block, b, of_b, (inner, columns))
        if dtype == np.float32:
            left, right = tf32(left), tf32(right)
        total = (left @ right + fragments(block, c, of_c, (rows, columns))).astype(dtype)
        for register, (row, column) in zip(d, of_c, strict=True):
            register.write(block, np.ascontiguousarray(total[:, row, column]).reshape(-1), mask)

    return step


def tf32(values: Values) -> Values:
    """Return what the tensor cores take of float32, as float64: 10 bits after the point."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
